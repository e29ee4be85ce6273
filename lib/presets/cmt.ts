/**
 * The attention layers of PETR and CMT: Y. Liu, T. Wang, X. Zhang, J. Sun, "PETR: Position Embedding Transformation for
 * Multi-View 3D Object Detection", ECCV 2022; J. Yan, Y. Liu, J. Sun, F. Jia, S. Li, T. Wang, X. Zhang, "Cross Modal
 * Transformer: Towards Fast and Robust 3D Object Detection", ICCV 2023. Both wrap torch.nn.MultiheadAttention: positions are
 * added to query and key, never to value, and an identity is added to the output.
 */
import type { Device, MultiheadWeights } from '../device.js';
import { expected } from '../errors.js';
import type { Tensor, TensorLike } from '../tensor.js';
import type { BiasTerm } from '../terms.js';
import { floatTensor, requireFloats, requireShape, type FloatTensor } from './check.js';

/** What the layers take of a `Device`. */
export type MultiheadDevice = Pick<Device, 'multihead'>;

export interface PetrAttentionArgs extends MultiheadWeights {
  heads: number;
  /** float32 [B, Q, E] */
  query: TensorLike;
  /** float32 [B, K, E]; default `query`: self-attention */
  key?: TensorLike | undefined;
  /** float32 [B, K, E]; default `key`, without its position */
  value?: TensorLike | undefined;
  /** float32 [B, Q, E] */
  queryPos?: TensorLike | undefined;
  /** float32 [B, K, E]; default `queryPos` where it has the shape of `key`, else none */
  keyPos?: TensorLike | undefined;
  /** float32 [B, Q, E] that is added to the output; default `query`, without its position; false: nothing is added */
  identity?: TensorLike | false | undefined;
  /** terms over [B, heads, Q, K]: attention and padding masks, AQR */
  bias?: readonly BiasTerm[] | undefined;
  signal?: AbortSignal | undefined;
}

const sameShape = (a: TensorLike, b: TensorLike): boolean => a.shape.join() === b.shape.join();

/**
 * An attention layer of PETR's decoder (`PETRMultiheadAttention`; mmcv's `MultiheadAttention` is the same), without dropout:
 * identity + out-projection of attention(query + queryPos, key + keyPos, value).
 *
 * @returns float32 [B, Q, E]
 * @throws AttentionBiasError ERR_SHAPE, and those of `device.multihead`
 */
export async function petrAttention(device: MultiheadDevice, args: PetrAttentionArgs): Promise<Tensor> {
  const { query, key = query, value = key, queryPos, identity = query, ...rest } = args;
  const keyPos = args.keyPos ?? (queryPos && sameShape(queryPos, key) ? queryPos : undefined);
  const adds = identity === query;
  const out = await device.multihead({ ...rest, query, key, value, queryPos, keyPos, identity: adds });
  if (adds || identity === false) return out;
  const { data } = requireFloats(identity, [...out.shape], 'identity');
  for (let i = 0; i < data.length; ++i) out.data[i]! += data[i]!;
  return out;
}

export interface CmtAttentionArgs extends MultiheadWeights {
  heads: number;
  /** float32 [B, Q, E]: object queries; zeros in the first layer */
  query: TensorLike;
  /** float32 [B, Q, E]: the sum of the query's BEV and camera embeddings */
  queryPos: TensorLike;
  /** float32 [B, rows·columns, E]: bird's-eye-view features, row by row; left out: the camera-only decoder */
  bev?: TensorLike | undefined;
  /** float32 [B, rows·columns, E] */
  bevPos?: TensorLike | undefined;
  /** float32 [B, cameras·rows·columns, E]: camera features, camera by camera, row by row; left out: the LiDAR-only decoder */
  cameras?: TensorLike | undefined;
  /** float32 [B, cameras·rows·columns, E] */
  camerasPos?: TensorLike | undefined;
  /** terms over [B, heads, Q, keys]: `aqrTerms`, `momeExpertTerms` */
  bias?: readonly BiasTerm[] | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Cross-attention of CMT's decoder: object queries over the tokens of both sensors, bird's-eye view first, each with its
 * position embedding; the query is the identity. The tokens are joined here, in host memory; where many layers attend to the
 * same ones, join them once (`joinTokens`) and call `petrAttention`.
 *
 * @returns float32 [B, Q, E]
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE, and those of `device.multihead`
 */
export function cmtAttention(device: MultiheadDevice, args: CmtAttentionArgs): Promise<Tensor> {
  const { bev, bevPos, cameras, camerasPos, ...rest } = args;
  return petrAttention(device, {
    ...rest,
    key: joinTokens([bev, cameras]),
    keyPos: joinTokens([bevPos, camerasPos]),
  });
}

/**
 * Tokens [B, N, E] of several sensors one after the other; those left out are passed over, and one alone is not copied.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function joinTokens(parts: readonly (TensorLike | undefined)[]): TensorLike {
  const given = parts.filter((part) => part !== undefined);
  const [first] = given;
  if (!first) throw expected('ERR_VALUE', 'tokens of at least one sensor', 'tokens', 'none');
  const [batch, , embed] = requireShape(first, ['B', 'N', 'E'], 'tokens') as [number, number, number];
  if (given.length === 1) return first;
  const tokens = given.map((part) => requireFloats(part, [batch, 'N', embed], 'tokens'));
  const count = tokens.reduce((sum, { shape }) => sum + shape[1]!, 0);
  const out: FloatTensor = floatTensor([batch, count, embed]);
  let to = 0;
  for (let b = 0; b < batch; ++b) {
    for (const { data, shape } of tokens) {
      const size = shape[1]! * embed;
      out.data.set(data.subarray(b * size, (b + 1) * size), to);
      to += size;
    }
  }
  return out;
}
