import { callNative } from './errors.js';
import { native } from './native.js';
import type {
  AttentionArgs,
  BackwardArgs,
  BiasArgs,
  DeformableBackwardArgs,
  MultiheadArgs,
} from './device.js';

/**
 * The slow float64 evaluation of `attention`, for tests and self-tests: out [B, H, Q, Dv] and lse [B, H, Q]. Blocks the
 * thread; errors as those of the operation.
 */
export function referenceAttention(args: Pick<AttentionArgs, 'query' | 'key' | 'value' | 'bias' | 'scale'>): {
  out: Float64Array;
  lse: Float64Array;
} {
  return callNative(() => native().referenceAttention(args));
}

/** The same of `attentionBackward`: `query`, `key`, `value`, and the terms' by the path of their tensor, as bias[0].table. */
export function referenceBackward(
  args: Pick<BackwardArgs, 'query' | 'key' | 'value' | 'bias' | 'scale' | 'gradOut'>,
): Record<string, Float64Array> {
  return callNative(() => native().referenceBackward(args));
}

/** The same of `bias`: [1|B, 1|H, Q, K]. */
export function referenceBias(args: Pick<BiasArgs, 'shape' | 'bias'>): Float64Array {
  return callNative(() => native().referenceBias(args));
}

type DeformableTensors = 'value' | 'samplingLocations' | 'attentionWeights';

/** The same of `deformable`, with its gradients by the names of their tensors. */
export function referenceDeformable(
  args: Pick<DeformableBackwardArgs, DeformableTensors | 'spatialShapes' | 'gradOut'>,
): Record<'out' | DeformableTensors, Float64Array> {
  return callNative(() => native().referenceDeformable(args));
}

/** The same of `multihead`: [B, Q, E]. */
export function referenceMultihead(
  args: Omit<MultiheadArgs, 'out' | 'memory' | 'signal' | 'precision'>,
): Float64Array {
  return callNative(() => native().referenceMultihead(args));
}
