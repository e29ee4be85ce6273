/**
 * Swin V2: Z. Liu, H. Hu, Y. Lin, Z. Yao, Z. Xie, Y. Wei, J. Ning, Y. Cao, Z. Zhang, L. Dong, F. Wei, B. Guo, "Swin
 * Transformer V2: Scaling Up Capacity and Resolution", CVPR 2022. Windows, shift and mask are Swin's (swin.ts); the table
 * comes from an MLP over log-spaced offsets, and the attention is a scaled cosine.
 */
import { expected } from '../errors.js';
import type { TensorLike } from '../tensor.js';
import { floatTensor, requireFloats, requireIntegers, type FloatTensor, type Size } from './check.js';
import { relativePositionRows } from './relative-position.js';

/** The most that a head's cosine is multiplied by. */
const MAX_LOGIT_SCALE = 100;
/** Below it a vector's length counts as this, as in `torch.nn.functional.normalize`. */
const LEAST_NORM = 1e-12;

/** Arguments of `swinV2Coordinates`. */
export interface SwinV2CoordinatesArgs {
  /** [Mh, Mw] in tokens */
  window: Size;
  /** [Mh, Mw] of the window that the MLP was trained with, where it is another; [0, 0] counts as none, as in checkpoints */
  pretrainedWindow?: Size | undefined;
}

/**
 * The log-spaced offsets (Δy, Δx) [(2Mh−1)(2Mw−1), 2] that the MLP takes: with x = 8·Δ / (M − 1), M the (pre-trained)
 * window, sign(x)·log2(1 + |x|) / log2(8).
 *
 * @throws AttentionBiasError ERR_VALUE
 */
export function swinV2Coordinates({ window, pretrainedWindow }: SwinV2CoordinatesArgs): FloatTensor {
  const [height, width] = requireIntegers(window, 2, 1, 'window') as [number, number];
  const trained = requireIntegers(pretrainedWindow ?? [0, 0], 2, 0, 'pretrainedWindow');
  const [trainedHeight, trainedWidth] = trained[0]! > 0 ? trained : [height, width];
  const log = (offset: number, size: number): number => {
    if (offset === 0) return 0; // of a window of one token, too
    const x = (8 * offset) / (size - 1);
    return (Math.sign(x) * Math.log2(1 + Math.abs(x))) / 3;
  };
  for (const [axis, size] of [trainedHeight!, trainedWidth!].entries()) {
    if (size < 2 && [height, width][axis]! > 1)
      throw expected('ERR_VALUE', 'a window of 2 or more', `pretrainedWindow[${axis}]`, String(size));
  }
  const out = floatTensor([relativePositionRows([height, width], false), 2]);
  let i = 0;
  for (let y = 1 - height; y < height; ++y) {
    for (let x = 1 - width; x < width; ++x) {
      out.data[i++] = log(y, trainedHeight!);
      out.data[i++] = log(x, trainedWidth!);
    }
  }
  return out;
}

/** Arguments of `swinV2Table`. */
export interface SwinV2TableArgs extends SwinV2CoordinatesArgs {
  /** float32 [hidden, 2]: `cpb_mlp.0.weight` of a checkpoint, hidden 512 */
  weight1: TensorLike;
  /** float32 [hidden]: `cpb_mlp.0.bias` */
  bias1: TensorLike;
  /** float32 [heads, hidden]: `cpb_mlp.2.weight`, which has no bias */
  weight2: TensorLike;
}

/**
 * Swin V2's continuous relative position bias as a table [(2Mh−1)(2Mw−1), heads] for `swinTerms`:
 * 16·sigmoid(MLP(coordinates)), the MLP of two layers with a ReLU between them. Made once for a window, after loading.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function swinV2Table({ weight1, bias1, weight2, ...args }: SwinV2TableArgs): FloatTensor {
  const coordinates = swinV2Coordinates(args);
  const first = requireFloats(weight1, ['hidden', 2], 'weight1');
  const hidden = first.shape[0]!;
  const bias = requireFloats(bias1, [hidden], 'bias1').data;
  const second = requireFloats(weight2, ['heads', hidden], 'weight2');
  const heads = second.shape[0]!;
  const table = floatTensor([coordinates.shape[0]!, heads]);
  const layer = new Float64Array(hidden);
  for (let row = 0; row < table.shape[0]!; ++row) {
    const [y, x] = [coordinates.data[2 * row]!, coordinates.data[2 * row + 1]!];
    for (let i = 0; i < hidden; ++i)
      layer[i] = Math.max(0, first.data[2 * i]! * y + first.data[2 * i + 1]! * x + bias[i]!);
    for (let head = 0; head < heads; ++head) {
      let sum = 0;
      for (let i = 0; i < hidden; ++i) sum += second.data[head * hidden + i]! * layer[i]!;
      table.data[row * heads + head] = 16 / (1 + Math.exp(-sum));
    }
  }
  return table;
}

/** x / max(‖x‖, 1e-12) along the last dimension, times `factor(head)`. */
function normalized(
  tensor: TensorLike,
  name: string,
  factor: (head: number, heads: number) => number,
): FloatTensor {
  const { data, shape } = requireFloats(tensor, ['B', 'heads', 'N', 'D'], name);
  const [, heads, tokens, size] = shape as [number, number, number, number];
  const out = floatTensor(shape);
  for (let row = 0; row < data.length / size; ++row) {
    const vector = data.subarray(row * size, (row + 1) * size);
    let squares = 0;
    for (const value of vector) squares += value * value;
    const by = factor(Math.floor(row / tokens) % heads, heads) / Math.max(Math.sqrt(squares), LEAST_NORM);
    for (let d = 0; d < size; ++d) out.data[row * size + d] = vector[d]! * by;
  }
  return out;
}

/** Arguments of `swinV2Cosine`. */
export interface SwinV2CosineArgs {
  /** float32 [B·nW, heads, Mh·Mw, D] in host memory */
  query: TensorLike;
  /** the same */
  key: TensorLike;
  /** float32 [heads] (or a checkpoint's [heads, 1, 1]): `logit_scale`, a logarithm; a fresh one is ln 10 */
  logitScale: TensorLike;
}

/** Goes to `device.attention` as it is. */
export interface SwinV2Cosine {
  query: FloatTensor;
  key: FloatTensor;
  scale: 1;
}

/**
 * Swin V2's scaled cosine attention: query and key of length 1, the query times min(exp(logitScale), 100) of its head, and
 * no other scale.
 *
 * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE
 */
export function swinV2Cosine({ query, key, logitScale }: SwinV2CosineArgs): SwinV2Cosine {
  const scaled = normalized(query, 'query', (head, heads) => {
    const pattern = logitScale.shape.length === 3 ? [heads, 1, 1] : [heads];
    const { data } = requireFloats(logitScale, pattern, 'logitScale');
    return Math.min(Math.exp(data[head]!), MAX_LOGIT_SCALE);
  });
  return { query: scaled, key: normalized(key, 'key', () => 1), scale: 1 };
}
