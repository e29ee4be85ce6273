/**
 * NumPy's .npy and .npz files. npyjs makes and reads the arrays and fflate the archives; neither checks what it is
 * given, so every header, size and name is checked here first.
 */
import { crc32 } from 'node:zlib';
import { unzipSync, zipSync, type Zippable } from 'fflate';

import { AttentionBiasError, expected } from '../errors.js';
import type { DType, TypedArray } from '../tensor.js';
import { writeAtomically } from './atomic.js';
import { badFormat, elementCount, writableDtype, type HostTensor, type WritableTensor } from './host.js';
import { readWhole } from './io.js';

// npyjs publishes types for ES modules only.
// eslint-disable-next-line @typescript-eslint/no-require-imports
const npyjs = require('npyjs') as {
  parse(buffer: ArrayBuffer): { data: unknown };
  dump(data: TypedArray, shape: number[], options: { dtype: 'f4' | 'i4' | 'u1' }): ArrayBuffer;
};

/** What this reader takes. Half and double precision become float32, to the nearest; bool becomes uint8. */
const DESCRIPTORS: ReadonlyMap<string, { bytes: number; dtype: DType }> = new Map([
  ['<f4', { bytes: 4, dtype: 'float32' }],
  ['<f2', { bytes: 2, dtype: 'float32' }],
  ['<f8', { bytes: 8, dtype: 'float32' }],
  ['<i4', { bytes: 4, dtype: 'int32' }],
  ['|u1', { bytes: 1, dtype: 'uint8' }],
  ['|b1', { bytes: 1, dtype: 'uint8' }],
]);
/** Deflate can't make anything smaller than this by more; an archive that says so would only fill the memory. */
const MAX_DEFLATE_RATIO = 1040;
const MAX_ZIP_BYTES = 2 ** 32 - 1;
const MAX_NAME_BYTES = 2 ** 16 - 16;

interface NpyHeader {
  descriptor: string;
  fortranOrder: boolean;
  shape: number[];
  dataStart: number;
}

/** The header's dict: exactly the three fields that NumPy writes, in any order. */
function parseDict(text: string, name: string): Omit<NpyHeader, 'dataStart'> {
  const bad = () =>
    badFormat("a header with 'descr', 'fortran_order' and 'shape'", name, JSON.stringify(text.slice(0, 120)));
  const inside = /^\{([^{}]*)\}\s*$/.exec(text)?.[1];
  if (inside === undefined) throw bad();
  const field =
    /\s*'(descr|fortran_order|shape)'\s*:\s*('[^']*'|True|False|\([\d,\s]*\)|\[[^\]]*\])\s*(?:,|$)/y;
  const fields = new Map<string, string>();
  while (field.lastIndex < inside.trimEnd().length) {
    const match = field.exec(inside);
    const [, key, value] = match ?? [];
    if (key === undefined || value === undefined || fields.has(key)) throw bad();
    fields.set(key, value);
  }
  const descriptor = fields.get('descr');
  const order = fields.get('fortran_order');
  const tuple = fields.get('shape');
  if (descriptor === undefined || (order !== 'True' && order !== 'False') || tuple === undefined) throw bad();
  // (), (n,), (n, m) and (n, m,), but not (n), which is no tuple.
  if (!/^\(\s*(?:|(?:\d+\s*,\s*)+|(?:\d+\s*,\s*)+\d+\s*)\)$/.test(tuple)) throw bad();
  const shape = (tuple.match(/\d+/g) ?? []).map(Number);
  return { descriptor: descriptor.replace(/^'|'$/g, ''), fortranOrder: order === 'True', shape };
}

function parseHeader(bytes: Uint8Array, name: string): NpyHeader {
  const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]; // \x93NUMPY
  if (bytes.length < 10 || magic.some((byte, i) => bytes[i] !== byte)) {
    throw badFormat(
      'a .npy file, which starts with \\x93NUMPY,',
      name,
      bytes.length < 10 ? `${bytes.length} bytes` : 'another start',
    );
  }
  const version = bytes[6] ?? 0;
  if (version < 1 || version > 3 || bytes[7] !== 0) {
    throw badFormat('.npy version 1.0, 2.0 or 3.0', name, `${version}.${bytes[7] ?? 0}`);
  }
  const lengthBytes = version === 1 ? 2 : 4;
  const headerStart = 8 + lengthBytes;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < headerStart) throw badFormat(`at least ${headerStart} bytes`, name, `${bytes.length}`);
  const length = version === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  const dataStart = headerStart + length;
  if (dataStart > bytes.length) {
    throw badFormat(`a header that ends within the ${bytes.length} bytes`, name, `a header of ${length}`);
  }
  const text = new TextDecoder('latin1').decode(bytes.subarray(headerStart, dataStart));
  return { ...parseDict(text, name), dataStart };
}

/** A copy in row-major order of an array that is in column-major order. */
function toRowMajor<T extends TypedArray>(source: T, shape: readonly number[]): T {
  const target = source.slice() as T;
  const index = shape.map(() => 0);
  const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((product, size) => product * size, 1));
  let from = 0;
  for (let to = 0; to < target.length; ++to) {
    target[to] = source[from] ?? 0;
    for (let axis = shape.length - 1; axis >= 0; --axis) {
      const stride = strides[axis] ?? 0;
      from += stride;
      index[axis] = (index[axis] ?? 0) + 1;
      if (index[axis] !== shape[axis]) break;
      from -= stride * (shape[axis] ?? 0);
      index[axis] = 0;
    }
  }
  return target;
}

function toTypedArray(data: unknown, dtype: DType): TypedArray {
  if (dtype === 'int32') return data as Int32Array;
  if (dtype === 'uint8')
    return Array.isArray(data) ? Uint8Array.from(data as number[]) : (data as Uint8Array);
  return data instanceof Float64Array ? new Float32Array(data) : (data as Float32Array);
}

/**
 * The array in the bytes of a .npy file: f4, i4, u1 as they are, f2 and f8 as float32, bool as uint8, column-major
 * order made row-major. Shares memory with `buffer` where nothing has to change.
 *
 * @throws AttentionBiasError ERR_FORMAT (not .npy, truncated, too long), ERR_DTYPE (another dtype, big-endian)
 */
export function parseNpy(buffer: ArrayBuffer, name: string): HostTensor {
  const { descriptor, fortranOrder, shape, dataStart } = parseHeader(new Uint8Array(buffer), name);
  const element = DESCRIPTORS.get(descriptor);
  if (!element) {
    const what = `a dtype of ${[...DESCRIPTORS.keys()].join(', ')}`;
    throw expected('ERR_DTYPE', what, name, JSON.stringify(descriptor.slice(0, 60)));
  }
  const { bytes, dtype } = element;
  const count = elementCount(shape);
  if (count === undefined) throw badFormat('a shape of at most 2^53 elements', name, `(${shape.join(', ')})`);
  const found = buffer.byteLength - dataStart;
  if (found !== count * bytes) {
    throw badFormat(`${count * bytes} bytes of ${descriptor} (${shape.join(', ')})`, name, `${found}`);
  }
  if (dataStart % bytes !== 0)
    throw badFormat(`data that starts at a multiple of ${bytes}`, name, `${dataStart}`);
  const data = toTypedArray(npyjs.parse(buffer).data, dtype);
  const ordered = fortranOrder && shape.length > 1 ? toRowMajor(data, shape) : data;
  return { data: ordered, shape, dtype };
}

/** The bytes before the elements of a .npy file of version 1.0, as NumPy writes them: the data starts at a multiple of 64. */
export function npyHeader(
  descriptor: '<f4' | '<f2' | '<i4' | '|u1',
  shape: readonly number[],
): Uint8Array<ArrayBuffer> {
  const tuple = shape.length === 1 ? `(${shape.join('')},)` : `(${shape.join(', ')})`;
  const dict = `{'descr': '${descriptor}', 'fortran_order': False, 'shape': ${tuple}, }`;
  const size = Math.ceil((10 + dict.length + 1) / 64) * 64;
  const bytes = new Uint8Array(size).fill(0x20);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]); // \x93NUMPY
  new DataView(bytes.buffer).setUint16(8, size - 10, true);
  bytes.set(new TextEncoder().encode(dict), 10);
  bytes[size - 1] = 0x0a;
  return bytes;
}

/** The bytes of a .npy file. ERR_DTYPE, ERR_SHAPE for what is no float32, int32 or uint8 tensor of that shape. */
function npyBytes(tensor: WritableTensor, name: string): Uint8Array {
  // Said outright: npyjs tells dtypes by instanceof, which fails for arrays of another realm.
  const dtype = ({ float32: 'f4', int32: 'i4', uint8: 'u1', bfloat16: undefined } as const)[
    writableDtype(tensor, name)
  ];
  if (dtype === undefined)
    throw expected('ERR_DTYPE', 'float32, int32 or uint8', name, 'bfloat16, which .npy lacks');
  return new Uint8Array(npyjs.dump(tensor.data, [...tensor.shape], { dtype }));
}

/** Reads a .npy file as `parseNpy` does; also ERR_IO. */
export async function readNpy(
  path: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<HostTensor> {
  return parseNpy(await readWhole(path, Number.MAX_SAFE_INTEGER, options.signal), path);
}

/** Writes a .npy file, whole or not at all. ERR_SHAPE, ERR_DTYPE, ERR_IO, ERR_ABORTED. */
export async function writeNpy(
  path: string,
  tensor: WritableTensor,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<void> {
  await writeAtomically(path, [npyBytes(tensor, path)], options);
}

/** The CRC-32 of each entry by its name, from the archive's central directory; fflate, which reads it too, checks none. */
function checksums(archive: Uint8Array): Map<string, number> {
  const view = new DataView(archive.buffer, archive.byteOffset, archive.byteLength);
  const found = new Map<string, number>();
  let end = archive.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) --end;
  if (end < 0) return found;
  let at = view.getUint32(end + 16, true);
  while (at + 46 <= end && view.getUint32(at, true) === 0x02014b50) {
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true)) as [
      number,
      number,
      number,
    ];
    found.set(
      Buffer.from(archive.subarray(at + 46, at + 46 + name)).toString(),
      view.getUint32(at + 16, true),
    );
    at += 46 + name + extra + comment;
  }
  return found;
}

interface NpzOptions {
  /** names of the arrays to read; the others need not even be arrays that this reader takes */
  readonly only?: ReadonlySet<string> | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Reads a .npz archive as `readNpz` does: the names of all its arrays, and those that are asked for. */
export async function openNpz(
  path: string,
  { only, signal }: NpzOptions = {},
): Promise<{ names: string[]; arrays: Map<string, HostTensor> }> {
  const archive = new Uint8Array(await readWhole(path, MAX_ZIP_BYTES, signal));
  const names = new Set<string>();
  let files: Record<string, Uint8Array>;
  try {
    files = unzipSync(archive, {
      filter: ({ name: file, size, originalSize }) => {
        if (!file.endsWith('.npy')) return false;
        const name = file.slice(0, -'.npy'.length);
        if (names.has(name)) throw badFormat('each array once', path, `${JSON.stringify(file)} twice`);
        names.add(name);
        if (only && !only.has(name)) return false;
        if (size > archive.length || originalSize > size * MAX_DEFLATE_RATIO + 64) {
          throw badFormat(
            'sizes that the archive can hold',
            `${path} ${JSON.stringify(file)}`,
            `${size} for ${originalSize} bytes`,
          );
        }
        return true;
      },
    });
  } catch (cause) {
    if (cause instanceof AttentionBiasError) throw cause;
    const error = badFormat('a .npz archive', path, cause instanceof Error ? cause.message : String(cause));
    error.cause = cause;
    throw error;
  }
  const expectedSums = checksums(archive);
  const arrays = Object.entries(files).map(([file, bytes]): [string, HostTensor] => {
    const sum = crc32(bytes);
    const wanted = expectedSums.get(file);
    if (sum !== wanted) {
      throw badFormat(
        `contents of CRC-32 ${wanted}`,
        `${path} ${JSON.stringify(file)}`,
        `${sum}: a damaged archive`,
      );
    }
    const name = file.slice(0, -'.npy'.length);
    // A buffer of its own: npyjs reads to the end of what it gets.
    return [name, parseNpy(new Uint8Array(bytes).buffer, `${path} ${JSON.stringify(name)}`)];
  });
  return { names: [...names], arrays: new Map(arrays) };
}

/**
 * Reads the arrays of a .npz archive (stored or deflated, up to 4 GiB) by their names; entries that don't end in .npy
 * are left out. Errors as `readNpy`.
 */
export async function readNpz(
  path: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Map<string, HostTensor>> {
  return (await openNpz(path, options)).arrays;
}

/** Writes a .npz archive, stored, whole or not at all; the same arrays give the same bytes. Errors as `writeNpy`. */
export async function writeNpz(
  path: string,
  tensors: Readonly<Record<string, WritableTensor>>,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<void> {
  const files: Zippable = {};
  let total = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    if (Buffer.byteLength(name) > MAX_NAME_BYTES) {
      throw expected(
        'ERR_VALUE',
        `names of at most ${MAX_NAME_BYTES} bytes`,
        path,
        `${name.length} characters`,
      );
    }
    total += tensor.data.byteLength + 2 * name.length + 512;
    if (total > MAX_ZIP_BYTES)
      throw expected('ERR_VALUE', 'tensors of at most 4 GiB together', path, `${total} bytes`);
    // The first moment that a zip can hold.
    files[`${name}.npy`] = [
      npyBytes(tensor, JSON.stringify(name)),
      { level: 0, mtime: new Date(1980, 0, 1) },
    ];
  }
  await writeAtomically(path, [zipSync(files)], options);
}
