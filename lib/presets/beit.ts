/**
 * BEiT: H. Bao, L. Dong, S. Piao, F. Wei, "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022; and every Vision
 * Transformer (A. Dosovitskiy et al., ICLR 2021) with a relative position table over its patches.
 */
import type { TensorLike } from '../tensor.js';
import type { BiasTerm } from '../terms.js';
import { requireIntegers, requireShape, type Size } from './check.js';
import { relativePositionRows } from './relative-position.js';

/** Arguments of `beitTerms`. */
export interface BeitArgs {
  /** [h, w] of the image in patches: 14 × 14 for 224 pixels and patches of 16 */
  window: Size;
  /** float32 [(2h−1)(2w−1) + (clsToken ? 3 : 0), heads]: `relative_position_bias_table` of a checkpoint, as it is */
  table: TensorLike;
  /** whether token 0 is the class token; default true, as in BEiT */
  clsToken?: boolean | undefined;
}

/**
 * The relative position bias of BEiT's self-attention over 1 + h·w tokens (h·w without a class token). One table a layer,
 * or one for all layers (`rel_pos_bias`, which pre-training uses): the same term.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE
 */
export function beitTerms({ window, table, clsToken = true }: BeitArgs): BiasTerm[] {
  const [height, width] = requireIntegers(window, 2, 1, 'window') as [number, number];
  requireShape(table, [relativePositionRows([height, width], clsToken), 'heads'], 'table');
  return [{ type: 'relativePosition', window: [height, width], table, clsToken }];
}
