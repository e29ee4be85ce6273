import { AttentionBiasError, callNative, expected } from './errors.js';
import type { NativeBinding } from './binding.js';

/** Element types. */
export type DType = 'float32' | 'int32' | 'uint8';

export type TypedArray = Float32Array | Int32Array | Uint8Array;

/** The typed array that holds a dtype. */
export interface TypedArrayOf {
  float32: Float32Array;
  int32: Int32Array;
  uint8: Uint8Array;
}

/** The dtype that a typed array holds. */
export type DTypeOf<A extends TypedArray> = A extends Float32Array
  ? 'float32'
  : A extends Int32Array
    ? 'int32'
    : 'uint8';

/**
 * What every operation takes for a tensor: a Tensor, or a typed array with its shape, dense and row-major. The array may be
 * a view into a larger buffer or into a SharedArrayBuffer. It is never copied, so its values must stay until the
 * operation's promise settles; other fields of the object are ignored.
 */
export type TensorLike = Tensor<DType> | { readonly data: TypedArray; readonly shape: readonly number[] };

const arrayTypes = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

/**
 * A dense row-major tensor: a handle of memory, with no copy on the way from JavaScript to a kernel and back.
 *
 * Memory of a tensor that a device made is native and outside the JavaScript heap. dispose() frees it at once; without
 * that the garbage collector frees it with the last reference to the tensor and its data. On the CPU a tensor belongs to
 * no device: every CPU device of the same thread takes it.
 */
export class Tensor<D extends DType = 'float32'> implements Disposable {
  /** 1 to 8 dimensions, each at least 1; frozen */
  readonly shape: readonly number[];
  readonly dtype: D;
  /** number of elements */
  readonly size: number;
  #data: TypedArrayOf[D] | undefined;
  readonly #release: ((buffer: ArrayBufferLike) => void) | undefined;

  /** @internal Made by Device.tensor, Device.from and the operations. */
  constructor(
    data: TypedArrayOf[D],
    shape: readonly number[],
    dtype: D,
    release?: (buffer: ArrayBufferLike) => void,
  ) {
    this.shape = Object.freeze([...shape]);
    this.dtype = dtype;
    this.size = data.length;
    this.#data = data;
    this.#release = release;
  }

  get disposed(): boolean {
    return this.#data === undefined;
  }

  /**
   * A typed array over the memory itself, the same object each time. Writes are seen by every later operation.
   *
   * @throws AttentionBiasError ERR_DISPOSED after dispose()
   */
  get data(): TypedArrayOf[D] {
    if (this.#data === undefined) throw expected('ERR_DISPOSED', 'a tensor in use', 'data', 'a disposed one');
    return this.#data;
  }

  /**
   * Ends the use of the tensor; a second call does nothing. Native memory is freed at once, and every typed array over it
   * is detached (length 0); where an operation is using it, it is freed when that ends. Memory that `from` wrapped is
   * only let go of.
   */
  dispose(): void {
    const data = this.#data;
    this.#data = undefined;
    if (data !== undefined) this.#release?.(data.buffer);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A tensor over native memory, which it owns. */
export function adoptTensor<D extends DType>(
  binding: NativeBinding,
  buffer: ArrayBuffer,
  shape: readonly number[],
  dtype: D,
): Tensor<D> {
  try {
    const data = new arrayTypes[dtype](buffer) as TypedArrayOf[D];
    return new Tensor(data, shape, dtype, (memory) => {
      binding.release(memory);
    });
  } catch (cause) {
    // Node 20 has typed arrays of up to 2^32 − 1 elements.
    binding.release(buffer);
    const received = `[${shape.join(', ')}]`;
    const message = `expected a tensor that a typed array can hold for shape but received ${received}`;
    throw new AttentionBiasError('ERR_MEMORY', message, { cause });
  }
}

/** A tensor over memory of the user's own. ERR_DTYPE, ERR_SHAPE or ERR_VALUE by the addon. */
export function wrapTensor<A extends TypedArray>(
  binding: NativeBinding,
  data: A,
  shape: readonly number[],
): Tensor<DTypeOf<A>> {
  const dtype = callNative(() => binding.checkTensor({ data, shape })) as DTypeOf<A>;
  return new Tensor<DTypeOf<A>>(data as unknown as TypedArrayOf[DTypeOf<A>], shape, dtype);
}
