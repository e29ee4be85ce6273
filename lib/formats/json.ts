/**
 * Strict JSON. JSON.parse keeps the last of two fields of one name without a word, turns 1e999 into Infinity, and
 * doesn't always say where an error is; here each of these is an error with its line and column.
 */
import { expected, type AttentionBiasError } from '../errors.js';

export type Json = null | boolean | number | string | Json[] | { [field: string]: Json };

const MAX_DEPTH = 100;

/** Text of UTF-8 bytes; ERR_FORMAT, naming `name`, for anything else. A byte order mark is dropped. */
export function decodeUtf8(bytes: Uint8Array | ArrayBuffer, name: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw expected('ERR_FORMAT', 'JSON in UTF-8', name, 'bytes that are not UTF-8');
  }
}

/** A value as a message shows it. */
export function showJson(value: Json | undefined): string {
  const text = value === undefined ? 'nothing' : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** Parses RFC 8259 JSON of at most 100 levels; ERR_FORMAT, naming `name`, for anything else. */
export function parseJson(text: string, name: string): Json {
  let at = 0;
  let depth = 0;

  function fail(what: string, received: string): AttentionBiasError {
    const before = text.slice(0, at).split('\n');
    const column = (before.at(-1) ?? '').length + 1;
    return expected('ERR_FORMAT', what, name, `${received} at line ${before.length}, column ${column}`);
  }

  function unexpected(): AttentionBiasError {
    if (at >= text.length) return fail('JSON', 'its end');
    const word = /^[\w.+-]{1,20}/.exec(text.slice(at, at + 20));
    return fail('JSON', JSON.stringify(word ? word[0] : String.fromCodePoint(text.codePointAt(at) ?? 0)));
  }

  function skipSpace(): void {
    for (;;) {
      const c = text.charCodeAt(at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
      ++at;
    }
  }

  function take(character: string): boolean {
    skipSpace();
    if (text[at] !== character) return false;
    ++at;
    return true;
  }

  /** The token [at, end), which JSON.parse checks and decodes. */
  function token(end: number): Json {
    let value: Json;
    try {
      value = JSON.parse(text.slice(at, end)) as Json;
    } catch {
      throw unexpected();
    }
    if (typeof value === 'number' && !Number.isFinite(value)) {
      throw fail('JSON with finite numbers', text.slice(at, Math.min(end, at + 20)));
    }
    at = end;
    return value;
  }

  function string(): string {
    skipSpace();
    if (text[at] !== '"') throw unexpected();
    let end = at + 1;
    while (end < text.length && text[end] !== '"') end += text[end] === '\\' ? 2 : 1;
    return token(Math.min(end + 1, text.length)) as string; // it starts with a quote
  }

  function object(): Json {
    const fields = new Map<string, Json>();
    if (take('}')) return {};
    do {
      skipSpace();
      const start = at;
      const field = string();
      if (fields.has(field)) {
        at = start;
        throw fail('JSON with each field once', `${JSON.stringify(field)} a second time`);
      }
      if (!take(':')) throw unexpected();
      fields.set(field, value());
    } while (take(','));
    if (!take('}')) throw unexpected();
    return Object.fromEntries(fields); // makes "__proto__" a field like any other
  }

  function array(): Json {
    const items: Json[] = [];
    if (take(']')) return items;
    do items.push(value());
    while (take(','));
    if (!take(']')) throw unexpected();
    return items;
  }

  function value(): Json {
    if (++depth > MAX_DEPTH) throw fail(`JSON of at most ${MAX_DEPTH} levels`, 'more');
    skipSpace();
    let result: Json;
    if (take('{')) result = object();
    else if (take('[')) result = array();
    else if (text[at] === '"') result = string();
    else {
      let end = at;
      while (end < text.length && /[\w.+-]/.test(text.charAt(end))) ++end;
      result = token(end);
    }
    --depth;
    return result;
  }

  const result = value();
  skipSpace();
  if (at < text.length) throw unexpected();
  return result;
}
