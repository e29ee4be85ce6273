/**
 * ALiBi: O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
 * Extrapolation", ICLR 2022.
 */
import type { BiasTerm } from '../terms.js';
import { floatTensor, requireInteger, type FloatTensor } from './check.js';

/** Of 2^n heads: 2^(−8/heads), and its powers. */
function geometric(heads: number): number[] {
  return Array.from({ length: heads }, (_, h) => 2 ** ((-8 * (h + 1)) / heads));
}

/**
 * The slopes [heads] of ALiBi, as the paper's code has them for any number of heads: for a power of two the geometric
 * sequence from 2^(−8/heads); for others that of the next lower power of two, followed by every second slope of the next
 * higher one.
 *
 * @throws AttentionBiasError ERR_VALUE
 */
export function alibiSlopes(heads: number): FloatTensor {
  requireInteger(heads, 1, 'heads');
  const below = 2 ** Math.floor(Math.log2(heads));
  const between = geometric(2 * below).filter((_, h) => h % 2 === 0);
  const slopes = floatTensor([heads]);
  slopes.data.set([...geometric(below), ...between].slice(0, heads));
  return slopes;
}

/** Arguments of `alibiTerms`. */
export interface AlibiArgs {
  heads: number;
  /** whether later keys are hidden, as in the paper's language models; default true */
  causal?: boolean | undefined;
}

/**
 * −slope·distance, and the causal mask. With fewer queries than keys the last query meets the last key, as when a sequence
 * is generated with the earlier keys kept.
 *
 * @throws AttentionBiasError ERR_VALUE
 */
export function alibiTerms({ heads, causal = true }: AlibiArgs): BiasTerm[] {
  const alibi: BiasTerm = { type: 'alibi', slopes: alibiSlopes(heads) };
  return causal ? [alibi, { type: 'causal', align: 'bottom-right' }] : [alibi];
}
