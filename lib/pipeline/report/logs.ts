/** What a run's logs say of its times. A log is cut off where its process was killed, so a line that is none is left out. */
import { createReadStream } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { z } from 'zod';

import { ioError, throwIfAborted } from '../../formats/io.js';

const itemLine = z.object({
  msg: z.literal('item'),
  time: z.number(),
  index: z.int().nonnegative(),
  ms: z.record(z.string(), z.number()),
});

export interface RunTimes {
  /** milliseconds a stage of each item, by its place in the manifest; of an item that was computed twice the later */
  readonly items: ReadonlyMap<number, Readonly<Record<string, number>>>;
  readonly processes: number;
  /** summed over the processes: milliseconds from the first item to the last, and the items after the first */
  readonly busyMs: number;
  readonly steps: number;
}

/** Reads logs/*.jsonl; a folder that is not there has no times. */
export async function readLogs(folder: string, signal?: AbortSignal): Promise<RunTimes> {
  const items = new Map<number, { time: number; ms: Record<string, number> }>();
  let [processes, busyMs, steps] = [0, 0, 0];
  const names = await readdir(folder).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw ioError('a folder that can be read', folder, cause);
  });
  for (const name of names.filter((name) => name.endsWith('.jsonl')).sort()) {
    const path = join(folder, name);
    let [first, last, count] = [0, 0, 0];
    const input = createReadStream(path, { encoding: 'utf8' });
    try {
      for await (const line of createInterface({ input, crlfDelay: Infinity })) {
        throwIfAborted(signal, path);
        let json: unknown;
        try {
          json = JSON.parse(line);
        } catch {
          continue;
        }
        const item = itemLine.safeParse(json);
        if (!item.success) continue;
        const { index, time, ms } = item.data;
        if (count++ === 0) first = time;
        last = time;
        if ((items.get(index)?.time ?? -Infinity) <= time) items.set(index, { time, ms });
      }
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).errno === undefined) throw cause;
      throw ioError('a file that can be read', path, cause);
    } finally {
      input.destroy();
    }
    if (count === 0) continue;
    ++processes;
    busyMs += Math.max(0, last - first);
    steps += count - 1;
  }
  return { items: new Map([...items].map(([index, { ms }]) => [index, ms])), processes, busyMs, steps };
}
