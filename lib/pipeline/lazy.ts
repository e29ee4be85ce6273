/**
 * What the package's root has of runs. The modules behind it decode images and check files, which takes longer to load than
 * all the rest: they are loaded with the first call, not with the package.
 */
import type * as estimating from './estimate.js';
import type * as items from './items.js';
import type * as manifests from './read-manifest.js';
import type * as runs from './run.js';
import type * as sidecars from './sidecar.js';

/* eslint-disable @typescript-eslint/no-require-imports -- when it is called, and at once */

/** See `computeItems` in pipeline/items: manifest items, computed while the next are read; an item that fails is an outcome. */
export const computeItems: typeof items.computeItems = (...args) =>
  (require('./items.js') as typeof items).computeItems(...args);

/** Reads a manifest and says what its run is; writes nothing. ERR_VALUE, ERR_IO, ERR_FORMAT, ERR_ABORTED. */
export const planRun: typeof runs.planRun = (...args) =>
  (require('./run.js') as typeof runs).planRun(...args);

/** Computes a shard of a planned run into its file, or finds it finished. ERR_VALUE, ERR_IO, ERR_FORMAT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED. */
export const runShard: typeof runs.runShard = (...args) =>
  (require('./run.js') as typeof runs).runShard(...args);

/** The items of a manifest, one after the other, as the file is read. ERR_IO, ERR_FORMAT with the line, ERR_ABORTED. */
export const readManifest: typeof manifests.readManifest = (...args) =>
  (require('./read-manifest.js') as typeof manifests).readManifest(...args);

/** The lines of a shard's `.jsonl`, one for each item. ERR_IO, ERR_FORMAT. */
export const readItemLines: typeof sidecars.readItemLines = (...args) =>
  (require('./sidecar.js') as typeof sidecars).readItemLines(...args);

/** Computes a sample of items and measures them, for `estimate`. Errors as `computeItems`. */
export const measureSample: typeof estimating.measureSample = (...args) =>
  (require('./estimate.js') as typeof estimating).measureSample(...args);

/** How long a run would take and how many machines, from a measured sample. ERR_VALUE. */
export const estimate: typeof estimating.estimate = (...args) =>
  (require('./estimate.js') as typeof estimating).estimate(...args);
