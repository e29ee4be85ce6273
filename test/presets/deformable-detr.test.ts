import { deformableAttention, deformableLocations, freshDeformable } from '../../lib/presets/index.js';
import type { DeformableAttentionArgs, Size } from '../../lib/presets/index.js';
import { bits, expectError, random, relativeError, uniform, type Dense } from '../support.js';
import { referenceOperations } from './operations.js';
import { between, seeds } from './presets.js';

type Shapes = [number, number][];

function randomLayer(seed: number, box: boolean) {
  const next = random(seed);
  const spatialShapes: Shapes = Array.from({ length: between(next, 1, 3) }, () => [
    between(next, 1, 6),
    between(next, 1, 6),
  ]);
  const [batch, queries, heads, points] = [
    between(next, 1, 2),
    between(next, 1, 5),
    between(next, 1, 3),
    between(next, 1, 4),
  ];
  const embed = heads * between(next, 1, 4);
  const levels = spatialShapes.length;
  const cells = spatialShapes.reduce((sum, [h, w]) => sum + h * w, 0);
  const layer = (outputs: number): { weight: Dense; bias: Dense } => ({
    weight: uniform(next, [outputs, embed]),
    bias: uniform(next, [outputs]),
  });
  const args = {
    query: uniform(next, [batch, queries, embed]),
    referencePoints: uniform(next, [batch, queries, levels, box ? 4 : 2], 0, 1),
    input: uniform(next, [batch, cells, embed]),
    spatialShapes,
    heads,
    points,
    samplingOffsets: layer(heads * levels * points * 2),
    attentionWeights: layer(heads * levels * points),
    valueProj: layer(embed),
    outputProj: layer(embed),
    paddingMask: bits(next, [batch, cells], 0.2),
  };
  return { args, batch, queries, heads, points, embed, levels, cells };
}

/** The layer in float64, query by query, as the paper's formula reads: Σ_heads W_h Σ_levels Σ_points A · W'_h x(p + Δp). */
function publishedLayer({
  args,
  batch,
  queries,
  heads,
  points,
  embed,
  levels,
  cells,
}: ReturnType<typeof randomLayer>) {
  const linear = (x: number[], { weight, bias }: { weight: Dense; bias: Dense }): number[] =>
    [...bias.data].map((start, o) =>
      x.reduce((sum, value, e) => sum + value * weight.data[o * embed + e]!, start),
    );
  const row = (tensor: Dense, i: number): number[] => [...tensor.data.subarray(i * embed, (i + 1) * embed)];
  const size = embed / heads;
  const boxSize = args.referencePoints.shape[3]!;
  const out: number[] = [];
  for (let b = 0; b < batch; ++b) {
    const values = Array.from({ length: cells }, (_, s) =>
      args.paddingMask.data[b * cells + s]
        ? new Array<number>(embed).fill(0)
        : linear(row(args.input, b * cells + s), args.valueProj),
    );
    for (let q = 0; q < queries; ++q) {
      const query = row(args.query, b * queries + q);
      const offsets = linear(query, args.samplingOffsets);
      const logits = linear(query, args.attentionWeights);
      const heard: number[] = [];
      for (let h = 0; h < heads; ++h) {
        const own = logits.slice(h * levels * points, (h + 1) * levels * points).map(Math.exp);
        const total = own.reduce((x, y) => x + y, 0);
        const sums = new Array<number>(size).fill(0);
        let first = 0;
        for (const [l, [height, width]] of args.spatialShapes.entries()) {
          const at = ((b * queries + q) * levels + l) * boxSize;
          const [x0, y0, w, hBox] = [0, 1, 2, 3].map((i) => args.referencePoints.data[at + i]!) as [
            number,
            number,
            number,
            number,
          ];
          for (let p = 0; p < points; ++p) {
            const i = (h * levels + l) * points + p;
            const [dx, dy] = [offsets[2 * i]!, offsets[2 * i + 1]!];
            // In pixels of the level, whose centres are at whole numbers.
            const x = boxSize === 2 ? x0 * width + dx - 0.5 : (x0 + (dx / points) * w * 0.5) * width - 0.5;
            const y =
              boxSize === 2 ? y0 * height + dy - 0.5 : (y0 + (dy / points) * hBox * 0.5) * height - 0.5;
            for (let yi = 0; yi < height; ++yi) {
              for (let xi = 0; xi < width; ++xi) {
                const near = Math.max(0, 1 - Math.abs(x - xi)) * Math.max(0, 1 - Math.abs(y - yi));
                const share = (near * own[l * points + p]!) / total;
                for (let d = 0; d < size; ++d)
                  sums[d]! += share * values[first + yi * width + xi]![h * size + d]!;
              }
            }
          }
          first += height * width;
        }
        heard.push(...sums);
      }
      out.push(...linear(heard, args.outputProj));
    }
  }
  return out;
}

describe('Deformable DETR', () => {
  test.each(seeds.flatMap((seed) => [false, true].map((box) => [seed, box] as const)))(
    'the whole layer, seed %i, boxes %p',
    async (seed, box) => {
      const layer = randomLayer(seed, box);
      const out = await deformableAttention(referenceOperations, layer.args);
      expect({ seed, shape: out.shape }).toEqual({ seed, shape: [layer.batch, layer.queries, layer.embed] });
      expect(relativeError(out.data, publishedLayer(layer))).toBeLessThan(1e-5);
    },
  );

  test('offsets are divided by the level’s width and height', () => {
    const spatialShapes: Size[] = [
      [10, 20],
      [5, 4],
    ];
    const offsets = { data: Float32Array.of(1, 1, 2, -1), shape: [1, 1, 1, 2, 1, 2] };
    const points = { data: Float32Array.of(0.5, 0.25, 0.5, 0.25), shape: [1, 1, 2, 2] };
    const { data, shape } = deformableLocations({ offsets, referencePoints: points, spatialShapes });
    expect(shape).toEqual([1, 1, 1, 2, 1, 2]);
    [0.55, 0.35, 1, 0.05].forEach((want, i) => expect(data[i]).toBeCloseTo(want, 6));
    const boxes = { data: Float32Array.of(0.5, 0.25, 0.2, 0.4, 0.5, 0.25, 0.2, 0.4), shape: [1, 1, 2, 4] };
    const inBoxes = deformableLocations({ offsets, referencePoints: boxes, spatialShapes }).data;
    [0.6, 0.45, 0.7, 0.05].forEach((want, i) => expect(inBoxes[i]).toBeCloseTo(want, 6));
  });

  test('a fresh layer: eight heads look along eight directions, point p at p cells’ distance', () => {
    const fresh = freshDeformable({ random: random(1) });
    const { data, shape } = fresh.samplingOffsets.bias;
    expect(shape).toEqual([256]);
    const directions = [
      [1, 0],
      [1, 1],
      [0, 1],
      [-1, 1],
      [-1, 0],
      [-1, -1],
      [0, -1],
      [1, -1],
    ];
    directions.forEach(([x, y], head) => {
      for (let level = 0; level < 4; ++level) {
        for (let point = 0; point < 4; ++point) {
          const at = ((head * 4 + level) * 4 + point) * 2;
          expect(data[at]).toBeCloseTo(x! * (point + 1), 5);
          expect(data[at + 1]).toBeCloseTo(y! * (point + 1), 5);
        }
      }
    });
    const zeros = [
      fresh.samplingOffsets.weight,
      fresh.attentionWeights.weight,
      fresh.attentionWeights.bias,
      fresh.valueProj.bias,
      fresh.outputProj.bias,
    ];
    expect(zeros.map((tensor) => tensor.data.some((value) => value !== 0))).toEqual(zeros.map(() => false));
    // Xavier-uniform of 256 × 256: within ±√(6/512), and spread over all of it.
    for (const { weight } of [fresh.valueProj, fresh.outputProj]) {
      const bound = Math.sqrt(6 / 512);
      const most = weight.data.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      expect(most).toBeLessThanOrEqual(bound * (1 + 1e-6));
      expect(most).toBeGreaterThan(0.999 * bound);
      const variance = weight.data.reduce((sum, value) => sum + value ** 2, 0) / weight.data.length;
      expect(variance / (bound ** 2 / 3)).toBeCloseTo(1, 1);
    }
  });

  test('a fresh layer goes where the layer takes weights', async () => {
    const fresh = freshDeformable({ embed: 8, heads: 2, levels: 1, points: 1, random: random(1) });
    const args: DeformableAttentionArgs = {
      ...fresh,
      query: uniform(random(2), [1, 3, 8]),
      referencePoints: uniform(random(3), [1, 3, 1, 2], 0, 1),
      input: uniform(random(4), [1, 12, 8]),
      spatialShapes: [[3, 4]],
      heads: 2,
      points: 1,
    };
    const out = await deformableAttention(referenceOperations, args);
    expect(out.shape).toEqual([1, 3, 8]);
    expect(out.data.some((value) => value !== 0)).toBe(true);
  });

  test('is refused', async () => {
    const { args } = randomLayer(1, false);
    const call = (change: Partial<DeformableAttentionArgs>) => () =>
      deformableAttention(referenceOperations, { ...args, ...change });
    await expectError(call({ heads: 0 }), 'ERR_VALUE', 'heads', '0');
    await expectError(call({ spatialShapes: [[2, 0]] }), 'ERR_VALUE', 'spatialShapes[0]', '[2, 0]');
    await expectError(call({ input: uniform(random(1), [1, 1, 1]) }), 'ERR_SHAPE', 'input');
    await expectError(call({ points: args.points + 1 }), 'ERR_SHAPE', 'samplingOffsets.weight');
    await expectError(
      call({ referencePoints: uniform(random(1), [...args.referencePoints.shape.slice(0, 3), 3]) }),
      'ERR_SHAPE',
      '2|4]',
      'referencePoints',
    );
    await expectError(call({ paddingMask: bits(random(1), [7, 7], 0) }), 'ERR_SHAPE', 'paddingMask');
    await expectError(
      () => freshDeformable({ embed: 10, heads: 4 }),
      'ERR_VALUE',
      'multiple of 4',
      'embed',
      '10',
    );
  });
});
