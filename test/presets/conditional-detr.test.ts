import {
  conditionalAttention,
  conditionalScale,
  conditionalSpatialQuery,
  mergeHeads,
  sineEmbedding,
  splitHeads,
} from '../../lib/presets/index.js';
import { compareNorm, F32_TOLERANCE } from '../../lib/compare.js';
import { expectError, random, relativeError, uniform } from '../support.js';
import { between, readVector, seeds, useDevice } from './presets.js';

/** As the published code has it, for a half of `half` channels: dim_t = 10000^(2·⌊i/2⌋/half), sin of even i, cos of odd i. */
function publishedEmbedding(x: number, y: number, half: number): number[] {
  const part = (value: number): number[] =>
    Array.from({ length: half }, (_, i) => {
      const turned = (value * 2 * Math.PI) / 10000 ** ((2 * Math.floor(i / 2)) / half);
      return i % 2 === 0 ? Math.sin(turned) : Math.cos(turned);
    });
  return [...part(y), ...part(x)];
}

describe('Conditional DETR', () => {
  const device = useDevice();

  test.each([256, 8])('the embedding of reference points in %i channels', (channels) => {
    const points = uniform(random(2), [2, 3, 2], 0, 1);
    const { data, shape } = sineEmbedding(channels === 256 ? { points } : { points, channels });
    expect(shape).toEqual([2, 3, channels]);
    const want = [0, 1, 2, 3, 4, 5].flatMap((i) =>
      publishedEmbedding(points.data[2 * i]!, points.data[2 * i + 1]!, channels / 2),
    );
    expect(relativeError(data, want)).toBeLessThan(1e-6);
  });

  test('the spatial query is the embedding times the transformation; in the first layer the embedding', () => {
    const points = uniform(random(3), [1, 4, 2], 0, 1);
    const transformation = uniform(random(4), [1, 4, 12]);
    const embedding = sineEmbedding({ points, channels: 12 });
    expect(conditionalSpatialQuery({ points, channels: 12 })).toEqual(embedding);
    const want = embedding.data.map((value, i) => value * transformation.data[i]!);
    expect(conditionalSpatialQuery({ points, channels: 12, transformation }).data).toEqual(want);
  });

  test.each(seeds)('heads split and merge, seed %i', (seed) => {
    const next = random(seed);
    const [batch, tokens, heads, size] = [1, 2, 3, 4].map(() => between(next, 1, 4)) as [
      number,
      number,
      number,
      number,
    ];
    const tensor = uniform(next, [batch, tokens, heads * size]);
    const split = splitHeads(tensor, heads);
    expect({ seed, shape: split.shape }).toEqual({ seed, shape: [batch, heads, tokens, size] });
    const at = (b: number, h: number, n: number, d: number): number =>
      split.data[((b * heads + h) * tokens + n) * size + d]!;
    tensor.data.forEach((value, i) => {
      const [b, n, e] = [
        Math.floor(i / (tokens * heads * size)),
        Math.floor(i / (heads * size)) % tokens,
        i % (heads * size),
      ];
      expect(at(b, Math.floor(e / size), n, e % size)).toBe(value);
    });
    expect(mergeHeads(split)).toEqual(tensor);
  });

  test.each(seeds)('equals attention over concatenated heads, seed %i', async (seed) => {
    const next = random(seed);
    const [batch, queries, keys, heads, size] = [
      between(next, 1, 2),
      between(next, 1, 9),
      between(next, 1, 30),
      between(next, 1, 4),
      4 * between(next, 1, 8),
    ];
    const embed = heads * size;
    const inputs = {
      contentQuery: uniform(next, [batch, queries, embed]),
      contentKey: uniform(next, [batch, keys, embed]),
      spatialQuery: uniform(next, [batch, queries, embed]),
      spatialKey: uniform(next, [batch, keys, embed]),
    };
    const value = uniform(next, [batch, heads, keys, size]);
    const { out } = await device().attention({ ...conditionalAttention({ heads, ...inputs }), value });

    const want = new Float64Array(batch * heads * queries * size);
    for (let b = 0; b < batch; ++b) {
      for (let h = 0; h < heads; ++h) {
        for (let q = 0; q < queries; ++q) {
          // The published code: each head's content and spatial channels side by side, scaled by (2D)^−½.
          const vector = (content: Float32Array, spatial: Float32Array, row: number): number[] => [
            ...content.subarray(row * embed + h * size, row * embed + (h + 1) * size),
            ...spatial.subarray(row * embed + h * size, row * embed + (h + 1) * size),
          ];
          const a = vector(inputs.contentQuery.data, inputs.spatialQuery.data, b * queries + q);
          const exps = Array.from({ length: keys }, (_, k) => {
            const c = vector(inputs.contentKey.data, inputs.spatialKey.data, b * keys + k);
            return Math.exp(a.reduce((sum, x, d) => sum + x * c[d]!, 0) * (2 * size) ** -0.5);
          });
          const sum = exps.reduce((x, y) => x + y, 0);
          for (let k = 0; k < keys; ++k)
            for (let d = 0; d < size; ++d)
              want[((b * heads + h) * queries + q) * size + d]! +=
                (exps[k]! / sum) * value.data[((b * heads + h) * keys + k) * size + d]!;
        }
      }
    }
    const error = relativeError(out.data, want);
    expect({ seed, ok: error < F32_TOLERANCE, error }).toEqual({ seed, ok: true, error });
  });

  test('the conformance vector', async () => {
    const { job, tensors, expected } = await readVector('conditional-detr.attention');
    const [{ queryFactors, keyFactors, scale }] = job.bias as [
      Record<'queryFactors' | 'keyFactors', string> & { scale: number },
    ];
    const tensor = (name: unknown) => mergeHeads(tensors[name as string]!);
    const attention = conditionalAttention({
      heads: tensors[job.query as string]!.shape[1]!,
      contentQuery: tensor(job.query),
      contentKey: tensor(job.key),
      spatialQuery: tensor(queryFactors),
      spatialKey: tensor(keyFactors),
    });
    expect(attention.scale).toBe(scale);
    expect(attention.bias[0].scale).toBe(scale);
    const { out, lse } = await device().attention({ ...attention, value: tensors[job.value as string]! });
    expect(compareNorm(out, expected.out!, F32_TOLERANCE)).toEqual([]);
    expect(compareNorm(lse, expected.lse!, F32_TOLERANCE, true)).toEqual([]);
  });

  test('is refused', async () => {
    const points = uniform(random(1), [1, 2, 2], 0, 1);
    await expectError(() => sineEmbedding({ points, channels: 6 }), 'ERR_VALUE', 'channels', '6');
    await expectError(() => sineEmbedding({ points, temperature: 0 }), 'ERR_VALUE', 'temperature', '0');
    await expectError(
      () => conditionalSpatialQuery({ points, channels: 8, transformation: points }),
      'ERR_SHAPE',
      '[1, 2, 8]',
      'transformation',
    );
    const tokens = uniform(random(1), [1, 2, 6]);
    const all = { contentQuery: tokens, contentKey: tokens, spatialQuery: tokens, spatialKey: tokens };
    await expectError(() => conditionalAttention({ heads: 4, ...all }), 'ERR_SHAPE', 'contentQuery', '6');
    await expectError(
      () => conditionalAttention({ heads: 2, ...all, spatialKey: points }),
      'ERR_SHAPE',
      'spatialKey',
    );
    await expectError(() => conditionalScale(0), 'ERR_VALUE', 'headDim', '0');
  });
});
