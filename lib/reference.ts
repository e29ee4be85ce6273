import { callNative } from './errors.js';
import { native } from './native.js';
import type { AttentionArgs, BiasArgs, MultiheadArgs } from './device.js';

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

/** The same of `bias`: [1|B, 1|H, Q, K]. */
export function referenceBias(args: Pick<BiasArgs, 'shape' | 'bias'>): Float64Array {
  return callNative(() => native().referenceBias(args));
}

/** The same of `multihead`: [B, Q, E]. */
export function referenceMultihead(
  args: Omit<MultiheadArgs, 'out' | 'memory' | 'signal' | 'precision'>,
): Float64Array {
  return callNative(() => native().referenceMultihead(args));
}
