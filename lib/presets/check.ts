/** Checks of arguments, and tensors in this process's memory, that the presets share. */
import { expected } from '../errors.js';
import type { TensorLike, TypedArray } from '../tensor.js';

/** A float32 tensor as the presets make it; goes wherever an operation or a term takes a `TensorLike`. */
export interface FloatTensor {
  readonly data: Float32Array<ArrayBuffer>;
  readonly shape: readonly number[];
}

/** A typed array with its shape: a `Tensor` in host memory is one. */
export interface HostArray<A extends TypedArray = TypedArray> {
  readonly data: A;
  readonly shape: readonly number[];
}

/** [height, width] or [rows, columns] */
export type Size = readonly [number, number];

const show = (value: unknown): string => {
  if (typeof value === 'string') return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(show).join(', ')}]`;
  if (typeof value === 'object' && value !== null) return 'an object';
  if (typeof value === 'function') return 'a function';
  return String(value);
};

export function requireInteger(value: unknown, least: number, name: string, most = 2 ** 31 - 1): number {
  if (Number.isInteger(value) && (value as number) >= least && (value as number) <= most)
    return value as number;
  const what =
    most === 2 ** 31 - 1 ? `an integer of at least ${least}` : `an integer from ${least} to ${most}`;
  throw expected('ERR_VALUE', what, name, show(value));
}

export function requireOneOf<T extends string>(value: unknown, choices: readonly T[], name: string): T {
  if (choices.includes(value as T)) return value as T;
  throw expected('ERR_VALUE', `one of ${choices.map(show).join(', ')}`, name, show(value));
}

export function requireArray(value: unknown, name: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw expected('ERR_VALUE', 'an array', name, show(value));
}

/** A list of `length` integers of at least `least`: a window, a grid, a resolution. */
export function requireIntegers(value: unknown, length: number, least: number, name: string): number[] {
  const list = requireArray(value, name);
  if (list.length === length && list.every((item) => Number.isInteger(item) && (item as number) >= least))
    return list as number[];
  throw expected('ERR_VALUE', `${length} integers of at least ${least}`, name, show(value));
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null;

/**
 * The shape of a tensor, which must be that of the pattern: a number is that size, a letter any size of at least 1. The data
 * of a tensor in device memory is not looked at.
 */
export function requireShape(
  tensor: unknown,
  pattern: readonly (number | string)[],
  name: string,
): readonly number[] {
  const shape = isObject(tensor) ? tensor.shape : undefined;
  if (!Array.isArray(shape))
    throw expected('ERR_VALUE', 'a tensor, or data with its shape', name, show(tensor));
  const sizes = shape as readonly unknown[];
  const fits =
    sizes.length === pattern.length &&
    sizes.every((size, i) => {
      const wanted = pattern[i];
      return typeof wanted === 'number' ? size === wanted : Number.isInteger(size) && (size as number) >= 1;
    });
  if (!fits) throw expected('ERR_SHAPE', `[${pattern.join(', ')}]`, name, show(shape));
  return sizes as readonly number[];
}

/** The elements of a tensor of that pattern, in this process's memory. */
export function requireData<A extends TypedArray>(
  tensor: HostArray<A>,
  pattern: readonly (number | string)[],
  name: string,
): { data: A; shape: readonly number[] } {
  const shape = requireShape(tensor, pattern, name);
  const size = shape.reduce((product, n) => product * n, 1);
  // A tensor in device memory says so itself.
  const { data } = tensor as { data: unknown };
  if (!ArrayBuffer.isView(data) || data instanceof DataView)
    throw expected('ERR_DTYPE', 'a typed array', `${name}.data`, show(data));
  if ((data as A).length !== size)
    throw expected('ERR_SHAPE', `${size} elements`, name, String((data as A).length));
  return { data: data as A, shape };
}

/** The same for float32. */
export function requireFloats(
  tensor: TensorLike,
  pattern: readonly (number | string)[],
  name: string,
): { data: Float32Array; shape: readonly number[] } {
  const { data, shape } = requireData(tensor, pattern, name);
  // By name, not instanceof: typed arrays of another realm are as good.
  const type = Object.prototype.toString.call(data).slice(8, -1);
  if (type !== 'Float32Array') throw expected('ERR_DTYPE', 'a Float32Array', name, type);
  return { data: data as Float32Array, shape };
}

export function floatTensor(shape: readonly number[]): FloatTensor {
  return { data: new Float32Array(shape.reduce((product, size) => product * size, 1)), shape };
}
