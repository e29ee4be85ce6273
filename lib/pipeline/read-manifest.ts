/**
 * Manifests: JSON lines, each a frame or a job. A manifest is read twice and never held whole: once to check it and to note
 * where each shard's lines begin, and then each shard's lines by themselves.
 */
import { createHash } from 'node:crypto';
import { dirname, resolve } from 'node:path';
import type { FileHandle } from 'node:fs/promises';
import { z } from 'zod';

import { AttentionBiasError, expected } from '../errors.js';
import {
  allocate,
  changedWhileRead,
  openForReading,
  readInto,
  statRegular,
  throwIfAborted,
} from '../formats/io.js';
import { decodeUtf8, parseJson, showJson, type Json } from '../formats/json.js';
import { boolean, checkWith, fields, number } from '../formats/schema.js';
import { resolveTensors, TENSORS_SOURCE } from '../formats/tensors-file.js';
import { resolveFrom } from '../formats/within.js';
import type { ManifestItem } from './manifest.js';

const BLOCK_BYTES = 2 ** 20;
const MAX_LINE_BYTES = 2 ** 20;
const NEWLINE = 0x0a;

const path = z.string({ error: 'the path of a file' }).min(1, { error: 'the path of a file' });
const keyWords = 'a key of 1 to 100 letters, digits, _ and -';
const key = z
  .string({ error: keyWords })
  .regex(/^[A-Za-z0-9_-]{1,100}$/, { error: keyWords })
  .exactOptional();
const integerFrom = (least: number, most: number) => {
  const error = `an integer from ${least} to ${most}`;
  return z.int({ error }).min(least, { error }).max(most, { error });
};

const frameLine = fields({
  frame: path,
  key,
  queries: integerFrom(1, 1_000_000).exactOptional(),
  seed: integerFrom(0, 2 ** 32 - 1).exactOptional(),
  strength: number.exactOptional(),
  window: boolean.exactOptional(),
  features: path.exactOptional(),
  router: path.exactOptional(),
});

const jobLine = fields({
  job: path,
  key,
  tensors: z.union([path, z.record(z.string(), path)], { error: TENSORS_SOURCE }).exactOptional(),
});

/** The key of an item whose line names none. */
const defaultKey = (index: number): string => String(index).padStart(8, '0');

const isObject = (json: Json): json is Record<string, Json> =>
  typeof json === 'object' && json !== null && !Array.isArray(json);

/**
 * Parses the line of item `index` of the manifest at `manifest`. ERR_FORMAT, with the file and the line.
 *
 * @param root absolute path of the folder that all files must lie in, which the line and what it leads to name
 */
export function parseManifestLine(
  text: string,
  manifest: string,
  index: number,
  root: string = dirname(manifest),
): ManifestItem {
  const where = `${manifest}:${index + 1}`;
  let json: Json;
  try {
    json = parseJson(text, where);
  } catch (error) {
    if (!(error instanceof AttentionBiasError)) throw error;
    // The line is the manifest's, which the name says.
    const message = error.message.replace(/ at line 1, (column \d+)$/, ' at $1');
    throw new AttentionBiasError(error.code, message, { cause: error });
  }
  const whole = 'the item';
  const at = (file: string): string => {
    resolveFrom(where, file, root); // names the line
    return resolveFrom(manifest, file, root);
  };
  if (isObject(json) && 'job' in json) {
    const { job, key = defaultKey(index), tensors } = checkWith(jobLine, json, where, whole);
    const common = { kind: 'job', index, key, root, job: at(job) } as const;
    if (tensors === undefined) return common;
    return { ...common, tensors: resolveTensors(where, tensors, root) };
  }
  if (isObject(json) && !('frame' in json))
    throw expected('ERR_FORMAT', 'an item with "frame" or "job"', where, showJson(json));
  const {
    frame,
    key = defaultKey(index),
    features,
    router,
    ...options
  } = checkWith(frameLine, json, where, whole);
  return {
    kind: 'frame',
    index,
    key,
    root,
    frame: at(frame),
    options: {
      ...options,
      ...(features === undefined ? {} : { features: at(features) }),
      ...(router === undefined ? {} : { router: at(router) }),
    },
  };
}

interface Line {
  /** where it starts in the file */
  readonly offset: number;
  /** without its newline */
  readonly text: string;
}

/** The file's bytes from `start` to `end`, in blocks. */
async function* blocks(
  file: FileHandle,
  path: string,
  [start, end]: readonly [number, number],
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  for (let at = start; at < end;) {
    const block = allocate(Math.min(BLOCK_BYTES, end - at), path);
    if ((await readInto(file, path, block, at, signal)) < block.byteLength) throw changedWhileRead(path);
    at += block.byteLength;
    yield new Uint8Array(block);
  }
}

/** Where lines end in a block. */
function* newlines(block: Uint8Array): Generator<number> {
  for (let at = block.indexOf(NEWLINE); at >= 0; at = block.indexOf(NEWLINE, at + 1)) yield at;
}

function tooLong(path: string, index: number, bytes: number): AttentionBiasError {
  return expected(
    'ERR_FORMAT',
    `at most ${MAX_LINE_BYTES} bytes`,
    `${path}:${index + 1}`,
    `${bytes} or more`,
  );
}

/** The lines of bytes that start at `offset` of the file with line `first`; the last may lack its newline. */
async function* lines(
  source: AsyncIterable<Uint8Array>,
  path: string,
  offset: number,
  first: number,
): AsyncGenerator<Line> {
  let index = first;
  let rest: Uint8Array = new Uint8Array(0);
  const line = (bytes: Uint8Array): Line => {
    if (bytes.length > MAX_LINE_BYTES) throw tooLong(path, index, bytes.length);
    const text = decodeUtf8(bytes, `${path}:${index + 1}`);
    if (text.trim() === '') throw expected('ERR_FORMAT', 'an item', `${path}:${index + 1}`, 'an empty line');
    const found = { offset, text };
    offset += bytes.length + 1;
    index += 1;
    return found;
  };
  for await (const block of source) {
    let start = 0;
    for (const end of newlines(block)) {
      const part = block.subarray(start, end);
      yield line(rest.length === 0 ? part : Buffer.concat([rest, part]));
      rest = new Uint8Array(0);
      start = end + 1;
    }
    if (start < block.length) rest = Buffer.concat([rest, block.subarray(start)]);
    if (rest.length > MAX_LINE_BYTES) throw tooLong(path, index, rest.length);
  }
  if (rest.length > 0) yield line(rest);
}

/** What one pass over a manifest tells. */
export interface ManifestIndex {
  /** absolute */
  readonly path: string;
  /** absolute: the folder that all files lie in */
  readonly root: string;
  /** of the whole file, in hexadecimal digits */
  readonly sha256: string;
  readonly items: number;
  /** where the lines of each shard begin, and the file's end */
  readonly offsets: readonly number[];
  /** the file's time of change, in nanoseconds: it may not change while a run goes on */
  readonly mtimeNs: bigint;
}

/**
 * Reads a manifest from end to end: every line is checked, and that no two items have one key without regard to case.
 *
 * @param path absolute
 * @param shardSize items of a shard
 * @param root absolute; see `parseManifestLine`
 * @throws AttentionBiasError ERR_IO; ERR_FORMAT, which names the file and the line; ERR_ABORTED
 */
export async function indexManifest(
  path: string,
  shardSize: number,
  signal?: AbortSignal,
  root: string = dirname(path),
): Promise<ManifestIndex> {
  await using file = await openForReading(path);
  const { size, mtimeNs } = await statRegular(file, path);
  const bytes = Number(size);
  const hash = createHash('sha256');
  async function* hashed(): AsyncGenerator<Uint8Array> {
    for await (const block of blocks(file, path, [0, bytes], signal)) {
      hash.update(block);
      yield block;
    }
  }
  const offsets: number[] = [];
  const taken = new Map<string, number>();
  let items = 0;
  for await (const { offset, text } of lines(hashed(), path, 0, 0)) {
    const item = parseManifestLine(text, path, items, root);
    const other = taken.get(item.key.toLowerCase());
    if (other !== undefined) {
      const received = `${JSON.stringify(item.key)}, the key of line ${other + 1}`;
      throw expected(
        'ERR_FORMAT',
        'each key once, without regard to case,',
        `${path}:${items + 1}`,
        received,
      );
    }
    taken.set(item.key.toLowerCase(), items);
    if (items % shardSize === 0) offsets.push(offset);
    items += 1;
  }
  if (items === 0) throw expected('ERR_FORMAT', 'at least one item', path, 'an empty file');
  return { path, root, sha256: hash.digest('hex'), items, offsets: [...offsets, bytes], mtimeNs };
}

/** An item with its line as it stands in the manifest. */
export interface ManifestLine {
  readonly item: ManifestItem;
  readonly text: string;
}

/** The items of a shard, with their lines. ERR_IO, also where the manifest has changed since it was indexed. */
export async function readShardLines(
  manifest: ManifestIndex,
  shardSize: number,
  shard: number,
  signal?: AbortSignal,
): Promise<ManifestLine[]> {
  const { path, root, offsets, mtimeNs } = manifest;
  await using file = await openForReading(path);
  const now = await statRegular(file, path);
  if (now.mtimeNs !== mtimeNs || Number(now.size) !== offsets.at(-1)) throw changedWhileRead(path);
  const [start, end] = [offsets[shard]!, offsets[shard + 1]!];
  const first = shard * shardSize;
  const found: ManifestLine[] = [];
  for await (const { text } of lines(blocks(file, path, [start, end], signal), path, start, first)) {
    found.push({ item: parseManifestLine(text, path, first + found.length, root), text: text.trim() });
  }
  return found;
}

/**
 * The items of a manifest, one after the other, as the file is read.
 *
 * @param root the folder that all files must lie in, which the manifest and what it leads to name; default: the manifest's own
 * @throws AttentionBiasError as `indexManifest`, but for keys, whose being unique is not checked here
 */
export async function* readManifest(
  path: string,
  signal?: AbortSignal,
  root?: string,
): AsyncGenerator<ManifestItem> {
  const absolute = resolve(path);
  const within = root === undefined ? dirname(absolute) : resolve(root);
  await using file = await openForReading(absolute);
  const { size } = await statRegular(file, absolute);
  let index = 0;
  for await (const { text } of lines(blocks(file, absolute, [0, Number(size)], signal), absolute, 0, 0)) {
    throwIfAborted(signal, absolute);
    yield parseManifestLine(text, absolute, index++, within);
  }
}
