/** The files beside shards: what a run is (run.json), and a line an item (shards/….jsonl). Deterministic, but for logs. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { z } from 'zod';

import { ioError } from '../formats/io.js';
import { parseJson } from '../formats/json.js';
import { boolean, checkWith, integer, number, readWith } from '../formats/schema.js';

export const shardFormats = ['tar', 'safetensors', 'npz'] as const;
/** File formats of shards: WebDataset tar, safetensors or npz. */
export type ShardFormat = (typeof shardFormats)[number];

export const shardDtypes = ['f32', 'f16', 'bf16'] as const;
/** What float32 tensors become in a shard, to the nearest, ties to even. */
export type ShardDtype = (typeof shardDtypes)[number];

const text = z.string({ error: 'a text' });

const runSchema = z.strictObject(
  {
    version: text,
    manifest: z.strictObject({ sha256: text, items: integer }),
    shardSize: integer,
    shards: integer,
    format: z.enum(shardFormats),
    dtype: z.enum(shardDtypes),
    tensors: z.array(text).nullable(),
    previews: boolean,
    precision: z.enum(['f32', 'tf32', 'bf16']),
    frame: z.strictObject({
      queries: integer,
      seed: integer,
      strength: number,
      window: boolean,
      features: text.nullable(),
      router: text.nullable(),
    }),
  },
  { error: 'what a run.json holds' },
);

/** What run.json holds: everything that decides what a run's shards are. */
export type RunDescription = z.infer<typeof runSchema>;

/** Reads run.json; ERR_IO, ERR_FORMAT. */
export async function readRunDescription(path: string): Promise<RunDescription> {
  return readWith(runSchema, path, 'the run');
}

/** A line of a shard's .jsonl. */
export type ItemLine = {
  readonly key: string;
  /** place in the manifest, from 0 */
  readonly index: number;
  readonly kind: 'frame' | 'job';
  /** FRAME.json or the job file, relative to the manifest's folder */
  readonly source: string;
} & (
  | { readonly ok: true; readonly summary: Readonly<Record<string, unknown>> }
  | {
      readonly ok: false;
      /** what failed: read, prepare, attention, … */
      readonly stage: string;
      readonly error: { readonly code: string; readonly message: string };
    }
);

/** The fields of a line in their one order, and its newline. */
export function formatItemLine(line: ItemLine): string {
  const { key, index, kind, source } = line;
  const rest = line.ok
    ? { ok: true, summary: line.summary }
    : { ok: false, stage: line.stage, error: { code: line.error.code, message: line.error.message } };
  return `${JSON.stringify({ key, index, kind, source, ...rest })}\n`;
}

const itemSchema: z.ZodType<ItemLine> = z.intersection(
  z.object({ key: text, index: integer, kind: z.enum(['frame', 'job']), source: text }),
  z.discriminatedUnion('ok', [
    z.object({ ok: z.literal(true), summary: z.record(z.string(), z.unknown()) }),
    z.object({ ok: z.literal(false), stage: text, error: z.object({ code: text, message: text }) }),
  ]),
);

/** The lines of a shard's .jsonl, in the manifest's order. ERR_IO, ERR_FORMAT. */
export async function* readItemLines(path: string): AsyncGenerator<ItemLine> {
  const stream = createReadStream(path);
  let number = 0;
  try {
    for await (const line of createInterface({ input: stream, crlfDelay: Infinity })) {
      const where = `${path}:${++number}`;
      yield checkWith(itemSchema, parseJson(line, where), where, 'the item');
    }
  } catch (cause) {
    if (cause instanceof Error && 'syscall' in cause) throw ioError('a file that can be read', path, cause);
    throw cause;
  } finally {
    stream.destroy();
  }
}

/** How many items a shard's .jsonl has, and how many of them failed; undefined where there is no such file. ERR_IO. */
export async function countItems(path: string): Promise<{ items: number; failed: number } | undefined> {
  let items = 0;
  let failed = 0;
  try {
    for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
      ++items;
      // Quotes within a JSON string have a backslash before them, so this can only be the field.
      if (line.includes(',"ok":false,"stage":')) ++failed;
    }
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw ioError('a file that can be read', path, cause);
  }
  return { items, failed };
}
