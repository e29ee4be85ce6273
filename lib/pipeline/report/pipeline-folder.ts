/** The folder of a pipeline's run as a report's source. */
import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { extract } from 'tar-stream';

import { AttentionBiasError, expected } from '../../errors.js';
import { ioError, throwIfAborted } from '../../formats/io.js';
import { readItemLines, readRunDescription } from '../sidecar.js';
import type { PageMeta, PictureKind, Row } from './data.js';
import { readLogs, type RunTimes } from './logs.js';
import type { Picture, Source, SourceContext } from './page.js';
import { failedRow, rowOf } from './row.js';

const SHARD = /^(\d+)-([0-9a-f]{16})\.(tar|safetensors|npz)$/;

interface Shard {
  readonly index: number;
  /** path without its extension */
  readonly stem: string;
  readonly pictures: boolean;
}

/** Fields of run.json, one after the other: { frame: { seed: 1 } } is "frame.seed". */
function factsOf(value: unknown, name = ''): [string, string][] {
  if (typeof value !== 'object' || value === null) return [[name, String(value)]];
  if (Array.isArray(value)) return [[name, value.join(', ')]];
  return Object.entries(value).flatMap(([field, inner]) =>
    factsOf(inner, name === '' ? field : `${name}.${field}`),
  );
}

/**
 * The shards that are finished: those whose file stands. Of two of one place, as after a change of the inputs, the newer.
 */
async function finishedShards(folder: string): Promise<{ shards: Shard[]; older: number }> {
  const names = await readdir(folder).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw ioError('a folder that can be read', folder, cause);
  });
  const known = new Set(names);
  const newest = new Map<number, Shard & { time: number }>();
  let older = 0;
  for (const name of names.sort()) {
    const match = SHARD.exec(name);
    if (!match) continue;
    const path = join(folder, name);
    const info = await stat(path).catch((cause: unknown) => {
      throw ioError('a file that can be read', path, cause);
    });
    const stem = `${match[1]!}-${match[2]!}`;
    const index = Number(match[1]);
    const before = newest.get(index);
    if (before) ++older;
    if (before && before.time >= info.mtimeMs) continue;
    newest.set(index, {
      index,
      stem: join(folder, stem),
      pictures: known.has(`${stem}.previews.tar`),
      time: info.mtimeMs,
    });
  }
  return { shards: [...newest.values()].sort((a, b) => a.index - b.index), older };
}

/** Each frame's place on the page, by its key, for the pictures that follow. */
type Places = Map<string, number>;

async function* readRows(
  shard: Shard,
  first: number,
  { items }: RunTimes,
  signal: AbortSignal | undefined,
): AsyncGenerator<Row> {
  const path = `${shard.stem}.jsonl`;
  let n = first;
  for await (const item of readItemLines(path)) {
    throwIfAborted(signal, path);
    const at = {
      n: n++,
      index: item.index,
      key: item.key,
      kind: item.kind,
      source: item.source,
      pictures: shard.pictures && item.ok && item.kind === 'frame',
    };
    const ms = items.get(item.index);
    yield item.ok ? rowOf(at, item.summary, ms) : failedRow(at, { stage: item.stage, ...item.error }, ms);
  }
}

const PICTURE = /^(.*)\.(bev|cameras)\.webp$/;

async function* readPictures(
  shard: Shard,
  places: Places,
  signal: AbortSignal | undefined,
): AsyncGenerator<Picture> {
  const path = `${shard.stem}.previews.tar`;
  const input = createReadStream(path);
  const tar = extract();
  input.on('error', (cause) => tar.destroy(ioError('a file that can be read', path, cause)));
  input.pipe(tar);
  try {
    for await (const entry of tar) {
      throwIfAborted(signal, path);
      const match = PICTURE.exec(entry.header.name);
      const n = match ? places.get(match[1]!) : undefined;
      if (n === undefined) {
        entry.resume();
        continue;
      }
      const chunks: Buffer[] = [];
      for await (const chunk of entry) chunks.push(chunk as Buffer);
      yield { n, kind: match![2] as PictureKind, bytes: Buffer.concat(chunks) };
    }
  } catch (cause) {
    if (cause instanceof AttentionBiasError) throw cause;
    throw expected('ERR_FORMAT', 'a tar file', path, cause instanceof Error ? cause.message : String(cause));
  } finally {
    input.destroy();
  }
}

/** @throws AttentionBiasError ERR_IO, ERR_FORMAT */
export async function pipelineFolder(folder: string, context: SourceContext): Promise<Source> {
  const { signal } = context;
  const run = await readRunDescription(join(folder, 'run.json'));
  const { manifest, shards: total } = run;
  const { items } = manifest;
  const { shards, older } = await finishedShards(join(folder, 'shards'));
  const times = await readLogs(join(folder, 'logs'), signal);
  const notes: string[] = [];
  if (shards.length < total)
    notes.push(`${total - shards.length} of ${total} shards are not finished: their items are not here.`);
  if (older > 0)
    notes.push(`${older} shards of earlier inputs lie in the folder; the page has the newer ones.`);
  const meta: PageMeta = {
    title: basename(resolve(folder)),
    kind: 'pipeline',
    version: context.version,
    facts: factsOf(run),
    shards: { finished: shards.length, total },
    items,
    pace:
      times.busyMs > 0
        ? { perSecond: (times.steps / times.busyMs) * 1000, processes: times.processes }
        : undefined,
    notes,
  };
  const places = new Map<Shard, Places>();
  return {
    meta,
    async *rows() {
      let n = 0;
      for (const shard of shards) {
        const rows: Row[] = [];
        const keys: Places = new Map();
        for await (const row of readRows(shard, n, times, signal)) {
          ++n;
          const keep = row.pictures && context.keeps(row.index, items);
          if (keep) keys.set(row.key, row.n);
          rows.push(keep ? row : { ...row, pictures: false });
        }
        places.set(shard, keys);
        yield rows;
      }
    },
    async *pictures() {
      for (const shard of shards) {
        const keys = places.get(shard)!;
        if (keys.size > 0) yield* readPictures(shard, keys, signal);
      }
    },
  };
}
