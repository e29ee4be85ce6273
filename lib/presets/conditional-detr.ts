/**
 * Conditional DETR: D. Meng, X. Chen, Z. Fan, G. Zeng, H. Li, Y. Yuan, L. Sun, J. Wang, "Conditional DETR for Fast Training
 * Convergence", ICCV 2021. In its decoder's cross-attention content and spatial parts are concatenated, head by head, so that
 * score = (content·content + spatial·spatial) / √(2D): the spatial part is a bias of rank D.
 */
import { expected } from '../errors.js';
import type { TensorLike } from '../tensor.js';
import type { LowRankTerm } from '../terms.js';
import { floatTensor, requireFloats, requireInteger, requireShape, type FloatTensor } from './check.js';
import { splitHeads } from './heads.js';

/** Arguments of `sineEmbedding`. */
export interface SineEmbeddingArgs {
  /** float32 [B, Q, 2] (x, y) in [0, 1]: reference points, after their sigmoid */
  points: TensorLike;
  /** channels, a multiple of 4; default 256 */
  channels?: number | undefined;
  /** default 10,000 */
  temperature?: number | undefined;
}

/**
 * The sinusoidal embedding [B, Q, channels] of reference points: the first half of the channels is y's, the second x's;
 * channels 2i and 2i + 1 of a half are sin and cos of 2π·coordinate / temperature^(2i / half).
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function sineEmbedding({
  points,
  channels = 256,
  temperature = 10_000,
}: SineEmbeddingArgs): FloatTensor {
  const { data, shape } = requireFloats(points, ['B', 'Q', 2], 'points');
  requireInteger(channels, 4, 'channels');
  if (channels % 4 !== 0) throw expected('ERR_VALUE', 'a multiple of 4', 'channels', String(channels));
  if (!(temperature > 0 && temperature < Infinity))
    throw expected('ERR_VALUE', 'a number above 0', 'temperature', String(temperature));
  const half = channels / 2;
  const out = floatTensor([shape[0]!, shape[1]!, channels]);
  for (let point = 0; point < data.length / 2; ++point) {
    for (const [part, axis] of [1, 0].entries()) {
      const angle = 2 * Math.PI * data[2 * point + axis]!;
      const at = point * channels + part * half;
      for (let i = 0; i < half; i += 2) {
        const turned = angle / temperature ** (i / half);
        out.data[at + i] = Math.sin(turned);
        out.data[at + i + 1] = Math.cos(turned);
      }
    }
  }
  return out;
}

/** Arguments of `conditionalSpatialQuery`. */
export interface SpatialQueryArgs extends SineEmbeddingArgs {
  /**
   * float32 [B, Q, channels]: what the transformation (an MLP of two layers) makes of the decoder embedding. Left out in the
   * first layer, where the transformation is 1
   */
  transformation?: TensorLike | undefined;
}

/**
 * The conditional spatial query [B, Q, channels] of a decoder layer: the reference point's embedding, times the
 * transformation, channel by channel. The layer's `ca_qpos_sine_proj` comes next.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function conditionalSpatialQuery({ transformation, ...args }: SpatialQueryArgs): FloatTensor {
  const embedding = sineEmbedding(args);
  if (transformation) {
    const { data } = requireFloats(transformation, embedding.shape, 'transformation');
    for (let i = 0; i < data.length; ++i) embedding.data[i]! *= data[i]!;
  }
  return embedding;
}

/** Arguments of `conditionalAttention`. */
export interface ConditionalAttentionArgs {
  heads: number;
  /** float32 [B, Q, E]: projected decoder embedding (in the first layer plus the projected query position) */
  contentQuery: TensorLike;
  /** float32 [B, K, E]: projected memory (in the first layer plus the projected key position) */
  contentKey: TensorLike;
  /** float32 [B, Q, E]: `conditionalSpatialQuery`, projected */
  spatialQuery: TensorLike;
  /** float32 [B, K, E]: projected key position */
  spatialKey: TensorLike;
}

/** Goes to `device.attention` as it is, beside the values [B, heads, K, Dv]. */
export interface ConditionalAttention {
  /** [B, heads, Q, D] */
  query: FloatTensor;
  /** [B, heads, K, D] */
  key: FloatTensor;
  /** 1/√(2D) */
  scale: number;
  /** the spatial part */
  bias: [LowRankTerm];
}

/**
 * Conditional cross-attention: content parts as query and key, spatial parts as a `lowRank` term, both with scale 1/√(2D).
 * Inputs are in host memory; heads are split here.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function conditionalAttention(args: ConditionalAttentionArgs): ConditionalAttention {
  const { heads } = args;
  const queryShape = requireShape(args.contentQuery, ['B', 'Q', 'E'], 'contentQuery');
  const [batch, , embed] = queryShape as [number, number, number];
  const keyShape = requireShape(args.contentKey, [batch, 'K', embed], 'contentKey');
  requireShape(args.spatialQuery, queryShape, 'spatialQuery');
  requireShape(args.spatialKey, keyShape, 'spatialKey');
  const query = splitHeads(args.contentQuery, heads, 'contentQuery');
  const key = splitHeads(args.contentKey, heads, 'contentKey');
  const queryFactors = splitHeads(args.spatialQuery, heads, 'spatialQuery');
  const keyFactors = splitHeads(args.spatialKey, heads, 'spatialKey');
  const scale = conditionalScale(embed / heads);
  return { query, key, scale, bias: [{ type: 'lowRank', queryFactors, keyFactors, scale }] };
}

/** 1/√(2D), of a head of D channels of content and D of space. */
export function conditionalScale(headDim: number): number {
  return 1 / Math.sqrt(2 * requireInteger(headDim, 1, 'headDim'));
}
