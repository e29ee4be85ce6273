/**
 * Multi-scale deformable attention: X. Zhu, W. Su, L. Lu, B. Li, X. Wang, J. Dai, "Deformable DETR: Deformable Transformers
 * for End-to-End Object Detection", ICLR 2021. Each head of a query reads a few points of each level's map round the query's
 * reference point; where they lie and how much they weigh are linear in the query.
 */
import type { Device } from '../device.js';
import { expected } from '../errors.js';
import type { Tensor, TensorLike } from '../tensor.js';
import {
  floatTensor,
  requireArray,
  requireFloats,
  requireInteger,
  requireIntegers,
  requireShape,
  type FloatTensor,
  type Size,
} from './check.js';

/** What the layer takes of a `Device`. */
export type DeformableDevice = Pick<Device, 'linear' | 'deformable'>;

/** Parameters of a linear layer, torch.nn.Linear’s. */
export interface Linear {
  /** float32 [outputs, inputs] */
  weight: TensorLike;
  /** float32 [outputs] */
  bias: TensorLike;
}

/** The layer's parameters, by the names that a checkpoint has for them. H heads, L levels, P points. */
export interface DeformableWeights {
  /** `sampling_offsets`: E to H·L·P·2, (x, y) last, in cells of the level */
  samplingOffsets: Linear;
  /** `attention_weights`: E to H·L·P, before a softmax over L·P */
  attentionWeights: Linear;
  /** `value_proj`: E to E */
  valueProj: Linear;
  /** `output_proj`: E to E */
  outputProj: Linear;
}

/** Arguments of `deformableAttention`. */
export interface DeformableAttentionArgs extends DeformableWeights {
  /** float32 [B, Q, E]: queries, with their positions already added */
  query: TensorLike;
  /**
   * float32 [B, Q, L, 2] (x, y) in [0, 1] of the padded image, or boxes [B, Q, L, 4] (x, y, w, h): points then lie
   * in units of half a box divided by P
   */
  referencePoints: TensorLike;
  /** float32 [B, S, E]: the levels' maps, flattened and joined, S = Σ h·w */
  input: TensorLike;
  /** [h, w] of each level */
  spatialShapes: readonly Size[];
  heads: number;
  /** sampling points a head and level, P; default 4 */
  points?: number | undefined;
  /** uint8 [B, S]: not 0 where the image is padding; the value there counts as 0 */
  paddingMask?: TensorLike | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * The whole layer: projections, sampling locations, softmax, sampling, output projection. Tensors are in host memory.
 *
 * @returns float32 [B, Q, E]
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE, and those of the operations
 */
export async function deformableAttention(
  device: DeformableDevice,
  args: DeformableAttentionArgs,
): Promise<Tensor> {
  const { query, input, signal } = args;
  const heads = requireInteger(args.heads, 1, 'heads');
  const points = requireInteger(args.points ?? 4, 1, 'points');
  const [batch, queries, embed] = requireShape(query, ['B', 'Q', 'E'], 'query') as [number, number, number];
  if (embed % heads !== 0)
    throw expected('ERR_SHAPE', `a multiple of ${heads} channels`, 'query', String(embed));
  const spatialShapes = requireArray(args.spatialShapes, 'spatialShapes').map(
    (shape, i) => requireIntegers(shape, 2, 1, `spatialShapes[${i}]`) as [number, number],
  );
  const levels = spatialShapes.length;
  const cells = spatialShapes.reduce((sum, [height, width]) => sum + height * width, 0);
  requireShape(input, [batch, cells, embed], 'input');

  const apply = (from: TensorLike, { weight, bias }: Linear): Promise<Tensor> =>
    device.linear({ input: from, weight, bias, signal });
  using offsets = await apply(query, args.samplingOffsets);
  using logits = await apply(query, args.attentionWeights);
  using value = await apply(input, args.valueProj);
  const layout = [batch, queries, heads, levels, points];
  const samplingLocations = deformableLocations({
    offsets: reshaped(offsets, [...layout, 2], 'samplingOffsets.weight'),
    referencePoints: args.referencePoints,
    spatialShapes,
  });
  const attentionWeights = reshaped(logits, layout, 'attentionWeights.weight');
  softmaxRows(attentionWeights.data, levels * points);
  if (args.paddingMask) {
    requireShape(args.paddingMask, [batch, cells], 'paddingMask');
    const { data } = args.paddingMask;
    for (let i = 0; i < data.length; ++i) if (data[i] !== 0) value.data.fill(0, i * embed, (i + 1) * embed);
  }
  using sampled = await device.deformable({
    value: reshaped(value, [batch, cells, heads, embed / heads], 'valueProj.weight'),
    spatialShapes,
    samplingLocations,
    attentionWeights,
    signal,
  });
  // Awaited here: `sampled` is disposed of when this function ends.
  return await apply(sampled, args.outputProj);
}

/** A layer's outputs seen in the layout of heads, levels and points; the name is the weight's that made them. */
function reshaped(
  { data, shape }: Tensor,
  layout: readonly number[],
  name: string,
): { data: Float32Array; shape: readonly number[] } {
  const wanted = layout.slice(2).reduce((product, size) => product * size, 1);
  if (shape[2] !== wanted) throw expected('ERR_SHAPE', `${wanted} outputs`, name, String(shape[2]));
  return { data, shape: layout };
}

function softmaxRows(data: Float32Array, size: number): void {
  for (let begin = 0; begin < data.length; begin += size) {
    const row = data.subarray(begin, begin + size);
    let most = -Infinity;
    for (const value of row) most = Math.max(most, value);
    let sum = 0;
    for (const value of row) sum += Math.exp(value - most);
    for (let i = 0; i < size; ++i) row[i] = Math.exp(row[i]! - most) / sum;
  }
}

/** Arguments of `deformableLocations`. H heads, L levels, P points. */
export interface DeformableLocationsArgs {
  /** float32 [B, Q, H, L, P, 2] (x, y) */
  offsets: TensorLike;
  /** float32 [B, Q, L, 2 | 4] */
  referencePoints: TensorLike;
  /** [h, w] of each level */
  spatialShapes: readonly Size[];
}

/**
 * Sampling locations [B, Q, H, L, P, 2] (x, y) in [0, 1]: reference point + offset / (w, h) of the level, or for a box its
 * centre + offset / P · (its width, height) / 2.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function deformableLocations(args: DeformableLocationsArgs): FloatTensor {
  const { spatialShapes } = args;
  const levels = spatialShapes.length;
  const offsets = requireFloats(args.offsets, ['B', 'Q', 'H', levels, 'P', 2], 'offsets');
  const [batch, queries, heads, , points] = offsets.shape as [number, number, number, number, number];
  const reference = requireFloats(args.referencePoints, [batch, queries, levels, '2|4'], 'referencePoints');
  const size = reference.shape[3]!;
  if (size !== 2 && size !== 4)
    throw expected(
      'ERR_SHAPE',
      `[${batch}, ${queries}, ${levels}, 2|4]`,
      'referencePoints',
      `[${reference.shape.join(', ')}]`,
    );
  const out = floatTensor(offsets.shape);
  let i = 0;
  for (let row = 0; row < batch * queries; ++row) {
    for (let head = 0; head < heads; ++head) {
      for (const [level, [height, width]] of spatialShapes.entries()) {
        const at = (row * levels + level) * size;
        const [x, y, w, h] = reference.data.subarray(at, at + size);
        const [perX, perY] = size === 2 ? [1 / width, 1 / height] : [w! / (2 * points), h! / (2 * points)];
        for (let point = 0; point < points; ++point, i += 2) {
          out.data[i] = x! + offsets.data[i]! * perX;
          out.data[i + 1] = y! + offsets.data[i + 1]! * perY;
        }
      }
    }
  }
  return out;
}

/** Arguments of `freshDeformable`. */
export interface FreshDeformableArgs {
  /** E, a multiple of `heads`; default 256 */
  embed?: number | undefined;
  /** default 8 */
  heads?: number | undefined;
  /** default 4 */
  levels?: number | undefined;
  /** default 4 */
  points?: number | undefined;
  /** uniform in [0, 1); default Math.random */
  random?: (() => number) | undefined;
}

/**
 * The layer before training, as published: each head looks along a direction of its own (head h at the angle 2πh/H, on the
 * square round the reference point), its point p at p cells' distance (p = 1 … P); all points weigh the same; the
 * projections are Xavier-uniform with bias 0.
 *
 * @throws AttentionBiasError ERR_VALUE
 */
export function freshDeformable(
  args: FreshDeformableArgs = {},
): Record<keyof DeformableWeights, { weight: FloatTensor; bias: FloatTensor }> {
  const embed = requireInteger(args.embed ?? 256, 1, 'embed');
  const heads = requireInteger(args.heads ?? 8, 1, 'heads');
  const levels = requireInteger(args.levels ?? 4, 1, 'levels');
  const points = requireInteger(args.points ?? 4, 1, 'points');
  const random = args.random ?? Math.random;
  if (embed % heads !== 0) throw expected('ERR_VALUE', `a multiple of ${heads}`, 'embed', String(embed));
  const zeros = (outputs: number): { weight: FloatTensor; bias: FloatTensor } => ({
    weight: floatTensor([outputs, embed]),
    bias: floatTensor([outputs]),
  });
  const xavier = (): { weight: FloatTensor; bias: FloatTensor } => {
    const layer = zeros(embed);
    const bound = Math.sqrt(6 / (embed + embed));
    layer.weight.data.forEach((_, i) => (layer.weight.data[i] = (2 * random() - 1) * bound));
    return layer;
  };
  const samplingOffsets = zeros(heads * levels * points * 2);
  let i = 0;
  for (let head = 0; head < heads; ++head) {
    const angle = (2 * Math.PI * head) / heads;
    const [x, y] = [Math.cos(angle), Math.sin(angle)];
    const longest = Math.max(Math.abs(x), Math.abs(y));
    for (let level = 0; level < levels; ++level) {
      for (let point = 1; point <= points; ++point) {
        samplingOffsets.bias.data[i++] = (x / longest) * point;
        samplingOffsets.bias.data[i++] = (y / longest) * point;
      }
    }
  }
  return {
    samplingOffsets,
    attentionWeights: zeros(heads * levels * points),
    valueProj: xavier(),
    outputProj: xavier(),
  };
}
