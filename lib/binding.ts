import type { MemoryUse } from './device.js';
import type { DType, MemoryKind } from './tensor.js';

/** native/addon/device_buffer.h: a block of a device's memory. */
export interface NativeDeviceBuffer {
  dispose(): void;
}

/** A tensor that an operation of the addon made. */
export interface NativeTensor {
  buffer: ArrayBuffer | NativeDeviceBuffer;
  shape: number[];
  dtype: DType;
  memory: MemoryKind;
}

/** The operations of a native device, by name. */
export type OperationName =
  | 'prepare'
  | 'selfTest'
  | 'attention'
  | 'attentionBackward'
  | 'bias'
  | 'linear'
  | 'multihead'
  | 'router'
  | 'routerBackward'
  | 'project'
  | 'deformable'
  | 'deformableBackward'
  | 'copy';

/** An operation: `id` is a number of the caller's for abort(). Resolves to the outputs that `args` did not give. */
export type NativeOperation = (id: number, args: object) => Promise<Record<string, NativeTensor>>;

/** native/addon/device.h */
export type NativeDevice = Record<OperationName, NativeOperation> & {
  abort(id: number): void;
  close(): void;
  /**
   * After `prepare`: `isa` and `threads` of the CPU backend, or what is known of the GPU; `kernelMs`: what the GPU took for
   * the last operation, from its first kernel to its last
   */
  info(): {
    name: string;
    isa: string;
    threads: number;
    computeCapability: string;
    multiprocessors: number;
    memoryBytes: number;
    kernelMs: number;
  };
  /** zero-filled memory for a tensor; ERR_SHAPE, ERR_MEMORY */
  allocate(
    shape: readonly number[],
    options: { dtype?: DType; memory?: MemoryKind },
  ): ArrayBuffer | NativeDeviceBuffer;
  /** null where the device has no memory of its own */
  memory(): Required<MemoryUse> | null;
  trim(): void;
};

/** native/cuda/cuda.h */
export interface CudaStatus {
  /** whether the binary holds a CUDA part */
  built: boolean;
  /** the toolkit that built it, such as 13.0 */
  toolkit: string;
  architectures: string;
  /** why no device can be used; empty where one can */
  reason: string;
  /** the CUDA version that the driver supports, as 13000; 0: no driver */
  driver: number;
  devices: {
    /** the N of cuda:N */
    ordinal: number;
    name: string;
    computeCapability: string;
    multiprocessors: number;
    memoryBytes: number;
    /** empty where the kernels agree with the host or did not run, else what is wrong */
    selfTest: string;
  }[];
}

/**
 * What the addon exports (native/addon/addon.cc). It checks all arguments; its errors are plain Errors with a `code` of
 * lib/errors.ts, which `callNative` turns into AttentionBiasError.
 */
export interface NativeBinding {
  /** the processor's name, and the instruction set levels that this binary has and it runs, best last */
  info(): { processor: string; isas: string[]; compiler: string };
  /** what this binary and this machine offer of CUDA; with `selfTest` the kernels run on every device, which takes a moment */
  cuda(selfTest: boolean): CudaStatus;
  /** native memory of this thread's tensors: bytes and blocks that are not freed yet */
  memory(): { bytes: number; blocks: number };
  /** frees memory that the addon made; leaves any other buffer alone */
  release(buffer: ArrayBufferLike): void;
  /** the dtype of a tensor whose data and shape fit each other; ERR_DTYPE, ERR_SHAPE, ERR_VALUE */
  checkTensor(tensor: { data: unknown; shape: readonly number[] }): DType;
  /** the largest external ArrayBuffer, in bytes; above it results are copied into ordinary ones. 0: always */
  setExternalLimit(bytes: number): void;
  /** the float64 reference of `attention`: slow, and it blocks the thread */
  referenceAttention(args: object): { out: Float64Array; lse: Float64Array };
  /** the float64 reference of `attentionBackward`: `query`, `key`, `value`, and the terms' by path, as bias[0].table */
  referenceBackward(args: object): Record<string, Float64Array>;
  /** the float64 reference of `bias` */
  referenceBias(args: object): Float64Array;
  /** the float64 reference of `deformable`, and of its gradients by the names of their tensors */
  referenceDeformable(
    args: object,
  ): Record<'out' | 'value' | 'samplingLocations' | 'attentionWeights', Float64Array>;
  /** of `multihead` */
  referenceMultihead(args: object): Float64Array;
  /**
   * What this machine does at most by an instruction set on some threads, for the benchmarks: float32 multiply-adds and
   * vdpbf16ps (0: none) in GFLOP/s, stores to and loads from large memory in GB/s. Blocks the thread for half a second.
   */
  measurePeaks(
    threads: number,
    isa: string,
  ): { fmaGflops: number; bf16Gflops: number; fillGBs: number; readGBs: number };
  Device: new (
    options:
      | { backend: 'cpu'; threads: number; isa?: string; memoryLimit?: number }
      | { backend: 'cuda'; ordinal: number; memoryLimit?: number },
  ) => NativeDevice;
}
