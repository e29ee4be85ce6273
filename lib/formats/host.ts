/** Tensors as files hold them: a typed array in this process's memory, with its shape. */
import { AttentionBiasError, expected } from '../errors.js';
import type { DType, TypedArray, TypedArrayOf } from '../tensor.js';

/** Goes wherever an operation takes a `TensorLike`. */
export interface HostTensor<D extends DType = DType> {
  readonly data: TypedArrayOf[D];
  readonly shape: readonly number[];
  readonly dtype: D;
}

/** What a writer takes: a `Tensor`, a `HostTensor`, or a typed array with its shape. */
export interface WritableTensor {
  readonly data: TypedArray;
  readonly shape: readonly number[];
}

/** The number of elements of a shape; undefined where it is no list of safe integers ≥ 0, or the product no such one. */
export function elementCount(shape: readonly unknown[]): number | undefined {
  let count = 1;
  for (const size of shape) {
    if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) return undefined;
    count *= size;
    if (count > Number.MAX_SAFE_INTEGER) return undefined;
  }
  return count;
}

/** The dtype of a tensor to be written. ERR_DTYPE for another typed array, ERR_SHAPE where data and shape differ. */
export function writableDtype({ data, shape }: WritableTensor, name: string): DType {
  // By name, not instanceof: typed arrays of another realm are as good.
  const dtypes: Record<string, DType | undefined> = {
    '[object Float32Array]': 'float32',
    '[object Int32Array]': 'int32',
    '[object Uint8Array]': 'uint8',
    '[object Uint16Array]': 'bfloat16',
  };
  const type = Object.prototype.toString.call(data);
  const dtype = dtypes[type];
  if (!dtype)
    throw expected(
      'ERR_DTYPE',
      'a Float32Array, Int32Array, Uint8Array or (bfloat16) Uint16Array',
      name,
      type.slice(8, -1),
    );
  if (elementCount(shape) !== data.length) {
    throw expected('ERR_SHAPE', `a shape of ${data.length} elements`, name, `[${shape.join(', ')}]`);
  }
  return dtype;
}

/** float32 values of IEEE half precision bits. */
export function halfToFloat32(half: Uint16Array): Float32Array<ArrayBuffer> {
  const bits = new Uint32Array(half.length);
  const values = new Float32Array(bits.buffer);
  for (let i = 0; i < half.length; ++i) {
    const h = half[i] ?? 0;
    const sign = (h & 0x8000) << 16;
    const exponent = (h >> 10) & 0x1f;
    const mantissa = h & 0x3ff;
    if (exponent === 0) {
      values[i] = mantissa * 2 ** -24;
      bits[i] = (bits[i] ?? 0) | sign;
    } else {
      const wide = exponent === 0x1f ? 0xff : exponent + 112; // the biases differ by 127 − 15
      bits[i] = sign | (wide << 23) | (mantissa << 13);
    }
  }
  return values;
}

/** float32 values of bfloat16 bits: the upper halves of float32. */
export function bfloat16ToFloat32(upper: Uint16Array): Float32Array<ArrayBuffer> {
  const bits = new Uint32Array(upper.length);
  for (let i = 0; i < upper.length; ++i) bits[i] = (upper[i] ?? 0) << 16;
  return new Float32Array(bits.buffer);
}

const viewOfBits = ({ buffer, byteOffset, length }: Float32Array): Uint32Array =>
  new Uint32Array(buffer, byteOffset, length);

/**
 * IEEE half precision bits of float32 values, to the nearest, ties to even, as NumPy's astype('f2') has them: from 65520 on
 * infinite, subnormal below 2⁻¹⁴, and NaN with the upper bits of its payload.
 */
export function float32ToHalf(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = viewOfBits(values);
  const half = new Uint16Array(bits.length);
  for (let i = 0; i < half.length; ++i) {
    const x = bits[i]!;
    const magnitude = x & 0x7fffffff;
    let h: number;
    if (magnitude > 0x7f800000) {
      h = 0x7c00 | ((magnitude >>> 13) & 0x3ff);
      if (h === 0x7c00) h = 0x7c01; // a payload of lower bits alone must not turn NaN into infinity
    } else if (magnitude >= 0x477ff000) {
      h = 0x7c00;
    } else if (magnitude >= 0x38800000) {
      // Another bias of the exponent; a carry out of the mantissa is the next exponent's zero.
      h = (magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13;
    } else if (magnitude <= 0x33000000) {
      h = 0; // up to 2⁻²⁵, which is as far from 0 as from the least subnormal
    } else {
      const shift = 126 - (magnitude >>> 23); // 14 to 24
      const mantissa = (magnitude & 0x7fffff) | 0x800000;
      h = mantissa >>> shift;
      const rest = mantissa & ((1 << shift) - 1);
      const middle = 1 << (shift - 1);
      if (rest > middle || (rest === middle && (h & 1) === 1)) ++h;
    }
    half[i] = ((x >>> 16) & 0x8000) | h;
  }
  return half;
}

/** bfloat16 bits of float32 values, to the nearest, ties to even; NaN stays NaN. */
export function float32ToBfloat16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = viewOfBits(values);
  const upper = new Uint16Array(bits.length);
  for (let i = 0; i < upper.length; ++i) {
    const x = bits[i]!;
    const isNaN = (x & 0x7fffffff) > 0x7f800000;
    upper[i] = isNaN ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
  }
  return upper;
}

/** ERR_FORMAT in the package's sentence. */
export function badFormat(what: string, name: string, received: string): AttentionBiasError {
  return expected('ERR_FORMAT', what, name, received);
}
