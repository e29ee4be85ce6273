/**
 * safetensors files: 8 bytes with the header's length N (little-endian), N bytes of JSON, then the tensors' bytes.
 *
 * A file is opened by reading and checking the header alone; then each tensor that is asked for is read by itself into
 * memory of its own, so a large file costs what is taken from it, and tensors may start at any byte. The checks are
 * those of the reference implementation (huggingface/safetensors): header at most 100 MB, no duplicate names, offsets that
 * match dtype and shape and cover the data without overlaps or gaps. A tensor of a dtype that is unknown here is listed
 * and can't be read; the rest of its file can.
 */
import type { FileHandle } from 'node:fs/promises';

import { expected, visible } from '../errors.js';
import type { DType } from '../tensor.js';
import { writeAtomically } from './atomic.js';
import {
  badFormat,
  bfloat16ToFloat32,
  elementCount,
  halfToFloat32,
  writableDtype,
  type HostTensor,
  type WritableTensor,
} from './host.js';
import { allocate, changedWhileRead, openForReading, readInto, statRegular, type Allocate } from './io.js';
import { decodeUtf8, parseJson, showJson, type Json } from './json.js';

const MAX_HEADER_BYTES = 100_000_000;
const METADATA = '__metadata__';

/** Bits of an element of each dtype of the format. */
const DTYPE_BITS: ReadonlyMap<string, number> = new Map([
  ['BOOL', 8],
  ['F4', 4],
  ['F6_E2M3', 6],
  ['F6_E3M2', 6],
  ['U8', 8],
  ['I8', 8],
  ['F8_E5M2', 8],
  ['F8_E4M3', 8],
  ['F8_E8M0', 8],
  ['F8_E4M3FNUZ', 8],
  ['F8_E5M2FNUZ', 8],
  ['I16', 16],
  ['U16', 16],
  ['F16', 16],
  ['BF16', 16],
  ['I32', 32],
  ['U32', 32],
  ['F32', 32],
  ['C64', 64],
  ['F64', 64],
  ['I64', 64],
  ['U64', 64],
]);

/** A tensor of a file, as its header has it. */
export interface SafetensorsEntry {
  /** the format's name: F32, BF16, BOOL, … */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** [begin, end) in bytes, from the end of the header */
  readonly offsets: readonly [number, number];
}

/** What the header of a safetensors file says. */
export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
  readonly metadata: ReadonlyMap<string, string>;
}

/** A file that is open for reading. */
export interface ReadOptions {
  signal?: AbortSignal | undefined;
  /** where the bytes are read to; default: new memory. What it holds before is overwritten. */
  allocate?: Allocate | undefined;
}

/** A safetensors file that is open: its header is checked, its tensors are read when they are asked for. */
export interface SafetensorsFile extends SafetensorsHeader, AsyncDisposable {
  readonly path: string;
  /** One tensor: F32, I32, U8 or BOOL (as uint8), BF16. ERR_VALUE for a name that isn't there, ERR_DTYPE for another dtype. */
  read(name: string, options?: ReadOptions): Promise<HostTensor>;
  /** One tensor as float32: F32, or F16, BF16, F64 converted. Errors as `read`. */
  readFloat32(name: string, options?: ReadOptions): Promise<HostTensor<'float32'>>;
  /** Closes the file; tensors that were read stay. */
  close(): Promise<void>;
}

function isObject(value: Json | undefined): value is Record<string, Json> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseMetadata(value: Json, path: string): Map<string, string> {
  if (!isObject(value)) throw badFormat('an object of strings', `${path} ${METADATA}`, showJson(value));
  return new Map(
    Object.entries(value).map(([key, text]) => {
      if (typeof text !== 'string')
        throw badFormat('a string', `${path} ${METADATA} ${JSON.stringify(key)}`, showJson(text));
      return [key, text];
    }),
  );
}

function parseEntry(value: Json, name: string, dataBytes: number): SafetensorsEntry {
  if (!isObject(value)) throw badFormat('an object', name, showJson(value));
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== 'string') throw badFormat('the name of a dtype', `${name} dtype`, showJson(dtype));
  const count = Array.isArray(shape) ? elementCount(shape) : undefined;
  if (count === undefined) {
    throw badFormat(
      'integers of at least 0, with a product of at most 2^53,',
      `${name} shape`,
      showJson(shape),
    );
  }
  const [begin, end] =
    Array.isArray(offsets) && offsets.length === 2 && elementCount([offsets[0]]) !== undefined
      ? (offsets as number[])
      : [];
  if (
    begin === undefined ||
    end === undefined ||
    !Number.isSafeInteger(end) ||
    begin > end ||
    end > dataBytes
  ) {
    const what = `[begin, end] with 0 ≤ begin ≤ end ≤ ${dataBytes}, the bytes after the header,`;
    throw badFormat(what, `${name} data_offsets`, showJson(offsets));
  }
  const bits = DTYPE_BITS.get(dtype);
  if (bits !== undefined && count * bits !== (end - begin) * 8) {
    const what = `${(count * bits) / 8} bytes of ${dtype} ${showJson(shape)}`;
    throw badFormat(what, `${name} data_offsets`, `${end - begin} bytes, ${showJson(offsets)}`);
  }
  return { dtype, shape: shape as number[], offsets: [begin, end] };
}

/** The tensors must follow one another from the header's end to the file's. */
function checkLayout(tensors: ReadonlyMap<string, SafetensorsEntry>, path: string, dataBytes: number): void {
  const order = [...tensors].sort(
    ([, a], [, b]) => a.offsets[0] - b.offsets[0] || a.offsets[1] - b.offsets[1],
  );
  let covered = 0;
  let previous = 'the header';
  for (const [name, { offsets }] of order) {
    if (offsets[0] !== covered) {
      const what = `offsets without ${offsets[0] < covered ? 'overlaps' : 'gaps'}`;
      const received = `[${offsets.join(', ')}] after ${previous}, which ends at ${covered}`;
      throw badFormat(what, `${path} ${JSON.stringify(name)} data_offsets`, received);
    }
    covered = offsets[1];
    previous = JSON.stringify(name);
  }
  if (covered !== dataBytes) throw badFormat(`${covered} bytes of tensors`, path, `${dataBytes}`);
}

/** Checks a header. `dataBytes` is what follows it in the file; `path` names the file in errors (ERR_FORMAT). */
export function parseSafetensorsHeader(
  bytes: Uint8Array | ArrayBuffer,
  dataBytes: number,
  path: string,
): SafetensorsHeader {
  const text = decodeUtf8(bytes, `the header of ${path}`);
  const header = parseJson(text, `the header of ${path}`);
  if (!isObject(header)) throw badFormat('a JSON object', `the header of ${path}`, showJson(header));
  const tensors = new Map<string, SafetensorsEntry>();
  let metadata = new Map<string, string>();
  for (const [name, value] of Object.entries(header)) {
    if (name === METADATA) metadata = parseMetadata(value, path);
    else tensors.set(name, parseEntry(value, `${path} ${JSON.stringify(name)}`, dataBytes));
  }
  checkLayout(tensors, path, dataBytes);
  return { tensors, metadata };
}

/** The header of an open file of `size` bytes, and where the data starts. */
async function readHeader(
  file: FileHandle,
  path: string,
  size: number,
): Promise<[SafetensorsHeader, number]> {
  if (size < 8) throw badFormat('at least 8 bytes', path, `${size}`);
  const prefix = new ArrayBuffer(8);
  if ((await readInto(file, path, prefix, 0)) < 8) throw changedWhileRead(path);
  const length = new DataView(prefix).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES || 8n + length > size) {
    const what = `a header of at most ${MAX_HEADER_BYTES} bytes that ends within the file's ${size}`;
    throw badFormat(what, path, `a header length of ${length}`);
  }
  const bytes = allocate(Number(length), `the header of ${path}`);
  if ((await readInto(file, path, bytes, 8)) < bytes.byteLength) throw changedWhileRead(path);
  const dataStart = 8 + bytes.byteLength;
  return [parseSafetensorsHeader(bytes, size - dataStart, path), dataStart];
}

/**
 * Opens a file and checks its header. The tensors' bytes are read when they are asked for; close the file afterwards,
 * or declare it with `await using`.
 *
 * @throws AttentionBiasError ERR_IO (can't be opened or read, or is not a regular file), ERR_FORMAT (contents)
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = await openForReading(path);
  try {
    const opened = await statRegular(file, path);
    const [header, dataStart] = await readHeader(file, path, Number(opened.size));

    const readBytes = async (
      entry: SafetensorsEntry,
      name: string,
      { signal, allocate: take = allocate }: ReadOptions,
    ): Promise<ArrayBuffer> => {
      const [begin, end] = entry.offsets;
      const bytes = take(end - begin, `${path} ${JSON.stringify(name)}`);
      const read = await readInto(file, path, bytes, dataStart + begin, signal);
      const now = await statRegular(file, path);
      if (read < bytes.byteLength || now.size !== opened.size || now.mtimeNs !== opened.mtimeNs) {
        throw changedWhileRead(path);
      }
      return bytes;
    };
    const entryOf = (name: string): SafetensorsEntry => {
      const entry = header.tensors.get(name);
      if (!entry) throw expected('ERR_VALUE', `a tensor of ${path}`, 'name', JSON.stringify(name));
      return entry;
    };
    const dtypeError = (what: string, name: string, entry: SafetensorsEntry) =>
      expected('ERR_DTYPE', what, `${path} ${JSON.stringify(name)}`, visible(entry.dtype.slice(0, 80)));

    const read: SafetensorsFile['read'] = async (name, options = {}) => {
      const entry = entryOf(name);
      const { shape } = entry;
      const bytes = () => readBytes(entry, name, options);
      switch (entry.dtype) {
        case 'F32':
          return { data: new Float32Array(await bytes()), shape, dtype: 'float32' };
        case 'I32':
          return { data: new Int32Array(await bytes()), shape, dtype: 'int32' };
        case 'U8':
        case 'BOOL':
          return { data: new Uint8Array(await bytes()), shape, dtype: 'uint8' };
        case 'BF16':
          return { data: new Uint16Array(await bytes()), shape, dtype: 'bfloat16' };
        default:
          throw dtypeError('F32, I32, U8, BOOL or BF16', name, entry);
      }
    };
    const readFloat32: SafetensorsFile['readFloat32'] = async (name, options = {}) => {
      const entry = entryOf(name);
      const bytes = () => readBytes(entry, name, options);
      const host = (data: Float32Array): HostTensor<'float32'> => ({
        data,
        shape: entry.shape,
        dtype: 'float32',
      });
      switch (entry.dtype) {
        case 'F32':
          return host(new Float32Array(await bytes()));
        case 'F16':
          return host(halfToFloat32(new Uint16Array(await bytes())));
        case 'BF16':
          return host(bfloat16ToFloat32(new Uint16Array(await bytes())));
        case 'F64':
          return host(new Float32Array(new Float64Array(await bytes())));
        default:
          throw dtypeError('F32, F16, BF16 or F64', name, entry);
      }
    };
    const close = () => file.close();
    return { path, ...header, read, readFloat32, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await file.close().catch(() => undefined);
    throw error;
  }
}

const FORMAT_DTYPE: Record<DType, string> = {
  float32: 'F32',
  int32: 'I32',
  uint8: 'U8',
  bfloat16: 'BF16',
};

/** A tensor to be written: its name, the format's name of its dtype, its shape and its bytes. */
export type HeaderEntry = readonly [
  name: string,
  dtype: string,
  shape: readonly number[],
  byteLength: number,
];

/**
 * The bytes before the tensors' (the header's length, the header, and spaces up to a multiple of 8), and the order in which the
 * tensors follow: wider elements first, as in the reference implementation, so that all of them are aligned.
 *
 * @throws AttentionBiasError ERR_VALUE for a tensor named __metadata__
 */
export function safetensorsHeader(
  entries: readonly HeaderEntry[],
  metadata?: Readonly<Record<string, string>>,
): { header: Uint8Array<ArrayBuffer>; order: number[] } {
  const fields: [string, unknown][] = metadata ? [[METADATA, metadata]] : [];
  const width = (i: number): number => DTYPE_BITS.get(entries[i]![1]) ?? 0;
  const order = entries.map((_, i) => i).sort((a, b) => width(b) - width(a));
  let offset = 0;
  for (const i of order) {
    const [name, dtype, shape, byteLength] = entries[i]!;
    if (name === METADATA) throw expected('ERR_VALUE', 'another name', 'a tensor', METADATA);
    fields.push([name, { dtype, shape, data_offsets: [offset, offset + byteLength] }]);
    offset += byteLength;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(fields)));
  const length = Math.ceil(json.length / 8) * 8; // padded with spaces: the data starts at a multiple of 8
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(json, 8);
  return { header, order };
}

/**
 * Writes tensors (float32, int32, uint8, bfloat16) under their names, whole or not at all. The tensors' memory goes to the file
 * without a copy: don't change it before the promise settles.
 *
 * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE, ERR_VALUE (a tensor named __metadata__), ERR_IO, ERR_ABORTED
 */
export async function writeSafetensors(
  path: string,
  tensors: Readonly<Record<string, WritableTensor>>,
  options: { metadata?: Readonly<Record<string, string>>; signal?: AbortSignal | undefined } = {},
): Promise<void> {
  const list = Object.entries(tensors);
  const entries = list.map(([name, tensor]): HeaderEntry => {
    const dtype = FORMAT_DTYPE[writableDtype(tensor, JSON.stringify(name))];
    return [name, dtype, tensor.shape, tensor.data.byteLength];
  });
  const { header, order } = safetensorsHeader(entries, options.metadata);
  await writeAtomically(path, [header, ...order.map((i) => list[i]![1].data)], options);
}
