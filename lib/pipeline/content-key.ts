/** What a shard's name says of its contents: a digest of everything that they are computed from. */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { dirname, relative, sep } from 'node:path';

import { AttentionBiasError } from '../errors.js';
import { readJob } from '../formats/job.js';
import { ioError, isPassing, readWhole } from '../formats/io.js';
import { filesOfTensors, resolveTensors } from '../formats/tensors-file.js';
import { readFrame } from '../frame/scene.js';
import type { ManifestItem } from './manifest.js';
import type { ManifestLine } from './read-manifest.js';

const MAX_DESCRIPTION_BYTES = 64 * 2 ** 20;
const AT_ONCE = 16;

/** A file as it is named from the manifest's folder, in the same way on every system. */
export const fromManifest = (manifest: string, file: string): string =>
  relative(dirname(manifest), file).split(sep).join('/');

/** The files that an item's FRAME.json or job file names. What can't be read names none: the item will fail. */
async function dataFiles(item: ManifestItem, signal: AbortSignal | undefined): Promise<string[]> {
  if (item.kind === 'frame') {
    const { features, router } = item.options;
    const given = [features, router].filter((file) => file !== undefined);
    const frame = await readFrame(item.frame, signal, item.root);
    return [frame.lidar.file, ...frame.cameras.map(({ file }) => file), ...given];
  }
  if (item.tensors !== undefined) return filesOfTensors(item.tensors);
  const { tensors } = await readJob(item.job, { signal });
  return tensors === undefined ? [] : filesOfTensors(resolveTensors(item.job, tensors, item.root));
}

/** null for a file that is not there: when it comes, the shard is another. */
async function sizeOf(file: string): Promise<number | null> {
  try {
    return (await stat(file)).size;
  } catch (cause) {
    if (isPassing(cause)) throw ioError('a file whose size can be told', file, cause);
    return null;
  }
}

/**
 * What stands for a file that can't be read. Not where the machine is at fault, or the run aborted: the digest would be another,
 * and the shard that stands would be taken for an old one.
 */
function unlessPassing<T>(value: T): (error: unknown) => T {
  return (error) => {
    const known = error instanceof AttentionBiasError && error.code !== 'ERR_ABORTED';
    if (known && !isPassing(error)) return value;
    throw error;
  };
}

/** What an item is computed from, as text. */
async function describeItem(
  { item, text }: ManifestLine,
  manifest: string,
  signal: AbortSignal | undefined,
): Promise<string> {
  const description = item.kind === 'frame' ? item.frame : item.job;
  const bytes = await readWhole(description, MAX_DESCRIPTION_BYTES, signal).catch(unlessPassing(undefined));
  const digest = bytes && createHash('sha256').update(new Uint8Array(bytes)).digest('hex');
  const files = await dataFiles(item, signal).catch(unlessPassing<string[]>([]));
  const sizes = await Promise.all(
    files.map(async (file) => [fromManifest(manifest, file), await sizeOf(file)] as const),
  );
  return JSON.stringify([item.index, item.key, text, digest ?? null, sizes]);
}

/**
 * 16 hexadecimal digits over the run's key and, for each item, its line, the bytes of its FRAME.json or job file, and names
 * and sizes of the files that those name.
 *
 * @param runFiles files that the run's options name for all items
 * @throws AttentionBiasError ERR_ABORTED; ERR_IO where the machine can't read files at the moment. A file that is not there, or
 *   not what it should be, is no error here but its item's.
 */
export async function shardKey(
  runKey: string,
  runFiles: readonly string[],
  lines: readonly ManifestLine[],
  manifest: string,
  signal?: AbortSignal,
): Promise<string> {
  const hash = createHash('sha256').update(runKey);
  for (const file of runFiles)
    hash.update(`\n${JSON.stringify([fromManifest(manifest, file), await sizeOf(file)])}`);
  for (let at = 0; at < lines.length; at += AT_ONCE) {
    const some = lines.slice(at, at + AT_ONCE);
    const texts = await Promise.all(some.map((line) => describeItem(line, manifest, signal)));
    for (const text of texts) hash.update(`\n${text}`);
  }
  return hash.digest('hex').slice(0, 16);
}
