/** Channels to heads and back, as every multi-head attention has them. */
import { expected } from '../errors.js';
import type { TensorLike } from '../tensor.js';
import { floatTensor, requireFloats, requireInteger, type FloatTensor } from './check.js';

/**
 * [B, N, heads·D] to [B, heads, N, D]: what `device.attention` takes.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function splitHeads(tensor: TensorLike, heads: number, name = 'tensor'): FloatTensor {
  const { data, shape } = requireFloats(tensor, ['B', 'N', 'E'], name);
  const [batch, tokens, embed] = shape as [number, number, number];
  requireInteger(heads, 1, 'heads');
  if (embed % heads !== 0)
    throw expected('ERR_SHAPE', `a multiple of ${heads} channels`, name, String(embed));
  const size = embed / heads;
  const out = floatTensor([batch, heads, tokens, size]);
  let to = 0;
  for (let b = 0; b < batch; ++b) {
    for (let head = 0; head < heads; ++head) {
      for (let token = 0; token < tokens; ++token, to += size) {
        const from = (b * tokens + token) * embed + head * size;
        out.data.set(data.subarray(from, from + size), to);
      }
    }
  }
  return out;
}

/**
 * [B, heads, N, D] to [B, N, heads·D]: what an output projection takes.
 *
 * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE
 */
export function mergeHeads(tensor: TensorLike, name = 'tensor'): FloatTensor {
  const { data, shape } = requireFloats(tensor, ['B', 'heads', 'N', 'D'], name);
  const [batch, heads, tokens, size] = shape as [number, number, number, number];
  const out = floatTensor([batch, tokens, heads * size]);
  let from = 0;
  for (let b = 0; b < batch; ++b) {
    for (let head = 0; head < heads; ++head) {
      for (let token = 0; token < tokens; ++token, from += size) {
        out.data.set(data.subarray(from, from + size), ((b * tokens + token) * heads + head) * size);
      }
    }
  }
  return out;
}
