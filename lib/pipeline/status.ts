/** How far a run is, from its folder alone: from any machine that sees it, while others work on it. */
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';

import { ioError } from '../formats/io.js';
import { countItems, readRunDescription, type RunDescription } from './sidecar.js';

export interface FolderStatus {
  readonly out: string;
  readonly shards: { readonly total: number; readonly finished: number };
  readonly items: {
    readonly total: number;
    /** of finished shards */
    readonly finished: number;
    /** of those, the ones that failed */
    readonly failed: number;
  };
  /** of all processes together, as their logs of the last ten minutes of work say; null where they say nothing */
  readonly itemsPerSecond: number | null;
  /** for the items that are left, at that rate */
  readonly secondsLeft: number | null;
  /** when an item or a shard was last logged, in milliseconds since 1970; null: never */
  readonly lastLog: number | null;
}

const WINDOW_MS = 600_000;
/** Of each log only so much of its end is read: some thousand lines. */
const TAIL_BYTES = 2 ** 20;
const AT_ONCE = 16;

async function list(folder: string): Promise<string[]> {
  return readdir(folder).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw ioError('a folder that can be read', folder, cause);
  });
}

/** The times at which items were logged, in milliseconds since 1970. */
interface Tail {
  readonly times: readonly number[];
  /** whether earlier ones were left out */
  readonly cut: boolean;
}

async function tailOf(path: string): Promise<Tail> {
  const file = await open(path).catch(() => undefined);
  if (!file) return { times: [], cut: false };
  try {
    const { size } = await file.stat();
    const start = Math.max(0, size - TAIL_BYTES);
    const bytes = new Uint8Array(size - start);
    const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
    const times: number[] = [];
    for (const line of Buffer.from(bytes.buffer, 0, bytesRead).toString('utf8').split('\n')) {
      if (!line.includes('"msg":"item"')) continue;
      try {
        const { time } = JSON.parse(line) as { time: unknown };
        if (typeof time === 'number') times.push(time);
      } catch {
        // The first line may have lost its begin, and the last is being written.
      }
    }
    return { times, cut: start > 0 };
  } finally {
    await file.close();
  }
}

/** Items a second from the begin of the last window of work to the last item; null where fewer than two are known. */
export function rateOf(tails: readonly Tail[]): number | null {
  const last = Math.max(...tails.map(({ times }) => times.at(-1) ?? -Infinity));
  const known = tails.map(({ times, cut }) => (cut ? (times[0] ?? -Infinity) : -Infinity));
  const begin = Math.max(last - WINDOW_MS, ...known);
  const recent = tails.flatMap(({ times }) => times.filter((time) => time >= begin));
  if (recent.length < 2) return null;
  return (recent.length - 1) / (Math.max(1, last - recent.reduce((a, b) => Math.min(a, b))) / 1000);
}

/**
 * Reads how far the run in a folder is.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT: where run.json is not there, or no run's
 */
export async function readStatus(out: string): Promise<FolderStatus> {
  const run: RunDescription = await readRunDescription(join(out, 'run.json'));
  const names = await list(join(out, 'shards'));
  const ending = `.${run.format}`;
  const stems = names
    .filter(
      (name) =>
        /^\d{6,}-[0-9a-f]{16}\./.test(name) && name.endsWith(ending) && !name.endsWith('.previews.tar'),
    )
    .map((name) => name.slice(0, -ending.length));
  let finished = 0;
  let failed = 0;
  const standing = new Set<string>();
  for (let at = 0; at < stems.length; at += AT_ONCE) {
    const some = stems.slice(at, at + AT_ONCE);
    const counts = await Promise.all(some.map((stem) => countItems(join(out, 'shards', `${stem}.jsonl`))));
    counts.forEach((count, i) => {
      const number = some[i]!.slice(0, some[i]!.indexOf('-'));
      if (!count || standing.has(number)) return; // of two, one is about to be removed
      standing.add(number);
      finished += count.items;
      failed += count.failed;
    });
  }
  const logs = await Promise.all(
    (await list(join(out, 'logs')))
      .filter((name) => name.endsWith('.jsonl'))
      .map((name) => tailOf(join(out, 'logs', name))),
  );
  const itemsPerSecond = rateOf(logs);
  const left = run.manifest.items - finished;
  const lastLog = Math.max(...logs.map(({ times }) => times.at(-1) ?? -Infinity));
  return {
    out,
    shards: { total: run.shards, finished: standing.size },
    items: { total: run.manifest.items, finished, failed },
    itemsPerSecond,
    secondsLeft: left === 0 ? 0 : itemsPerSecond === null ? null : left / itemsPerSecond,
    lastLog: Number.isFinite(lastLog) ? lastLog : null,
  };
}
