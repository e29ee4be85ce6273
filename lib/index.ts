export { Adam } from './adam.js';
export type { AdamOptions } from './adam.js';
export { open } from './open.js';
export { AttentionBiasError } from './errors.js';
export type { ErrorCode } from './errors.js';
export type * from './device.js';
export type * from './terms.js';
export type { DType, DTypeOf, MemoryKind, Tensor, TensorLike, TypedArray, TypedArrayOf } from './tensor.js';
