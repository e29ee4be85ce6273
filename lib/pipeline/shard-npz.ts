/**
 * Shards as NumPy's np.load reads them: a zip archive, stored, with `<key>/<tensor>.npy` for each tensor. Written in one pass;
 * beyond 4 GiB or 65,534 tensors with the fields of zip64, which NumPy reads too.
 */
import { crc32 } from 'node:zlib';

import { expected } from '../errors.js';
import { elementsOf, npyOf } from './elements.js';
import type { OpenShardWriter } from './shard-writer.js';
import type { StagedFile } from './staged.js';

const MAX_32 = 0xffffffff;
const MAX_16 = 0xffff;
const VERSION = 20;
const VERSION_ZIP64 = 45;
const UTF8_NAMES = 0x0800;
/** 1 January 1980, the first day that a zip can hold */
const DATE = (1 << 5) | 1;

/** A field's value and its width in bytes. */
type Field = readonly [value: number, width: 2 | 4 | 8];

function record(...fields: Field[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(fields.reduce((sum, [, width]) => sum + width, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [value, width] of fields) {
    if (width === 2) view.setUint16(at, value, true);
    else if (width === 4) view.setUint32(at, value, true);
    else view.setBigUint64(at, BigInt(value), true);
    at += width;
  }
  return bytes;
}

interface ZipEntry {
  readonly name: Uint8Array;
  readonly crc: number;
  readonly size: number;
  readonly offset: number;
}

/** The zip64 field with the values that have no room where they belong. */
function extraField(values: readonly number[]): Uint8Array<ArrayBuffer> {
  if (values.length === 0) return new Uint8Array(0);
  return record([1, 2], [8 * values.length, 2], ...values.map((value): Field => [value, 8]));
}

const saturated = (value: number, most: number): number => Math.min(value, most);

/** What the local header and the directory say alike. */
function common({ name, crc, size }: ZipEntry, version: number, extra: Uint8Array): Field[] {
  const stored = saturated(size, MAX_32);
  const lengths: Field[] = [
    [name.length, 2],
    [extra.length, 2],
  ];
  return [
    [version, 2],
    [UTF8_NAMES, 2],
    [0, 2],
    [0, 2],
    [DATE, 2],
    [crc, 4],
    [stored, 4],
    [stored, 4],
    ...lengths,
  ];
}

/** Writes a zip archive of stored files to `file`. Errors are the file's. */
export function openZip(file: Pick<StagedFile, 'write' | 'size'>): {
  add(name: string, parts: readonly Uint8Array[]): Promise<void>;
  finish(): Promise<void>;
} {
  const entries: ZipEntry[] = [];
  return {
    async add(name, parts) {
      const bytes = new TextEncoder().encode(name);
      if (bytes.length > MAX_16)
        throw expected('ERR_VALUE', `at most ${MAX_16} bytes`, 'a tensor name', `${bytes.length}`);
      const size = parts.reduce((sum, { length }) => sum + length, 0);
      const crc = parts.reduce((sum, part) => crc32(part, sum), 0);
      const entry = { name: bytes, crc, size, offset: file.size() };
      const extra = extraField(size >= MAX_32 ? [size, size] : []);
      const version = extra.length > 0 ? VERSION_ZIP64 : VERSION;
      entries.push(entry);
      await file.write(record([0x04034b50, 4], ...common(entry, version, extra)));
      for (const part of [bytes, extra, ...parts]) await file.write(part);
    },
    async finish() {
      const start = file.size();
      for (const entry of entries) {
        const { name, size, offset } = entry;
        const extra = extraField([
          ...(size >= MAX_32 ? [size, size] : []),
          ...(offset >= MAX_32 ? [offset] : []),
        ]);
        const version = extra.length > 0 ? VERSION_ZIP64 : VERSION;
        const place: Field[] = [
          [0, 2],
          [0, 2],
          [0, 2],
          [0, 4],
          [saturated(offset, MAX_32), 4],
        ];
        await file.write(record([0x02014b50, 4], [version, 2], ...common(entry, version, extra), ...place));
        await file.write(name);
        await file.write(extra);
      }
      const end = file.size();
      const length = end - start;
      const count = entries.length;
      if (count >= MAX_16 || length >= MAX_32 || start >= MAX_32) {
        const counts: Field[] = [
          [count, 8],
          [count, 8],
          [length, 8],
          [start, 8],
        ];
        const versions: Field[] = [
          [VERSION_ZIP64, 2],
          [VERSION_ZIP64, 2],
        ];
        await file.write(record([0x06064b50, 4], [44, 8], ...versions, [0, 4], [0, 4], ...counts));
        await file.write(record([0x07064b50, 4], [0, 4], [end, 8], [1, 4]));
      }
      const some = saturated(count, MAX_16);
      const place: Field[] = [
        [saturated(length, MAX_32), 4],
        [saturated(start, MAX_32), 4],
      ];
      await file.write(record([0x06054b50, 4], [0, 2], [0, 2], [some, 2], [some, 2], ...place, [0, 2]));
    },
  };
}

export const openNpzShard: OpenShardWriter = ({ file, dtype }) => {
  const zip = openZip(file);
  return {
    async add({ key, tensors }) {
      for (const [name, tensor] of Object.entries(tensors))
        await zip.add(`${key}/${name}.npy`, npyOf(elementsOf(tensor, dtype)));
    },
    finish: () => zip.finish(),
    dispose: () => Promise.resolve(),
  };
};
