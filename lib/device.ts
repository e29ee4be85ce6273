import type { BiasTerm } from './terms.js';
import type { DType, DTypeOf, MemoryKind, Tensor, TensorLike, TypedArray } from './tensor.js';

/**
 * Of the arithmetic, by the relative L2 error of `out` and `lse` against float64: `f32` below 2e-6, `tf32` (on CUDA) below
 * 1e-3, `bf16` below 1e-2. Products are of numbers rounded to it, sums are float32. On a CPU without bfloat16 instructions
 * `bf16` computes in float32.
 */
export type Precision = 'f32' | 'tf32' | 'bf16';

/** How a device is opened; what is left out is taken from the environment, then from the machine. */
export interface OpenOptions {
  /**
   * `auto`: the first GPU, where there is one that computes a few small cases as the host does, else the CPU. A device that
   * is asked for by name never falls back to another.
   * Default: ATTENTION_BIAS_DEVICE, else `auto`.
   */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | undefined;
  /** CPU threads, 1 to 1024; default ATTENTION_BIAS_THREADS, else the cores that this process may use. */
  threads?: number | undefined;
  /** default precision of this device's attention; `f32`. The CPU has `f32` and `bf16`. */
  precision?: Precision | undefined;
  /**
   * the most memory that this device takes, in bytes, for the tensors that it makes, its operations and what it keeps for the
   * next ones: of a GPU its own, of the CPU the system's. What would pass it is refused before anything is allocated, with
   * ERR_MEMORY. Default: the environment variable ATTENTION_BIAS_MEMORY_LIMIT, else none
   */
  memoryLimit?: number | undefined;
}

/** What a CPU device is. */
export interface CpuInfo {
  readonly backend: 'cpu';
  /** the processor's name */
  readonly name: string;
  /** the instruction set level in use: x86-64-v2 | x86-64-v3 | x86-64-v4 | arm64 | generic (ATTENTION_BIAS_ISA) */
  readonly isa: string;
  readonly threads: number;
}

/** What a CUDA device is. */
export interface CudaInfo {
  readonly backend: 'cuda';
  /** the GPU's name */
  readonly name: string;
  /** the N of cuda:N */
  readonly ordinal: number;
  readonly computeCapability: string;
  readonly multiprocessors: number;
  readonly memoryBytes: number;
}
/** What a device is; `backend` tells which. */
export type DeviceInfo = CpuInfo | CudaInfo;

/** A device's memory, in bytes. */
export interface MemoryUse {
  /** of tensors and of operations that run */
  readonly usedBytes: number;
  /** kept for the next ones; trim() gives it back */
  readonly cachedBytes: number;
  /** OpenOptions.memoryLimit; 0: none */
  readonly limitBytes: number;
  /** of the GPU, other processes counted; of the system, on the CPU */
  readonly freeBytes: number;
  readonly totalBytes: number;
}

/** Letters in shapes: B batch, H heads, Q queries, K keys, D head dim of query and key, Dv of value, V camera views. */
export interface CallOptions {
  /** rejects with ERR_ABORTED, whose `cause` is the signal's reason: a waiting operation at once, a running one between tiles */
  signal?: AbortSignal | undefined;
}

/** Where results go, for operations that can leave them on the device. */
export interface ResultOptions {
  /**
   * where new results are: default `device` for an operation whose first tensor (`query`, `input`, `features`,
   * `referencePoints`) is there, so that chained operations never leave the GPU, else `host`
   */
  memory?: MemoryKind | undefined;
}

export interface AttentionArgs extends CallOptions, ResultOptions {
  /** float32 or bfloat16 [B, H, Q, D] */
  query: TensorLike;
  /** float32 or bfloat16 [B, H, K, D] */
  key: TensorLike;
  /** float32 or bfloat16 [B, H, K, Dv]; bfloat16 tensors are exact float32 values, of half the bytes */
  value: TensorLike;
  /** at most 64 terms, summed; their order changes the result by rounding only */
  bias?: readonly BiasTerm[] | undefined;
  /** of query·key, finite; default 1/√D */
  scale?: number | undefined;
  /** default: the device's */
  precision?: Precision | undefined;
  /** float32 [B, H, Q, Dv] to write to instead of a new tensor; shares no memory with any other tensor of the call */
  out?: TensorLike | undefined;
  /** float32 [B, H, Q] likewise */
  lse?: TensorLike | undefined;
}

/** Results of `attention`, float32. */
export interface AttentionResult {
  /** float32 [B, H, Q, Dv]; 0 for a query that sees no key */
  out: Tensor;
  /** float32 [B, H, Q], natural log of Σ exp(score); −∞ for a query that sees no key */
  lse: Tensor;
}

export interface BackwardArgs<Terms extends readonly BiasTerm[] = readonly BiasTerm[]>
  extends CallOptions, ResultOptions {
  /** float32 or bfloat16 [B, H, Q, D] */
  query: TensorLike;
  /** float32 or bfloat16 [B, H, K, D] */
  key: TensorLike;
  /** float32 or bfloat16 [B, H, K, Dv] */
  value: TensorLike;
  /** the terms of the forward pass */
  bias?: Terms | undefined;
  /** of query·key, finite; default 1/√D */
  scale?: number | undefined;
  /** float32 [B, H, Q, Dv]: the gradient of the loss by `out` */
  gradOut: TensorLike;
  /** float32 [B, H, Q, Dv] and [B, H, Q], as `attention` gave them for these inputs; without both it runs once more */
  out?: TensorLike | undefined;
  lse?: TensorLike | undefined;
  /** default: the device's; the CPU backend computes gradients in float32 at every precision */
  precision?: Precision | undefined;
  /** whether to compute those of the terms' tensors; default true */
  termGradients?: boolean | undefined;
}

/** The gradients of one term by its fields, each of its tensor's shape; a term with no learnable tensor has none. */
export interface TermGradients {
  /** of `dense`, summed over broadcast dimensions; 0 where the entry is −∞ */
  bias?: Tensor;
  /** of `modality` and `spatial`, in the order of the term's segments */
  segments?: { weights: Tensor }[];
  /** of `relativePosition` */
  table?: Tensor;
  /** of `lowRank` */
  queryFactors?: Tensor;
  keyFactors?: Tensor;
  /** of `alibi` */
  slopes?: Tensor;
}

/** The gradients of a term whose type is known. */
export type GradientsOf<Term extends BiasTerm> = BiasTerm extends Term
  ? TermGradients
  : Term extends { type: 'modality' | 'spatial' }
    ? Required<Pick<TermGradients, 'segments'>>
    : Term extends { type: 'dense' }
      ? Required<Pick<TermGradients, 'bias'>>
      : Term extends { type: 'relativePosition' }
        ? Required<Pick<TermGradients, 'table'>>
        : Term extends { type: 'lowRank' }
          ? Required<Pick<TermGradients, 'queryFactors' | 'keyFactors'>>
          : Term extends { type: 'alibi' }
            ? Required<Pick<TermGradients, 'slopes'>>
            : Record<string, never>;

/** Gradients of `attentionBackward`, float32, in the shapes of what they are by. */
export interface BackwardResult<Terms extends readonly BiasTerm[] = readonly BiasTerm[]> extends Disposable {
  /** float32 [B, H, Q, D]; 0 for a query that sees no key */
  query: Tensor;
  /** float32 [B, H, K, D]; 0 for a key that no query sees */
  key: Tensor;
  /** float32 [B, H, K, Dv] */
  value: Tensor;
  /** in the order of `bias`; empty with `termGradients: false`. A tensor that stands in several places has a gradient at each. */
  terms: { -readonly [I in keyof Terms]: GradientsOf<Terms[I]> };
  /** disposes all of them */
  dispose(): void;
}

export interface BiasArgs extends CallOptions, ResultOptions {
  /** [B, H, Q, K] */
  shape: readonly [number, number, number, number];
  bias: readonly BiasTerm[];
  /** of the result: `float32` (default), or `bfloat16`: the float32 rounded once more, finite values staying finite */
  dtype?: 'float32' | 'bfloat16' | undefined;
  /** [1|B, 1|H, Q, K] of that dtype to write to */
  out?: TensorLike | undefined;
}

export interface LinearArgs extends CallOptions, ResultOptions {
  /** float32 [.., E], of 1 to 8 dimensions */
  input: TensorLike;
  /** float32 [N, E], as torch.nn.Linear has it */
  weight: TensorLike;
  /** float32 [N]; default none */
  bias?: TensorLike | undefined;
  /** float32 [.., N] to write to */
  out?: TensorLike | undefined;
}

/** The weights of a torch.nn.MultiheadAttention of E channels; `loadMultihead` reads them from a state dict. */
export interface MultiheadWeights {
  /** float32 [3E, E], `in_proj_weight`: the rows of query, key and value below each other */
  inProjWeight: TensorLike;
  /** float32 [3E], `in_proj_bias`; default none, Swin's `qkv_bias=False` */
  inProjBias?: TensorLike | undefined;
  /** float32 [E, E], `out_proj.weight` */
  outProjWeight: TensorLike;
  /** float32 [E], `out_proj.bias`; default none */
  outProjBias?: TensorLike | undefined;
}

export interface MultiheadArgs extends MultiheadWeights, CallOptions, ResultOptions {
  /** float32 [B, Q, E] */
  query: TensorLike;
  /** float32 [B, K, E]; may be the same tensor as `query`, as may `value` */
  key: TensorLike;
  /** float32 [B, K, E] */
  value: TensorLike;
  /** float32 [B, Q, E], added to `query` before its projection; default none */
  queryPos?: TensorLike | undefined;
  /** float32 [B, K, E], added to `key` before its projection, not to `value`; default none */
  keyPos?: TensorLike | undefined;
  /** H, a divisor of E; the head dim is E/H, on CUDA at most 256 */
  heads: number;
  /** at most 64 terms over [B, H, Q, K], summed */
  bias?: readonly BiasTerm[] | undefined;
  /** whether `query`, without `queryPos`, is added to the output, as decoders do around their attention; default false */
  identity?: boolean | undefined;
  /** default: the device's. Of attention; projections are float32 at least */
  precision?: Precision | undefined;
  /** float32 [B, Q, E] to write to; shares no memory with any other tensor of the call */
  out?: TensorLike | undefined;
}

export interface RouterArgs extends CallOptions, ResultOptions {
  /** float32 [B, Q, E] */
  features: TensorLike;
  /** float32 [M, E] */
  weight: TensorLike;
  /** float32 [M]; a fresh router has 1.5 here and 0 in `weight` */
  bias: TensorLike;
  /** whether the weights are [M, B, Q], so that `weights.at(m)` is what a term takes */
  outputsFirst?: boolean | undefined;
  /** float32 [B, Q, M], or [M, B, Q], to write to */
  out?: TensorLike | undefined;
}

export interface RouterBackwardArgs extends CallOptions, ResultOptions {
  /** float32 [B, Q, E] */
  features: TensorLike;
  /** float32 [M, E] */
  weight: TensorLike;
  /** float32 [M] */
  bias: TensorLike;
  /** float32 [B, Q, M]: the gradient of the loss by the weights; [M, B, Q] with `outputsFirst` */
  gradOut: TensorLike;
  /** as in the forward pass */
  outputsFirst?: boolean | undefined;
}

/** Gradients of `routerBackward`, float32. */
export interface RouterBackwardResult extends Disposable {
  /** float32 [B, Q, E] */
  features: Tensor;
  /** float32 [M, E] */
  weight: Tensor;
  /** float32 [M] */
  bias: Tensor;
  /** disposes all three */
  dispose(): void;
}

export interface ProjectArgs extends CallOptions, ResultOptions {
  /** float32 [B, Q, 3] (x, y, z) in [0, 1] of the point cloud range */
  referencePoints: TensorLike;
  /** [x0, y0, z0, x1, y1, z1] in metres */
  pointCloudRange: readonly [number, number, number, number, number, number];
  /** float32 [B, V, 4, 4], from LiDAR coordinates (metres) to pixels times depth, as in mmdetection3d */
  lidar2img: TensorLike;
  /** [h, w] of the images that lidar2img projects to, in pixels */
  imageShape: readonly [number, number];
  /** [h, w] of the camera feature map, in cells */
  featureShape: readonly [number, number];
  /** [h, w] of the bird's-eye-view feature map, in cells */
  bevShape: readonly [number, number];
}

/** Results of `project`, float32, in cells. */
export interface ProjectResult {
  /** float32 [B, Q, 2] (y, x): BEV cells, floored, not clamped */
  bevCenters: Tensor;
  /** float32 [B, Q, 3] (view, y, x): cells of the first camera that sees the point; (−1, −1, −1): none does */
  cameraCenters: Tensor;
}

/** Letters beside the above: L levels, P points of a query, head and level, S pixels of all levels, D channels of a head. */
export interface DeformableArgs extends CallOptions, ResultOptions {
  /** float32 or bfloat16 [B, S, H, D]: the levels' pixels one level after the other, row by row; D at most 8,192 */
  value: TensorLike;
  /** [h, w] of each of at most 64 levels, integers of at least 1 whose areas sum to S */
  spatialShapes: readonly (readonly [number, number])[];
  /** float32 [B, Q, H, L, P, 2] (x, y) in units of the level's size: 0 to 1 is inside; any value is allowed */
  samplingLocations: TensorLike;
  /** float32 [B, Q, H, L, P], any values; Deformable DETR's are a softmax over L·P */
  attentionWeights: TensorLike;
  /** float32 [B, Q, H·D] to write to instead of a new tensor; shares no memory with any other tensor of the call */
  out?: TensorLike | undefined;
}

/** Arguments of `deformableBackward`: those of `deformable`, and the gradient by its output. */
export interface DeformableBackwardArgs extends Omit<DeformableArgs, 'out'> {
  /** float32 [B, Q, H·D], the gradient of what is differentiated by `out` */
  gradOut: TensorLike;
  /**
   * whether sums over queries have one order, so that the same call gives the same bits; default false. Makes a difference
   * on CUDA only, where the gradient of `value` is otherwise summed by atomic additions; the CPU's is always so.
   */
  deterministic?: boolean | undefined;
}

/** Gradients of `deformableBackward`, float32. */
export interface DeformableGradients {
  /** float32 [B, S, H, D] */
  value: Tensor;
  /**
   * float32 [B, Q, H, L, P, 2]; at a pixel's centre, where the sample has a corner, the derivative to the right and below;
   * 0 outside
   */
  samplingLocations: Tensor;
  /** float32 [B, Q, H, L, P] */
  attentionWeights: Tensor;
}

/** The dtype of a tensor, or of a typed array with its shape. */
export type TensorDType<T extends TensorLike> =
  T extends Tensor<infer D>
    ? D
    : T extends { readonly data: infer A extends TypedArray }
      ? DTypeOf<A>
      : never;

/**
 * A place to compute on. Operations run one after the other, in the order of the calls, on threads of the device's own; the
 * event loop goes on. Each rejects with an AttentionBiasError: ERR_SHAPE, ERR_DTYPE, ERR_VALUE or ERR_TERM for arguments
 * that don't fit (an unknown field is one), ERR_DISPOSED for a disposed tensor, ERR_MEMORY, ERR_ABORTED, and ERR_DEVICE
 * after close(). After a rejection the contents of `out` and `lse` are undefined.
 *
 * Tensors of a running operation must stay as they are. Native ones may be disposed meanwhile: their memory is kept until
 * the operation ends. A typed array of the caller's own whose buffer is transferred away makes the operation fail.
 *
 * Devices may be opened side by side, also in worker_threads; each has its own threads.
 */
export interface Device extends Disposable {
  readonly info: DeviceInfo;

  /**
   * A new tensor, filled with zeros.
   *
   * @param shape 1 to 8 dimensions of at least 1
   * @param options `dtype`: float32 (default), int32, uint8 or bfloat16; `memory`: host (default), pinned or device, which
   *   on the CPU are all `host`
   * @throws AttentionBiasError ERR_SHAPE, ERR_VALUE, ERR_DEVICE; ERR_MEMORY with what was asked for and what is free
   */
  tensor<D extends DType = 'float32'>(
    shape: readonly number[],
    options?: { dtype?: D; memory?: MemoryKind },
  ): Tensor<D>;

  /**
   * Wraps a typed array without a copy.
   *
   * @param data Float32Array, Int32Array, Uint8Array or (bfloat16) Uint16Array, in memory of fixed size
   * @param shape default [data.length]
   * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE
   */
  from<A extends TypedArray>(data: A, shape?: readonly number[]): Tensor<DTypeOf<A>>;

  /**
   * A copy of a tensor in this device's memory; on the CPU, in the host's. Operations take both; what is used more than once
   * is best copied once.
   */
  toDevice<T extends TensorLike>(tensor: T, options?: CallOptions): Promise<Tensor<TensorDType<T>>>;

  /**
   * A copy of a tensor in memory that JavaScript reads.
   *
   * @param options `memory`: host (default) or pinned; `out`: a tensor of the same shape and dtype to copy to
   */
  toHost<T extends TensorLike>(
    tensor: T,
    options?: CallOptions & { memory?: 'host' | 'pinned' | undefined; out?: TensorLike | undefined },
  ): Promise<Tensor<TensorDType<T>>>;

  /**
   * softmax(scale·query·keyᵀ + Σ bias)·value, with the terms evaluated inside the softmax: the Q×K bias never exists, and
   * memory beyond inputs and outputs does not grow with Q·K. Online softmax over tiles (FlashAttention, Dao 2022); with
   * `modality` terms it is MoME's decoder attention under an adaptive query router (AQR).
   */
  attention(args: AttentionArgs): Promise<AttentionResult>;

  /**
   * The gradients of a loss by the inputs of `attention` and by every learnable tensor of its terms: `dense` biases, the
   * weights of `modality` and `spatial`, `relativePosition` tables, `lowRank` factors, `alibi` slopes. Scores are computed
   * again from `lse`, tile by tile (FlashAttention-2, Dao 2023): memory grows with Q + K, and the gradient of a modality's
   * weights is one number for each (b, q). Float32; the same inputs give the same bits. ERR_VALUE where only one of `out`
   * and `lse` is given.
   */
  attentionBackward<const Terms extends readonly BiasTerm[] = readonly BiasTerm[]>(
    args: BackwardArgs<Terms>,
  ): Promise<BackwardResult<Terms>>;

  /**
   * The sum of the terms as a dense tensor [1|B, 1|H, Q, K], with −∞ for hidden pairs: generation and mask fusion in one
   * pass. B or H is 1 when no term depends on it by type and tensor shape.
   */
  bias(args: BiasArgs & { dtype: 'bfloat16' }): Promise<Tensor<'bfloat16'>>;
  /** The same in float32, as without `dtype`. */
  bias(args: BiasArgs & { dtype?: 'float32' | undefined }): Promise<Tensor>;
  /** The same in the dtype that `dtype` names. */
  bias(args: BiasArgs): Promise<Tensor<'float32' | 'bfloat16'>>;

  /** input·weightᵀ + bias: torch.nn.Linear, [.., N] in float32 whatever the device's precision. */
  linear(args: LinearArgs): Promise<Tensor>;

  /**
   * Multi-head attention (Vaswani et al. 2017) over torch.nn.MultiheadAttention's weights, with bias terms: [B, Q, E]. Query
   * and key are projected with their positions, the value without; each of the heads attends with scale 1/√(E/H); a query
   * that sees no key attends to 0, so that its output is the out-projection's bias. Relative L2 error below 1e-5 in `f32`,
   * 2e-3 in `tf32`, 2e-2 in `bf16`. What lies between the parts takes 8·B·E·(Q + K) bytes for the time of the call (on the
   * CPU it is kept for the next), nothing that grows with Q·K.
   *
   * ERR_VALUE for `heads` that don't divide E, ERR_SHAPE for tensors that don't fit each other.
   */
  multihead(args: MultiheadArgs): Promise<Tensor>;

  /**
   * The adaptive query router (MoME): weights [B, Q, M] = sigmoid(features·weightᵀ + bias), or [M, B, Q] with
   * `outputsFirst`.
   */
  router(args: RouterArgs): Promise<Tensor>;

  /** The gradients of a loss by a router's features, weight and bias. Sums are float64, in a fixed order. */
  routerBackward(args: RouterBackwardArgs): Promise<RouterBackwardResult>;

  /**
   * Reference points to the cells they fall in, of the bird's-eye view and of the first camera that sees them (depth above
   * 1e-5, inside the image): the centres of `spatial` and `window` terms, as in CMT's projected position encoding. Computed
   * in float64.
   */
  project(args: ProjectArgs): Promise<ProjectResult>;

  /**
   * Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021), the operation between its projections:
   * out[b, q, h·D + d] = Σ over levels l and points p of attentionWeights[b, q, h, l, p] · the bilinear sample of channel d of
   * head h of level l at samplingLocations[b, q, h, l, p]. Pixel (i, j) has its centre at ((j + 0.5)/w, (i + 0.5)/h), and
   * pixels outside the level are 0, as in `grid_sample` with zero padding and `align_corners=False`; a location that is NaN is
   * outside. Float32 arithmetic whatever the device's precision, places in float64: within 1e-5 of a float64 evaluation.
   */
  deformable(args: DeformableArgs): Promise<Tensor>;

  /** The gradients of Σ gradOut·out by the three tensors of `deformable`, within 1e-5 likewise. */
  deformableBackward(args: DeformableBackwardArgs): Promise<DeformableGradients>;

  /** What the device's tensors and operations take of its memory. */
  memory(): MemoryUse;

  /** Gives memory that is only kept for the next operations back to the system. */
  trim(): void;

  /**
   * Ends the device: an operation that runs finishes, those waiting reject with ERR_DEVICE, as do further calls. Its tensors
   * stay. A second call does nothing.
   */
  close(): void;
}
