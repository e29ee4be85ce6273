import { AsyncLocalStorage } from 'node:async_hooks';

import { describe } from './describe.js';
import { AttentionBiasError, callNative, expected } from './errors.js';
import type { NativeBinding, NativeDeviceBuffer } from './binding.js';

/** Element types. bfloat16 is the upper half of a float32, as its bits. */
export type DType = 'float32' | 'int32' | 'uint8' | 'bfloat16';

/** Arrays that tensors lie in: float32, int32, uint8, and uint16 for bfloat16. */
export type TypedArray = Float32Array | Int32Array | Uint8Array | Uint16Array;

/** The typed array that holds a dtype. */
export interface TypedArrayOf {
  float32: Float32Array;
  int32: Int32Array;
  uint8: Uint8Array;
  bfloat16: Uint16Array;
}

/** The dtype that a typed array holds. */
export type DTypeOf<A extends TypedArray> = A extends Float32Array
  ? 'float32'
  : A extends Int32Array
    ? 'int32'
    : A extends Uint16Array
      ? 'bfloat16'
      : 'uint8';

/**
 * Where a tensor's memory is. `host`: this process's. `pinned`: the same, page-locked, so that a GPU copies it by itself.
 * `device`: a GPU's own, which only operations of its device reach. A CPU device has `host` memory only.
 */
export type MemoryKind = 'host' | 'pinned' | 'device';

/**
 * What every operation takes for a tensor: a Tensor, or a typed array with its shape, dense and row-major. The array may be
 * a view into a larger buffer or into a SharedArrayBuffer. It is never copied but to a GPU, so its values must stay until
 * the operation's promise settles; other fields of the object are ignored.
 */
export type TensorLike = Tensor<DType> | { readonly data: TypedArray; readonly shape: readonly number[] };

const arrayTypes = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, bfloat16: Uint16Array };

/** A part of a device's memory. */
interface DeviceMemory {
  readonly buffer: NativeDeviceBuffer;
  readonly byteOffset: number;
}

interface Owner {
  memory?: MemoryKind;
  /** frees the memory; absent: it is somebody else's */
  release?: () => void;
  /** the tensor that this one is a view of */
  parent?: Tensor<DType>;
}

/**
 * A dense row-major tensor: a handle of memory, with no copy on the way from JavaScript to a kernel and back.
 *
 * Memory of a tensor that a device made is native and outside the JavaScript heap. dispose() frees it at once; without
 * that the garbage collector frees it with the last reference to the tensor and its data. A tensor in host or pinned memory
 * belongs to no device: every device of the same thread takes it. One in device memory is its device's alone, and outlives
 * that device's close().
 */
export class Tensor<D extends DType = 'float32'> implements Disposable {
  /** 1 to 8 dimensions, each at least 1; frozen */
  readonly shape: readonly number[];
  readonly dtype: D;
  /** number of elements */
  readonly size: number;
  readonly memory: MemoryKind;
  #storage: TypedArrayOf[D] | DeviceMemory | undefined;
  readonly #owner: Owner;

  /** @internal Made by Device.tensor, Device.from and the operations. */
  constructor(
    storage: TypedArrayOf[D] | DeviceMemory,
    shape: readonly number[],
    dtype: D,
    owner: Owner = {},
  ) {
    this.shape = Object.freeze([...shape]);
    this.dtype = dtype;
    this.size = elementsOf(shape);
    this.memory = owner.memory ?? 'host';
    this.#storage = storage;
    this.#owner = owner;
  }

  get disposed(): boolean {
    return this.#storage === undefined || (this.#owner.parent?.disposed ?? false);
  }

  /**
   * A typed array over the memory itself, the same object each time. Writes are seen by every later operation.
   *
   * @throws AttentionBiasError ERR_DISPOSED after dispose(); ERR_VALUE for a tensor in device memory, which
   *   `device.toHost` copies to where it can be read
   */
  get data(): TypedArrayOf[D] {
    const storage = this.#inUse('data');
    if (isDeviceMemory(storage)) {
      const where = 'one in device memory (device.toHost copies it)';
      throw expected('ERR_VALUE', 'a tensor in host memory', 'data', where);
    }
    return storage;
  }

  /** What the addon takes for `data` of a tensor in device memory. @internal */
  get deviceBuffer(): NativeDeviceBuffer | undefined {
    return isDeviceMemory(this.#storage) ? this.#storage.buffer : undefined;
  }

  /** Of `deviceBuffer`, to the first element. @internal */
  get byteOffset(): number {
    return isDeviceMemory(this.#storage) ? this.#storage.byteOffset : 0;
  }

  /**
   * The same elements in another shape, without a copy. A view shares the memory and ends with the tensor that it is of.
   *
   * @throws AttentionBiasError ERR_SHAPE for a shape of another number of elements; ERR_DISPOSED
   */
  reshape(shape: readonly number[]): Tensor<D> {
    const kept = keepShape(shape);
    if (!isShape(kept) || elementsOf(kept) !== this.size) {
      throw expected('ERR_SHAPE', `a shape of ${String(this.size)} elements`, 'shape', describe(kept));
    }
    return this.#view(0, kept);
  }

  /**
   * Entry `index` of the first dimension, without a copy: of weights [M, B, Q] the [B, Q] of one output.
   *
   * @throws AttentionBiasError ERR_VALUE for an index that is not there; ERR_SHAPE for a tensor of one dimension;
   *   ERR_DISPOSED
   */
  at(index: number): Tensor<D> {
    const [count = 0, ...rest] = this.shape;
    if (rest.length === 0) throw expected('ERR_SHAPE', 'at least two dimensions', 'at', '1');
    if (!Number.isInteger(index) || index < 0 || index >= count) {
      throw expected('ERR_VALUE', `an integer from 0 to ${String(count - 1)}`, 'index', describe(index));
    }
    return this.#view((this.size / count) * index, rest);
  }

  /**
   * Ends the use of the tensor; a second call does nothing. Native memory is freed at once, and every typed array over it
   * is detached (length 0); where an operation is using it, it is freed when that ends. Memory that `from` wrapped, and
   * that of a view, is only let go of.
   */
  dispose(): void {
    const used = this.#storage !== undefined;
    this.#storage = undefined;
    if (used) this.#owner.release?.();
  }

  /** The same as `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #inUse(name: string): TypedArrayOf[D] | DeviceMemory {
    if (this.#storage === undefined || this.disposed)
      throw expected('ERR_DISPOSED', 'a tensor in use', name, 'a disposed one');
    return this.#storage;
  }

  #view(first: number, shape: readonly number[]): Tensor<D> {
    const storage = this.#inUse('the view');
    const owner = { memory: this.memory, parent: this };
    if (isDeviceMemory(storage)) {
      const byteOffset = storage.byteOffset + first * arrayTypes[this.dtype].BYTES_PER_ELEMENT;
      return new Tensor<D>({ buffer: storage.buffer, byteOffset }, shape, this.dtype, owner);
    }
    const part = storage.subarray(first, first + elementsOf(shape)) as TypedArrayOf[D];
    return new Tensor<D>(part, shape, this.dtype, owner);
  }
}

const MAX_RANK = 8;

/** A shape as it is now, for what reads it more than once. What is no shape stays what it is. @internal */
export function keepShape(shape: readonly number[]): readonly number[] {
  const given: unknown = shape; // JavaScript may pass anything
  if (!Array.isArray(given) || given.length > MAX_RANK) return shape;
  return Array.from({ length: given.length }, (_, i) => given[i] as number);
}

function isShape(shape: readonly number[]): boolean {
  if (!Array.isArray(shape) || shape.length < 1 || shape.length > MAX_RANK) return false;
  return shape.every((size: unknown) => Number.isSafeInteger(size) && (size as number) >= 1);
}

function elementsOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Bytes of a tensor's elements. @internal */
export function bytesOf(tensor: TensorLike): number {
  return tensor instanceof Tensor
    ? tensor.size * arrayTypes[tensor.dtype].BYTES_PER_ELEMENT
    : tensor.data.byteLength;
}

function isDeviceMemory(storage: TypedArray | DeviceMemory | undefined): storage is DeviceMemory {
  return storage !== undefined && !ArrayBuffer.isView(storage);
}

/** Notes the tensors with memory of their own that are made within an asynchronous call, for who frees them. @internal */
export const madeTensors = new AsyncLocalStorage<WeakSet<object>>();

/** A tensor over native memory, which it owns. */
export function adoptTensor<D extends DType>(
  binding: NativeBinding,
  buffer: ArrayBuffer | NativeDeviceBuffer,
  shape: readonly number[],
  dtype: D,
  memory: MemoryKind = 'host',
): Tensor<D> {
  const tensor = overNative(binding, buffer, shape, dtype, memory);
  madeTensors.getStore()?.add(tensor);
  return tensor;
}

function overNative<D extends DType>(
  binding: NativeBinding,
  buffer: ArrayBuffer | NativeDeviceBuffer,
  shape: readonly number[],
  dtype: D,
  memory: MemoryKind,
): Tensor<D> {
  if (!isArrayBuffer(buffer)) {
    const release = (): void => {
      buffer.dispose();
    };
    return new Tensor<D>({ buffer, byteOffset: 0 }, shape, dtype, { memory, release });
  }
  try {
    const data = new arrayTypes[dtype](buffer) as TypedArrayOf[D];
    const release = (): void => {
      binding.release(data.buffer);
    };
    return new Tensor<D>(data, shape, dtype, { memory, release });
  } catch (cause) {
    // Node 20 has typed arrays of up to 2^32 − 1 elements.
    binding.release(buffer);
    const received = `[${shape.join(', ')}]`;
    const message = `expected a tensor that a typed array can hold for shape but received ${received}`;
    throw new AttentionBiasError('ERR_MEMORY', message, { cause });
  }
}

function isArrayBuffer(buffer: ArrayBuffer | NativeDeviceBuffer): buffer is ArrayBuffer {
  return 'byteLength' in buffer; // not instanceof: it may be of another realm
}

/** A tensor over memory of the user's own. ERR_DTYPE, ERR_SHAPE or ERR_VALUE by the addon. */
export function wrapTensor<A extends TypedArray>(
  binding: NativeBinding,
  data: A,
  shape: readonly number[],
): Tensor<DTypeOf<A>> {
  const kept = keepShape(shape);
  const dtype = callNative(() => binding.checkTensor({ data, shape: kept })) as DTypeOf<A>;
  return new Tensor<DTypeOf<A>>(data as unknown as TypedArrayOf[DTypeOf<A>], kept, dtype);
}
