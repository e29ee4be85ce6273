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

export const computeItems: typeof items.computeItems = (...args) =>
  (require('./items.js') as typeof items).computeItems(...args);

export const planRun: typeof runs.planRun = (...args) =>
  (require('./run.js') as typeof runs).planRun(...args);

export const runShard: typeof runs.runShard = (...args) =>
  (require('./run.js') as typeof runs).runShard(...args);

export const readManifest: typeof manifests.readManifest = (...args) =>
  (require('./read-manifest.js') as typeof manifests).readManifest(...args);

export const readItemLines: typeof sidecars.readItemLines = (...args) =>
  (require('./sidecar.js') as typeof sidecars).readItemLines(...args);

export const measureSample: typeof estimating.measureSample = (...args) =>
  (require('./estimate.js') as typeof estimating).measureSample(...args);

export const estimate: typeof estimating.estimate = (...args) =>
  (require('./estimate.js') as typeof estimating).estimate(...args);
