/**
 * The bias terms: plain data, summed into the scores of attention. Letters in shapes: B batch, H heads, Q queries,
 * K keys, V camera views, Hg and Wg a feature grid's height and width. `1|B` means either size, broadcast.
 *
 * An additive term gives a finite value for each (b, h, q, k); a mask term gives 0 (visible) or −∞ (hidden), and −∞
 * absorbs whatever the other terms say.
 *
 * The type parameter is what stands for a tensor: a `TensorLike` in a call, a tensor's name in a job file.
 */
import type { TensorLike } from './tensor.js';

/** Where query 0 stands among the keys: at key 0 (`top-left`), or so that the last query meets the last key. */
export type Alignment = 'top-left' | 'bottom-right';

/** A given matrix. −∞ entries hide; NaN and +∞ are refused. */
export interface DenseTerm<T = TensorLike> {
  type: 'dense';
  /** float32 [1|B, 1|H, 1|Q, 1|K] */
  bias: T;
}

/** Visible where the entry is not 0. */
export interface MaskTerm<T = TensorLike> {
  type: 'mask';
  /** uint8 or bool [1|B, 1|H, 1|Q, 1|K] */
  visible: T;
}

/** Hidden where the entry is not 0; PyTorch's `key_padding_mask`. */
export interface PaddingTerm<T = TensorLike> {
  type: 'padding';
  /** uint8 or bool [B, K] */
  ignore: T;
}

/** Hides the keys after the query: k > q + o, with o = 0, or K − Q for `bottom-right`. */
export interface CausalTerm {
  type: 'causal';
  /** default `top-left` */
  align?: Alignment;
}

/** Hides all keys but those with −left ≤ k − (q + o) ≤ right. −1 means no limit on that side. */
export interface SlidingWindowTerm {
  type: 'slidingWindow';
  left: number;
  right: number;
  /** default `top-left` */
  align?: Alignment;
}

/** Hides all pairs with different ids: packed sequences, several scenes in one batch row. */
export interface BlockDiagonalTerm<T = TensorLike> {
  type: 'blockDiagonal';
  /** int32 [B, Q] */
  queryIds: T;
  /** int32 [B, K] */
  keyIds: T;
}

/** Adaptive query router (AQR): (w[b,q] − 0.5)·2·strength on the keys of a segment. */
export interface ModalityTerm<T = TensorLike> {
  type: 'modality';
  /** α, default 5 */
  strength?: number;
  /** Segments don't overlap. */
  segments: readonly ModalitySegment<T>[];
}

/** Keys of one sensor, and how much each query trusts it. */
export interface ModalitySegment<T = TensorLike> {
  /** first key */
  start: number;
  /** number of keys */
  length: number;
  /** float32 [B, Q] in [0, 1] */
  weights: T;
}

/** [V, Hg, Wg] with centers (view, y, x), or [Hg, Wg] with centers (y, x). Key = start + (view·Hg + y)·Wg + x. */
export type Grid = readonly [number, number, number] | readonly [number, number];

/** w[b,q]·strength·max(0, 1 − dist/radius) round a centre on a grid of cells, of the query's own view. */
export interface SpatialTerm<T = TensorLike> {
  type: 'spatial';
  /** α, default 5 */
  strength?: number;
  /** Segments don't overlap. */
  segments: readonly SpatialSegment<T>[];
}

/** Keys that are cells of a grid, and where each query lies in it. */
export interface SpatialSegment<T = TensorLike> {
  /** first key */
  start: number;
  grid: Grid;
  /** float32 [B, Q, 2] (y, x) or [B, Q, 3] (view, y, x), in cells; view < 0 or NaN: not projected, no bias */
  centers: T;
  /** in cells, > 0 */
  radius: number;
  /** float32 [B, Q] */
  weights: T;
}

/** Local attention mask (LAM): in a segment only the size × size cells round the centre's cell are visible. */
export interface WindowTerm<T = TensorLike> {
  type: 'window';
  /** Segments don't overlap. Keys outside them are not touched. */
  segments: readonly WindowSegment<T>[];
}

/** Keys that are cells of a grid, of which a query sees a window. */
export interface WindowSegment<T = TensorLike> {
  /** first key */
  start: number;
  grid: Grid;
  /** float32 [B, Q, 2] (y, x) or [B, Q, 3] (view, y, x); not projected: the whole segment is hidden */
  centers: T;
  /** odd, in cells */
  size: number;
}

/** DN-DETR's self-attention mask: groups·groupSize denoising tokens first, then the matching ones. Q = K. */
export interface DenoisingTerm {
  type: 'denoising';
  groups: number;
  groupSize: number;
  /** whether a denoising query sees the matching keys, default true */
  groupsSeeMatching?: boolean;
}

/** Swin's shifted-window mask: `value` between tokens of different regions. Q = K = Mh·Mw, B a multiple of nW. */
export interface ShiftedWindowTerm {
  type: 'shiftedWindow';
  /** [H, W] of the map, a multiple of the window */
  resolution: readonly [number, number];
  /** [Mh, Mw] */
  window: readonly [number, number];
  /** [sh, sw], below the window */
  shift: readonly [number, number];
  /** default −100, finite as in Swin */
  value?: number;
}

/** Swin's and BEiT's relative position table. */
export interface RelativePositionTerm<T = TensorLike> {
  type: 'relativePosition';
  /** [Mh, Mw] */
  window: readonly [number, number];
  /** float32 [(2Mh−1)(2Mw−1) + (clsToken ? 3 : 0), H] */
  table: T;
  /** token 0 is the class token, as in BEiT; default false */
  clsToken?: boolean;
}

/** scale·Σ_r queryFactors·keyFactors: any bias of low rank; Conditional DETR's spatial attention. */
export interface LowRankTerm<T = TensorLike> {
  type: 'lowRank';
  /** float32 [1|B, 1|H, Q, R] */
  queryFactors: T;
  /** float32 [1|B, 1|H, K, R] */
  keyFactors: T;
  /** default 1 */
  scale?: number;
}

/** −slope[h]·|q + K − Q − k| */
export interface AlibiTerm<T = TensorLike> {
  type: 'alibi';
  /** float32 [H]; at most 3.4e38 / max(Q − 1, K − 1), either way, so that every bias is finite */
  slopes: T;
}

/** One term of a bias; `type` picks it. */
export type BiasTerm<T = TensorLike> =
  | DenseTerm<T>
  | MaskTerm<T>
  | PaddingTerm<T>
  | CausalTerm
  | SlidingWindowTerm
  | BlockDiagonalTerm<T>
  | ModalityTerm<T>
  | SpatialTerm<T>
  | WindowTerm<T>
  | DenoisingTerm
  | ShiftedWindowTerm
  | RelativePositionTerm<T>
  | LowRankTerm<T>
  | AlibiTerm<T>;
