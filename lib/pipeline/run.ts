/**
 * A run: the items of a manifest, computed shard by shard into a folder. A shard's file stands when the shard is finished, and
 * only then, so that a run may be killed at any moment and started again, here or on other machines at the same time.
 *
 * Two processes may compute the same shard: each writes files of its own and renames them in the end, and what they write is
 * the same, unless an item failed in one of them alone. A shard's files then could be of both; so who has renamed the
 * last one looks whether the others are its own, and takes the shard back if they are not.
 */
import { createHash } from 'node:crypto';
import { link, mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';

import type { Device, Precision } from '../device.js';
import { AttentionBiasError, expected } from '../errors.js';
import { syncFolder } from '../formats/atomic.js';
import { ioError, throwIfAborted } from '../formats/io.js';
import { traceShard } from '../telemetry.js';
import { packageVersion } from '../version.js';
import { fromManifest, shardKey } from './content-key.js';
import { computeItems, type ItemOutcome } from './items.js';
import type { FrameOverrides } from './manifest.js';
import { indexManifest, readShardLines, type ManifestIndex, type ManifestLine } from './read-manifest.js';
import { openNpzShard } from './shard-npz.js';
import { openSafetensorsShard } from './shard-safetensors.js';
import { openTar, openTarShard } from './shard-tar.js';
import type { OpenShardWriter } from './shard-writer.js';
import {
  countItems,
  formatItemLine,
  type ItemLine,
  type RunDescription,
  type ShardDtype,
  type ShardFormat,
} from './sidecar.js';
import { parseTemporary, stageFile, type StagedFile } from './staged.js';

/** What a run is. Plain JSON: a process on another machine that sees the same files plans the same run from it. */
export interface RunOptions {
  /** path of the manifest */
  readonly manifest: string;
  /**
   * the folder that all files must lie in, which the manifest, its jobs and its frames name: what comes from others can't lead
   * elsewhere. Default: the manifest's own
   */
  readonly root?: string | undefined;
  /** the output folder, made where it does not exist */
  readonly out: string;
  /** default `tar` */
  readonly format?: ShardFormat | undefined;
  /** of float32 tensors in shards; default `f32`. npz has no `bf16` */
  readonly dtype?: ShardDtype | undefined;
  /** names of the tensors that shards hold; default: all. An item that has none of them fails */
  readonly tensors?: readonly string[] | undefined;
  /** items of a shard; default 64 */
  readonly shardSize?: number | undefined;
  /** whether a shard's frames have pictures beside it; default false */
  readonly previews?: boolean | undefined;
  /** of the arithmetic; the device that a shard is computed on was opened with it. Default `f32` */
  readonly precision?: Precision | undefined;
  /** of frames whose line says nothing else; default: 900 queries, seed 1, strength 5, no window */
  readonly frame?: FrameOverrides | undefined;
}

type Settings = Required<Omit<RunOptions, 'tensors' | 'frame'>> & {
  readonly tensors: readonly string[] | undefined;
  readonly frame: FrameOverrides;
};

/** A run that is planned. */
export interface Run {
  readonly manifest: ManifestIndex;
  readonly items: number;
  readonly shardSize: number;
  /** how many */
  readonly shards: number;
  /** absolute path of the output folder */
  readonly out: string;
  /** the options, with defaults and absolute paths */
  readonly options: Settings;
  /** what run.json holds */
  readonly description: RunDescription;
  /** SHA-256 of the description, in hexadecimal digits */
  readonly key: string;
}

export const DEFAULT_SHARD_SIZE = 64;
const MAX_SHARD_SIZE = 1_000_000;
const FRAME_DEFAULTS = { queries: 900, seed: 1, strength: 5, window: false };

function settingsOf(options: RunOptions): Settings {
  const { format = 'tar', dtype = 'f32', shardSize = DEFAULT_SHARD_SIZE, previews = false } = options;
  if (!Number.isInteger(shardSize) || shardSize < 1 || shardSize > MAX_SHARD_SIZE)
    throw expected('ERR_VALUE', `an integer from 1 to ${MAX_SHARD_SIZE}`, 'shardSize', String(shardSize));
  if (format === 'npz' && dtype === 'bf16')
    throw expected('ERR_VALUE', 'f32 or f16, of which NumPy knows,', 'the dtype of npz shards', dtype);
  if (options.tensors?.length === 0) throw expected('ERR_VALUE', 'at least one name', 'tensors', 'none');
  const { features, router, ...frame } = options.frame ?? {};
  return {
    manifest: resolve(options.manifest),
    root: options.root === undefined ? dirname(resolve(options.manifest)) : resolve(options.root),
    out: resolve(options.out),
    format,
    dtype,
    shardSize,
    previews,
    tensors: options.tensors && [...new Set(options.tensors)].sort(),
    precision: options.precision ?? 'f32',
    frame: {
      ...FRAME_DEFAULTS,
      ...frame,
      ...(features === undefined ? {} : { features: resolve(features) }),
      ...(router === undefined ? {} : { router: resolve(router) }),
    },
  };
}

function describeRun(settings: Settings, manifest: ManifestIndex, shards: number): RunDescription {
  const { format, dtype, tensors = null, shardSize, previews, precision, frame } = settings;
  const named = (file: string | undefined): string | null =>
    file === undefined ? null : fromManifest(settings.manifest, file);
  const { queries, seed, strength, window } = { ...FRAME_DEFAULTS, ...frame };
  return {
    version: packageVersion(),
    manifest: { sha256: manifest.sha256, items: manifest.items },
    shardSize,
    shards,
    format,
    dtype,
    tensors: tensors && [...tensors],
    previews,
    precision,
    frame: { queries, seed, strength, window, features: named(frame.features), router: named(frame.router) },
  };
}

/**
 * Reads a manifest and says what its run is. Writes nothing.
 *
 * @throws AttentionBiasError ERR_VALUE (an option), ERR_IO, ERR_FORMAT (the manifest, with the line), ERR_ABORTED
 */
export async function planRun(options: RunOptions, signal?: AbortSignal): Promise<Run> {
  const settings = settingsOf(options);
  const { shardSize } = settings;
  const manifest = await indexManifest(settings.manifest, shardSize, signal, settings.root);
  const shards = Math.ceil(manifest.items / shardSize);
  const description = describeRun(settings, manifest, shards);
  const key = createHash('sha256').update(JSON.stringify(description)).digest('hex');
  const { items } = manifest;
  return { manifest, items, shardSize, shards, out: settings.out, options: settings, description, key };
}

const shardsFolder = (run: Run): string => join(run.out, 'shards');

async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true }).catch((cause: unknown) => {
    throw ioError('a folder that can be made', path, cause);
  });
}

/** The first field in which two runs differ, as people write it. */
function difference(standing: unknown, own: unknown, path = ''): string | undefined {
  if (
    typeof own !== 'object' ||
    own === null ||
    typeof standing !== 'object' ||
    standing === null ||
    Array.isArray(own)
  ) {
    if (JSON.stringify(standing) === JSON.stringify(own)) return undefined;
    return `${path.slice(1)} ${standing === undefined ? 'absent' : JSON.stringify(standing)} in place of ${JSON.stringify(own)}`;
  }
  for (const [field, value] of Object.entries(own)) {
    const found = difference((standing as Record<string, unknown>)[field], value, `${path}.${field}`);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Temporary files for a run.json that stands. */
async function removeLeftovers(out: string): Promise<void> {
  for (const name of await readdir(out))
    if (parseTemporary(name)?.target === 'run.json')
      await rm(join(out, name), { force: true }).catch(() => undefined);
}

/**
 * Makes the output folder this run's: its folders, and run.json where it is not there.
 *
 * @throws AttentionBiasError ERR_VALUE where run.json is another run's; ERR_IO
 */
export async function claimFolder(run: Run): Promise<void> {
  await makeFolder(shardsFolder(run));
  const path = join(run.out, 'run.json');
  const text = `${JSON.stringify(run.description, null, 2)}\n`;
  const standing = async (): Promise<string | undefined> =>
    readFile(path, 'utf8').catch((cause: unknown) => {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw ioError('a file that can be read', path, cause);
    });
  let found = await standing();
  if (found === undefined) {
    const file = await stageFile(run.out, 'run.json');
    try {
      await file.write(new TextEncoder().encode(text));
      await file.seal();
      // Of two runs that begin at once one must find the other's; a rename would replace it.
      await link(file.temporary, path).catch(async (cause: unknown) => {
        const { code } = cause as NodeJS.ErrnoException;
        // ENOENT: who has written run.json meanwhile has removed this one as a leftover.
        if (code === 'EEXIST' || code === 'ENOENT') return;
        await rename(file.temporary, path); // a file system without links
      });
      await syncFolder(run.out);
    } finally {
      await file.discard();
    }
    found = await standing();
  }
  if (found === text) {
    await removeLeftovers(run.out);
    return;
  }
  let words = 'something else than a run';
  try {
    words = difference(JSON.parse(found ?? ''), run.description) ?? words;
  } catch {
    // no JSON
  }
  throw expected(
    'ERR_VALUE',
    'a folder of this run, or a new one,',
    `the output ${run.out}`,
    `run.json with ${words}`,
  );
}

const writers: Record<ShardFormat, OpenShardWriter> = {
  tar: openTarShard,
  safetensors: openSafetensorsShard,
  npz: openNpzShard,
};

/** On what a shard is computed, and who is told of it. */
export interface ShardContext {
  readonly device: Device;
  readonly signal?: AbortSignal | undefined;
  /** called with each outcome once it is written, in the items' order */
  readonly onItem?: ((outcome: ItemOutcome) => void) | undefined;
  /** whether a finished shard with failed items is computed again; default false */
  readonly retryFailed?: boolean | undefined;
  /** as in `computeItems` */
  readonly concurrency?: number | undefined;
  readonly maxBytes?: number | undefined;
}

/** What became of a shard. */
export interface ShardResult {
  readonly index: number;
  /** absolute path of the shard */
  readonly file: string;
  readonly items: number;
  readonly failed: number;
  /** whether it was finished before */
  readonly skipped: boolean;
  /** milliseconds of this call */
  readonly ms: number;
}

/** The names that the files of a shard have. */
interface ShardNames {
  readonly shard: string;
  readonly lines: string;
  readonly previews: string;
}

const shardNumber = (index: number): string => String(index).padStart(6, '0');

function namesOf(run: Run, index: number, key: string): ShardNames {
  const stem = `${shardNumber(index)}-${key}`;
  return { shard: `${stem}.${run.options.format}`, lines: `${stem}.jsonl`, previews: `${stem}.previews.tar` };
}

/** The shard that a file of the shards' folder belongs to. */
const numberIn = (name: string): string | undefined => /^\.?(\d{6,})-[0-9a-f]{16}\./.exec(name)?.[1];

/** What stood in the shards' folder when this process first looked, by shard: leftovers of earlier runs are among it. */
const listings = new WeakMap<Run, Promise<Map<string, string[]>>>();

async function list(run: Run): Promise<Map<string, string[]>> {
  const listing = new Map<string, string[]>();
  for (const name of await readdir(shardsFolder(run))) {
    const number = numberIn(name);
    if (number === undefined) continue;
    const names = listing.get(number);
    if (names) names.push(name);
    else listing.set(number, [name]);
  }
  return listing;
}

async function leftovers(run: Run, index: number): Promise<string[]> {
  let listing = listings.get(run);
  if (!listing) {
    listing = list(run);
    listings.set(run, listing);
    // One that failed is tried anew.
    listing.catch(() => listings.delete(run));
  }
  return (await listing).get(shardNumber(index)) ?? [];
}

/**
 * Removes what is no longer of use. Of a shard that stands that is everything else of its number: shards of another key, and
 * temporary files, whoever writes them (a process that is still at it finds the shard there). Of one that doesn't, it is
 * temporary files of processes that have ended; those of other machines may be at work.
 */
async function tidy(run: Run, index: number, keep: ShardNames | undefined): Promise<void> {
  const kept = new Set<string>(keep && Object.values(keep));
  const names = (await leftovers(run, index)).filter((name) => {
    const temporary = parseTemporary(name);
    if (!keep) return temporary?.abandoned === true;
    return temporary !== undefined || !kept.has(name);
  });
  // A stale shard goes before its sidecar: what is there as a shard is whole.
  const last = (name: string): number => (name.endsWith('.jsonl') || name.endsWith('.previews.tar') ? 1 : 0);
  for (const name of names.sort((a, b) => last(a) - last(b)))
    await rm(join(shardsFolder(run), name), { force: true }).catch(() => undefined);
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** The counts of a shard that is finished; undefined for one that isn't. */
async function finishedShard(
  run: Run,
  names: ShardNames,
): Promise<{ items: number; failed: number } | undefined> {
  const at = (name: string): string => join(shardsFolder(run), name);
  if (!(await exists(at(names.shard)))) return undefined;
  return countItems(at(names.lines));
}

/** Failures that are the machine's: they must not be written down as the item's. */
const isMachines = ({ code }: AttentionBiasError): boolean => code === 'ERR_DEVICE' || code === 'ERR_ABORTED';

/** Tensors are chosen before: this says which item has none of them. */
function requireTensors(run: Run, outcome: ItemOutcome): ItemOutcome {
  const { tensors: names } = run.options;
  if (!outcome.ok || names === undefined || Object.keys(outcome.tensors).length > 0) return outcome;
  const { item, ms } = outcome;
  const error = expected(
    'ERR_VALUE',
    `an item with ${names.join(' or ')}`,
    'tensors',
    'an item with none of them',
  );
  return { ok: false, item, error, stage: 'write', ms };
}

function itemLine(run: Run, outcome: ItemOutcome): ItemLine {
  const { key, index, kind } = outcome.item;
  const path = outcome.item.kind === 'frame' ? outcome.item.frame : outcome.item.job;
  const source = fromManifest(run.options.manifest, path);
  if (outcome.ok) return { key, index, kind, source, ok: true, summary: outcome.summary };
  const { code, message } = outcome.error;
  // Paths from the manifest's folder: the line is the same wherever that is.
  const words = message.replaceAll(`${dirname(run.options.manifest)}/`, '');
  return { key, index, kind, source, ok: false, stage: outcome.stage, error: { code, message: words } };
}

interface Made {
  readonly items: number;
  readonly failed: number;
  /** of the lines */
  readonly sha256: string;
  readonly files: Readonly<{ shard: StagedFile; lines: StagedFile; previews: StagedFile | undefined }>;
}

/** The files of a shard that is being made. */
interface ShardFiles {
  add(outcome: ItemOutcome): Promise<void>;
  /** All of them are whole and on the disk, under temporary names. */
  finish(): Promise<Made>;
  /** Removes what was not published. Never rejects. */
  discard(): Promise<void>;
}

async function openShardFiles(
  run: Run,
  names: ShardNames,
  folder: string,
  signal: AbortSignal | undefined,
): Promise<ShardFiles> {
  const { dtype, format, previews } = run.options;
  const staged: StagedFile[] = [];
  const open: { dispose(): Promise<void> }[] = [];
  const stage = async (name: string): Promise<StagedFile> => {
    const file = await stageFile(folder, name, signal);
    staged.push(file);
    return file;
  };
  const discard = async (): Promise<void> => {
    for (const one of open) await one.dispose();
    for (const file of staged) await file.discard();
  };
  try {
    const files = {
      shard: await stage(names.shard),
      lines: await stage(names.lines),
      previews: previews ? await stage(names.previews) : undefined,
    };
    const scratch = (suffix: string): Promise<StagedFile> => stage(`${names.shard}.${suffix}`);
    const writer = writers[format]({ file: files.shard, dtype, scratch });
    open.push(writer);
    const pictures = files.previews && openTar(files.previews);
    if (pictures) open.push(pictures);
    const hash = createHash('sha256');
    let items = 0;
    let failed = 0;
    return {
      async add(outcome) {
        if (outcome.ok) {
          const { key } = outcome.item;
          await writer.add({ key, tensors: outcome.tensors, summary: outcome.summary });
          for (const [name, bytes] of Object.entries(outcome.previews))
            await pictures?.add(`${key}.${name}`, [bytes]);
        } else {
          failed += 1;
        }
        const line = new TextEncoder().encode(formatItemLine(itemLine(run, outcome)));
        hash.update(line);
        await files.lines.write(line);
        items += 1;
      },
      async finish() {
        await writer.finish();
        await pictures?.finish();
        throwIfAborted(signal, join(folder, names.shard));
        for (const file of [files.lines, files.previews, files.shard]) await file?.seal();
        return { items, failed, sha256: hash.digest('hex'), files };
      },
      discard,
    };
  } catch (error) {
    await discard();
    throw error;
  }
}

/** Writes outcomes as a shard's into a folder of their own, and keeps nothing: what writing takes is part of an estimate. */
export async function openScratchShard(
  run: Run,
  folder: string,
): Promise<Pick<ShardFiles, 'add' | 'discard'>> {
  return openShardFiles(run, namesOf(run, 0, 'scratch'), folder, undefined);
}

/** Computes a shard into temporary files, which `discard` removes unless they were published. */
async function makeShard(
  run: Run,
  names: ShardNames,
  lines: readonly ManifestLine[],
  context: ShardContext,
): Promise<Made & Pick<ShardFiles, 'discard'>> {
  const { device, signal, concurrency, maxBytes } = context;
  const { previews, tensors, frame } = run.options;
  const files = await openShardFiles(run, names, shardsFolder(run), signal);
  try {
    const items = lines.map(({ item }) => item);
    const options = { device, frame, tensors, previews, concurrency, maxBytes, signal };
    let count = 0;
    for await (const computed of computeItems(items, options)) {
      const outcome = requireTensors(run, computed);
      if (!outcome.ok && isMachines(outcome.error)) throw outcome.error;
      if (outcome.item !== items[count]) throw new Error(`item ${outcome.item.index} out of order`);
      await files.add(outcome);
      count += 1;
      context.onItem?.(outcome);
    }
    if (count !== items.length) throw new Error(`${count} outcomes of ${items.length} items`);
    return { ...(await files.finish()), discard: () => files.discard() };
  } catch (error) {
    await files.discard();
    throw error;
  }
}

async function removeShard(run: Run, names: ShardNames): Promise<void> {
  const path = join(shardsFolder(run), names.shard);
  await rm(path, { force: true }).catch((cause: unknown) => {
    throw ioError('a file that can be replaced', path, cause);
  });
  await syncFolder(shardsFolder(run));
}

const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/**
 * Gives the files their names, the shard's last.
 *
 * @returns whether they are all of this process; and false with nothing changed where one of them was removed, as a leftover,
 *   by a process that has finished the shard
 */
async function publish(run: Run, names: ShardNames, { files, sha256 }: Made): Promise<boolean> {
  const folder = shardsFolder(run);
  const missing = [files.lines, files.previews, files.shard].filter((file) => file !== undefined);
  for (const file of missing) if (!(await exists(file.temporary))) return false;
  // Between the first rename and the last an old shard would stand beside lines that are not its own.
  if (await exists(join(folder, names.shard))) await removeShard(run, names);
  await files.lines.publish();
  await files.previews?.publish();
  await syncFolder(folder);
  await files.shard.publish();
  await syncFolder(folder);
  const lines = await readFile(join(folder, names.lines)).catch(() => undefined);
  if (lines && digest(lines) === sha256) return true;
  await removeShard(run, names);
  return false;
}

const MAX_TRIES = 3;

/**
 * Computes a shard of a run, unless it is finished, and writes its files: all of them or, after an error, none. Items that fail
 * are noted in the shard's lines.
 *
 * @param index from 0
 * @throws AttentionBiasError ERR_VALUE (no such shard; the folder is another run's), ERR_IO, ERR_FORMAT (the manifest),
 *   ERR_DEVICE, ERR_ABORTED
 */
export async function runShard(run: Run, index: number, context: ShardContext): Promise<ShardResult> {
  if (!Number.isInteger(index) || index < 0 || index >= run.shards)
    throw expected('ERR_VALUE', `an integer from 0 to ${run.shards - 1}`, 'the shard', String(index));
  const items = Math.min(run.shardSize, run.items - index * run.shardSize);
  const { format } = run.options;
  return traceShard({ shard: index, items, format }, () => finishShard(run, index, context));
}

async function finishShard(run: Run, index: number, context: ShardContext): Promise<ShardResult> {
  const { signal, retryFailed = false } = context;
  const begin = performance.now();
  await claimFolder(run);
  const { manifest, options } = run;
  const lines = await readShardLines(manifest, run.shardSize, index, signal);
  const runFiles = [options.frame.features, options.frame.router].filter((file) => file !== undefined);
  const key = await shardKey(run.key, runFiles, lines, options.manifest, signal);
  const names = namesOf(run, index, key);
  const result = (counts: { items: number; failed: number }, skipped: boolean): ShardResult => ({
    index,
    file: join(shardsFolder(run), names.shard),
    items: counts.items,
    failed: counts.failed,
    skipped,
    ms: performance.now() - begin,
  });

  const finished = await finishedShard(run, names);
  if (finished && !(retryFailed && finished.failed > 0)) {
    await tidy(run, index, names);
    return result(finished, true);
  }
  await tidy(run, index, undefined);
  for (let tries = 1; tries <= MAX_TRIES; ++tries) {
    const made = await makeShard(run, names, lines, context);
    try {
      // Whoever was first has written the same; a second try of failed items is to replace what stands.
      const other = await finishedShard(run, names);
      if (other && !(retryFailed && other.failed > made.failed)) return result(other, true);
      if (await publish(run, names, made)) {
        await tidy(run, index, names);
        return result(made, false);
      }
    } catch (error) {
      const other = await finishedShard(run, names);
      if (!other) throw error;
      return result(other, true);
    } finally {
      await made.discard();
    }
  }
  const what = 'a shard that no other process writes at the same moment with another outcome';
  throw expected('ERR_IO', what, names.shard, `one that does, ${MAX_TRIES} times`);
}
