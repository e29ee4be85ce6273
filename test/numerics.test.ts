/** Numbers that are hard on float32: not-numbers that must show, long rows, great and small biases. */
import { openCpu } from '../lib/open.js';
import { native } from '../lib/native.js';
import { referenceAttention, referenceBias } from '../lib/reference.js';
import { random, uniform, type Dense } from './support.js';
import type { AttentionArgs, Device } from '../lib/device.js';
import type { BiasTerm } from '../lib/terms.js';

const tensor = (shape: number[], value: (i: number) => number): Dense => ({
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => value(i)),
  shape,
});
/** One query and head, head dim 1, scale 1: a key's score is the key. */
const oneQuery = (
  keys: number,
  key: (k: number) => number,
  value: (k: number) => number,
  bias: BiasTerm[] = [],
) => ({
  query: tensor([1, 1, 1, 1], () => 1),
  key: tensor([1, 1, keys, 1], key),
  value: tensor([1, 1, keys, 1], value),
  scale: 1,
  bias,
});

const places = native()
  .info()
  .isas.flatMap((isa) => [1, 2, 3].map((threads) => ({ isa, threads })));

describe.each(places)('$isa on $threads threads', ({ isa, threads }) => {
  let device: Device;
  beforeAll(() => {
    device = openCpu({ isa, threads });
  });
  afterAll(() => {
    device.close();
  });
  const one = async (args: AttentionArgs): Promise<{ out: number; lse: number }> => {
    const { out, lse } = await device.attention(args);
    return { out: out.data[0]!, lse: lse.data[0]! };
  };

  test('a NaN of a visible key shows, also where its part of the keys weighs nothing', async () => {
    const key = await one(
      oneQuery(
        4096,
        (k) => (k === 0 ? NaN : k >= 2048 ? 200 : 0),
        () => 1,
      ),
    );
    expect(key).toEqual({ out: NaN, lse: NaN });
    const value = await one(
      oneQuery(
        4096,
        (k) => (k < 1024 ? 0 : 200),
        (k) => (k === 0 ? NaN : 1),
      ),
    );
    expect(value.out).toBe(NaN);
    expect(value.lse).toBeCloseTo(200 + Math.log(3072), 3);
  });

  test.each([-16, -18, -40, 40])('a spatial weight of %d', async (weight) => {
    const weights = tensor([1, 1], () => weight);
    const centers = tensor([1, 1, 2], () => 5);
    const segments = [{ start: 0, grid: [10, 10] as const, centers, radius: 1e6, weights }];
    const args = oneQuery(
      100,
      (k) => k * 0.001,
      (k) => k,
      [{ type: 'spatial', segments }],
    );
    const reference = referenceAttention(args);
    const result = await one(args);
    expect(result.out).toBeCloseTo(reference.out[0]!, 3);
    expect(result.lse).toBeCloseTo(reference.lse[0]!, 3);
  });

  test.each([56_400, 300_000])('%d keys that count alike', async (keys) => {
    for (const value of [0.7, 1 / 3, 0.012345]) {
      const { out } = await one(
        oneQuery(
          keys,
          () => 0,
          () => value,
        ),
      );
      expect(Math.abs(out / Math.fround(value) - 1)).toBeLessThan(2e-6);
    }
  });

  test('biases beyond float32 together: hidden stays hidden, visible stays visible', async () => {
    const dense = (...data: number[]): BiasTerm => ({
      type: 'dense',
      bias: { data: Float32Array.from(data), shape: [1, 1, 1, 2] },
    });
    const padding: BiasTerm = { type: 'padding', ignore: { data: Uint8Array.of(1, 0), shape: [1, 2] } };
    const least = -3.4028234663852886e38;
    const attend = async (bias: BiasTerm[]): Promise<number> =>
      (
        await one(
          oneQuery(
            2,
            () => 1,
            (k) => k + 1,
            bias,
          ),
        )
      ).out;
    const shape = [1, 1, 1, 2] as const;
    expect(await attend([dense(3e38, 0), dense(3e38, 0), padding])).toBe(2);
    expect([...(await device.bias({ shape, bias: [dense(3e38, 0), dense(3e38, 0), padding] })).data]).toEqual(
      [-Infinity, 0],
    );
    expect(await attend([dense(least, least), dense(least, least)])).toBe(1.5);
    expect([...(await device.bias({ shape, bias: [dense(least, 0), dense(least, 0)] })).data]).toEqual([
      Math.fround(least),
      0,
    ]);
    expect(await attend([dense(3e38, 0), dense(3e38, 0)])).toBe(1);
  });

  test('a bias is within 2 ulp of its largest summand', async () => {
    const next = random(11);
    const shape = [1, 2, 40, 300] as const;
    const centers = tensor([1, 40, 2], (i) => next() * (i % 2 ? 20 : 15));
    const cases: BiasTerm[][] = [
      [
        {
          type: 'lowRank',
          queryFactors: uniform(next, [1, 2, 40, 64]),
          keyFactors: uniform(next, [1, 1, 300, 64]),
        },
      ],
      [
        {
          type: 'spatial',
          strength: 500,
          segments: [{ start: 0, grid: [15, 20], centers, radius: 9.5, weights: uniform(next, [1, 40]) }],
        },
      ],
      [1, 2, 3].map(() => ({ type: 'dense', bias: uniform(next, [1, 1, 40, 300]) })),
    ];
    for (const bias of cases) {
      const got = (await device.bias({ shape, bias })).data;
      const each = bias.map((term) => referenceBias({ shape, bias: [term] }));
      const want = referenceBias({ shape, bias });
      want.forEach((value, i) => {
        const largest = Math.max(...each.map((summand) => Math.abs(summand[i]!)));
        const ulp = 2 ** (Math.floor(Math.log2(largest)) - 23);
        if (!(Math.abs(got[i]! - value) <= Math.max(1e-6, 2 * ulp)))
          throw new Error(`element ${i}: ${got[i]}, not ${value}`);
      });
    }
  });
});
