// `linear`, `deformable` and `multihead` in float64 and plain loops, as the contract defines them.
import { referenceAttention } from '../../lib/reference.js';
import { Tensor } from '../../lib/tensor.js';
import type { DeformableDevice, MultiheadDevice } from '../../lib/presets/index.js';
import type { TensorLike } from '../../lib/index.js';

const tensor = (values: ArrayLike<number>, shape: readonly number[]): Tensor =>
  new Tensor(Float32Array.from(values), shape, 'float32');

function linear(input: ArrayLike<number>, weight: TensorLike, bias?: TensorLike): Float64Array {
  const [outputs, inputs] = weight.shape as [number, number];
  const rows = input.length / inputs;
  const out = new Float64Array(rows * outputs);
  for (let row = 0; row < rows; ++row) {
    for (let o = 0; o < outputs; ++o) {
      let sum = bias ? bias.data[o]! : 0;
      for (let e = 0; e < inputs; ++e) sum += input[row * inputs + e]! * weight.data[o * inputs + e]!;
      out[row * outputs + o] = sum;
    }
  }
  return out;
}

const added = (a: TensorLike, b?: TensorLike): Float64Array =>
  Float64Array.from(a.data, (value, i) => value + (b ? b.data[i]! : 0));

export const referenceOperations: DeformableDevice & MultiheadDevice = {
  linear({ input, weight, bias }) {
    const shape = [...input.shape.slice(0, -1), weight.shape[0]!];
    return Promise.resolve(tensor(linear(input.data, weight, bias), shape));
  },

  deformable({ value, spatialShapes, samplingLocations, attentionWeights }) {
    const [batch, cells, heads, size] = value.shape as [number, number, number, number];
    const [, queries, , levels, points] = samplingLocations.shape as [number, number, number, number, number];
    const out = new Float64Array(batch * queries * heads * size);
    for (let sample = 0; sample < attentionWeights.data.length; ++sample) {
      const level = Math.floor(sample / points) % levels;
      const row = Math.floor(sample / (points * levels)); // (b, q, h)
      const [b, h] = [Math.floor(row / (queries * heads)), row % heads];
      const [height, width] = spatialShapes[level]!;
      const start = spatialShapes.slice(0, level).reduce((sum, [y, x]) => sum + y * x, 0);
      const x = samplingLocations.data[2 * sample]! * width - 0.5;
      const y = samplingLocations.data[2 * sample + 1]! * height - 0.5;
      for (const yi of [Math.floor(y), Math.floor(y) + 1]) {
        for (const xi of [Math.floor(x), Math.floor(x) + 1]) {
          if (yi < 0 || yi >= height || xi < 0 || xi >= width) continue;
          const share = (1 - Math.abs(y - yi)) * (1 - Math.abs(x - xi)) * attentionWeights.data[sample]!;
          const at = ((b * cells + start + yi * width + xi) * heads + h) * size;
          for (let d = 0; d < size; ++d) out[row * size + d]! += share * value.data[at + d]!;
        }
      }
    }
    return Promise.resolve(tensor(out, [batch, queries, heads * size]));
  },

  multihead(args) {
    const { query, key, value, heads, bias = [] } = args;
    const [batch, queries, embed] = query.shape as [number, number, number];
    const size = embed / heads;
    const project = (input: Float64Array, part: number): { data: Float32Array; shape: number[] } => {
      const rows = (from: TensorLike, width: number): TensorLike => ({
        data: (from.data as Float32Array).subarray(part * embed * width, (part + 1) * embed * width),
        shape: width === 1 ? [embed] : [embed, embed],
      });
      const inProjBias = args.inProjBias && rows(args.inProjBias, 1);
      const projected = linear(input, rows(args.inProjWeight, embed), inProjBias);
      const tokens = projected.length / embed / batch;
      const data = new Float32Array(projected.length);
      projected.forEach((x, i) => {
        const [b, n, h, d] = [
          Math.floor(i / (tokens * embed)),
          Math.floor(i / embed) % tokens,
          Math.floor((i % embed) / size),
          i % size,
        ];
        data[((b * heads + h) * tokens + n) * size + d] = x;
      });
      return { data, shape: [batch, heads, tokens, size] };
    };
    const { out } = referenceAttention({
      query: project(added(query, args.queryPos), 0),
      key: project(added(key, args.keyPos), 1),
      value: project(added(value), 2),
      bias,
    });
    const merged = new Float64Array(out.length);
    out.forEach((x, i) => {
      const [b, h, n, d] = [
        Math.floor(i / (heads * queries * size)),
        Math.floor(i / (queries * size)) % heads,
        Math.floor(i / size) % queries,
        i % size,
      ];
      merged[(b * queries + n) * embed + h * size + d] = x;
    });
    const result = linear(merged, args.outProjWeight, args.outProjBias);
    if (args.identity) query.data.forEach((x, i) => (result[i]! += x));
    return Promise.resolve(tensor(result, query.shape));
  },
};
