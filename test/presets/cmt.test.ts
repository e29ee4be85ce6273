import { cmtAttention, joinTokens, petrAttention } from '../../lib/presets/index.js';
import type { BiasTerm } from '../../lib/index.js';
import { compareNorm } from '../../lib/compare.js';
import { bits, expectError, random, relativeError, uniform, type Dense } from '../support.js';
import { referenceOperations as device } from './operations.js';
import { between, readVector, seeds } from './presets.js';

const [heads, embed] = [2, 8];
const weights = (next: () => number) => ({
  heads,
  inProjWeight: uniform(next, [3 * embed, embed]),
  inProjBias: uniform(next, [3 * embed]),
  outProjWeight: uniform(next, [embed, embed]),
  outProjBias: uniform(next, [embed]),
});
type Weights = ReturnType<typeof weights>;

const sum = (a: Dense, b: Dense): Dense => ({
  data: a.data.map((value, i) => value + b.data[i]!),
  shape: a.shape,
});

/** torch.nn.MultiheadAttention(q, k, v) in float64, with keys that nobody sees. */
function torchMultihead(q: Dense, k: Dense, v: Dense, w: Weights, ignore?: Uint8Array): Dense {
  const [batch, queries] = q.shape as [number, number];
  const keys = k.shape[1]!;
  const size = embed / heads;
  const project = (tensor: Dense, row: number, part: number): number[] =>
    Array.from({ length: embed }, (_, o) => {
      let value = w.inProjBias.data[part * embed + o]!;
      for (let e = 0; e < embed; ++e)
        value += tensor.data[row * embed + e]! * w.inProjWeight.data[(part * embed + o) * embed + e]!;
      return value;
    });
  const out = uniform(() => 0, [batch, queries, embed], 0, 0);
  for (let b = 0; b < batch; ++b) {
    const projected = Array.from(
      { length: keys },
      (_, j) => [project(k, b * keys + j, 1), project(v, b * keys + j, 2)] as const,
    );
    for (let i = 0; i < queries; ++i) {
      const query = project(q, b * queries + i, 0);
      const heard = new Array<number>(embed).fill(0);
      for (let h = 0; h < heads; ++h) {
        const scores = projected.map(([key], j) => {
          if (ignore?.[b * keys + j]) return 0;
          let score = 0;
          for (let d = h * size; d < (h + 1) * size; ++d) score += query[d]! * key[d]!;
          return Math.exp(score / Math.sqrt(size));
        });
        const total = scores.reduce((x, y) => x + y, 0);
        projected.forEach(([, value], j) => {
          for (let d = h * size; d < (h + 1) * size; ++d) heard[d]! += (scores[j]! / total) * value[d]!;
        });
      }
      for (let o = 0; o < embed; ++o) {
        const start = w.outProjBias.data[o]!;
        out.data[(b * queries + i) * embed + o] = heard.reduce(
          (x, value, e) => x + value * w.outProjWeight.data[o * embed + e]!,
          start,
        );
      }
    }
  }
  return out;
}

const TOLERANCE = 1e-5;

describe('PETR and CMT', () => {
  test.each(seeds)(
    'cross-attention: positions on query and key, identity on the output, seed %i',
    async (seed) => {
      const next = random(seed);
      const [batch, queries, keys] = [between(next, 1, 2), between(next, 1, 6), between(next, 7, 12)];
      const w = weights(next);
      const [query, queryPos] = [
        uniform(next, [batch, queries, embed]),
        uniform(next, [batch, queries, embed]),
      ];
      const [key, keyPos] = [uniform(next, [batch, keys, embed]), uniform(next, [batch, keys, embed])];
      const ignore = bits(next, [batch, keys], 0.3);
      for (let b = 0; b < batch; ++b) ignore.data[b * keys] = 0; // somebody is seen
      const bias: BiasTerm[] = [{ type: 'padding', ignore }];
      const out = await petrAttention(device, { query, queryPos, key, keyPos, bias, ...w });
      // A value that is left out is the key without its position.
      const want = sum(query, torchMultihead(sum(query, queryPos), sum(key, keyPos), key, w, ignore.data));
      expect({ seed, problems: compareNorm(out, want, TOLERANCE) }).toEqual({ seed, problems: [] });
    },
  );

  test('self-attention: the key is the query, and so is its position', async () => {
    const next = random(1);
    const w = weights(next);
    const [query, queryPos] = [uniform(next, [1, 5, embed]), uniform(next, [1, 5, embed])];
    const out = await petrAttention(device, { query, queryPos, ...w });
    const at = sum(query, queryPos);
    expect(relativeError(out.data, sum(query, torchMultihead(at, at, query, w)).data)).toBeLessThan(
      TOLERANCE,
    );
  });

  test('a key of another length gets no position of the query’s', async () => {
    const next = random(2);
    const w = weights(next);
    const [query, queryPos, key] = [
      uniform(next, [1, 5, embed]),
      uniform(next, [1, 5, embed]),
      uniform(next, [1, 7, embed]),
    ];
    const out = await petrAttention(device, { query, queryPos, key, ...w });
    const want = sum(query, torchMultihead(sum(query, queryPos), key, key, w));
    expect(relativeError(out.data, want.data)).toBeLessThan(TOLERANCE);
  });

  test('identity: the query, another tensor, or none', async () => {
    const next = random(3);
    const w = weights(next);
    const [query, identity] = [uniform(next, [1, 5, embed]), uniform(next, [1, 5, embed])];
    const want = torchMultihead(query, query, query, w);
    const outs = [
      [await petrAttention(device, { query, ...w }), sum(query, want)],
      [await petrAttention(device, { query, identity, ...w }), sum(identity, want)],
      [await petrAttention(device, { query, identity: false, ...w }), want],
    ] as const;
    for (const [out, expected] of outs)
      expect(relativeError(out.data, expected.data)).toBeLessThan(TOLERANCE);
  });

  test.each([
    ['LiDAR and cameras', ['bev', 'cameras']],
    ['LiDAR alone', ['bev']],
    ['cameras alone', ['cameras']],
  ])('CMT’s cross-attention over %s', async (_, sensors) => {
    const next = random(4);
    const w = weights(next);
    const [query, queryPos] = [uniform(next, [2, 4, embed]), uniform(next, [2, 4, embed])];
    const all = {
      bev: uniform(next, [2, 6, embed]),
      bevPos: uniform(next, [2, 6, embed]),
      cameras: uniform(next, [2, 9, embed]),
      camerasPos: uniform(next, [2, 9, embed]),
    };
    const given = Object.fromEntries(
      Object.entries(all).filter(([name]) => sensors.includes(name.replace('Pos', ''))),
    );
    const out = await cmtAttention(device, { query, queryPos, ...given, ...w });
    // Image after image: the sensors' tokens side by side.
    const side = (bev: Dense, cameras: Dense): Dense => {
      const parts = [
        ...(sensors.includes('bev') ? [bev] : []),
        ...(sensors.includes('cameras') ? [cameras] : []),
      ];
      const data = [0, 1].flatMap((b) =>
        parts.flatMap((part) => [
          ...part.data.subarray((b * part.data.length) / 2, ((b + 1) * part.data.length) / 2),
        ]),
      );
      return { data: Float32Array.from(data), shape: [2, data.length / embed / 2, embed] };
    };
    const key = side(all.bev, all.cameras);
    const want = sum(
      query,
      torchMultihead(sum(query, queryPos), sum(key, side(all.bevPos, all.camerasPos)), key, w),
    );
    expect(relativeError(out.data, want.data)).toBeLessThan(TOLERANCE);
  });

  test.each(['multihead-full', 'multihead-bare', 'multihead-no-qkv-bias', 'multihead-modality-padding'])(
    'the conformance vector %s',
    async (name) => {
      const { job, tensors, expected } = await readVector(name);
      const { bias = [], heads: count, identity, ...rest } = job;
      const tensor = (field: unknown): unknown =>
        typeof field === 'string' && tensors[field] !== undefined ? tensors[field] : field;
      const named = (value: unknown): unknown => {
        if (Array.isArray(value)) return value.map(named);
        if (typeof value !== 'object' || value === null) return tensor(value);
        return Object.fromEntries(
          Object.entries(value).map(([key, field]) => [key, key === 'type' ? field : named(field)]),
        );
      };
      const { op, tensors: file, ...fields } = named(rest) as Record<string, unknown>;
      expect([op, file]).toEqual(['multihead', 'tensors.safetensors']);
      const out = await petrAttention(device, {
        ...(fields as unknown as Parameters<typeof petrAttention>[1]),
        heads: count as number,
        bias: named(bias) as BiasTerm[],
        ...(identity === true ? {} : { identity: false as const }),
      });
      expect(compareNorm(out, expected.out!, TOLERANCE)).toEqual([]);
    },
  );

  test('is refused', async () => {
    const next = random(1);
    const tokens = uniform(next, [1, 2, embed]);
    expect(joinTokens([undefined, tokens])).toBe(tokens);
    await expectError(() => joinTokens([undefined]), 'ERR_VALUE', 'tokens', 'none');
    await expectError(
      () => joinTokens([tokens, uniform(next, [2, 2, embed])]),
      'ERR_SHAPE',
      '[1, N, 8]',
      'tokens',
    );
    await expectError(
      () =>
        petrAttention(device, { query: tokens, identity: uniform(next, [1, 3, embed]), ...weights(next) }),
      'ERR_SHAPE',
      '[1, 2, 8]',
      'identity',
    );
  });
});
