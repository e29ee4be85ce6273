/** JSON files that follow a zod schema, with one sentence for each field that is wrong. */
import { z } from 'zod';

import { AttentionBiasError, expected, visible } from '../errors.js';
import { readWhole } from './io.js';
import { decodeUtf8, parseJson, showJson, type Json } from './json.js';

const MAX_BYTES = 64 * 2 ** 20;
const MAX_SENTENCES = 3;

export const number = z.number({ error: 'a number' });
export const integer = z.int({ error: 'an integer' });
export const boolean = z.boolean({ error: 'true or false' });

/** An object with these fields and no others. */
export function fields<Shape extends z.ZodRawShape>(shape: Shape) {
  const known = `a known field (${Object.keys(shape).join(', ')})`;
  return z.strictObject(shape, { error: ({ code }) => (code === 'unrecognized_keys' ? known : 'an object') });
}

/** A field's path as people write it: bias[0].segments[1].weights; `whole` for the file itself. */
export function fieldPath(path: readonly PropertyKey[], whole: string): string {
  const part = (key: PropertyKey): string =>
    typeof key === 'number' ? `[${key}]` : `.${visible(String(key).slice(0, 80))}`;
  const text = path.map(part).join('');
  return text.replace(/^\./, '') || whole;
}

function valueAt(json: Json, path: readonly PropertyKey[]): Json | undefined {
  let value: Json | undefined = json;
  for (const key of path) value = (value as Record<PropertyKey, Json | undefined> | undefined)?.[key];
  return value;
}

function sentences(issues: readonly z.core.$ZodIssue[], json: Json, whole: string): string[] {
  return issues.flatMap((issue) => {
    const paths =
      issue.code === 'unrecognized_keys' ? issue.keys.map((key) => [...issue.path, key]) : [issue.path];
    return paths.map((path) => {
      const received = showJson(valueAt(json, path));
      return expected('ERR_FORMAT', issue.message, fieldPath(path, whole), received).message;
    });
  });
}

/**
 * Checks what a file holds; ERR_FORMAT, in one line that names the fields, for anything that the schema refuses.
 *
 * @param path names the file in errors
 * @param whole what the file is: the job, the frame
 */
export function checkWith<T>(schema: z.ZodType<T>, json: Json, path: string, whole: string): T {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const all = sentences(result.error.issues, json, whole);
  const more = all.length > MAX_SENTENCES ? `; and ${all.length - MAX_SENTENCES} more` : '';
  const words = all.slice(0, MAX_SENTENCES).join('; ') + more;
  throw new AttentionBiasError('ERR_FORMAT', `${path}: ${words}`);
}

/** Checks the text of a file as `checkWith` does; also ERR_FORMAT for what is no JSON. */
export function parseWith<T>(schema: z.ZodType<T>, text: string, path: string, whole: string): T {
  return checkWith(schema, parseJson(text, path), path, whole);
}

/** Reads a file of at most 64 MiB; ERR_IO, and ERR_FORMAT as `parseWith`. */
export async function readWith<T>(
  schema: z.ZodType<T>,
  path: string,
  whole: string,
  signal?: AbortSignal,
): Promise<T> {
  return parseWith(schema, decodeUtf8(await readWhole(path, MAX_BYTES, signal), path), path, whole);
}
