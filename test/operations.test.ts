import { open } from '../lib/index.js';
import { native } from '../lib/native.js';
import { referenceAttention, referenceBias } from '../lib/reference.js';
import {
  attentionInputs,
  count,
  narrowed,
  random,
  relativeError,
  roundedToBfloat16,
  termCases,
  uniform,
  widened,
} from './support.js';
import type { Device } from '../lib/index.js';

const seed = 20240;
const cases = termCases(seed);
const isas = native().info().isas;

/** A device on an instruction set level. */
async function openOn(isa: string, threads: number): Promise<Device> {
  process.env.ATTENTION_BIAS_ISA = isa;
  try {
    return await open({ device: 'cpu', threads });
  } finally {
    delete process.env.ATTENTION_BIAS_ISA;
  }
}

describe.each(isas)('on %s', (isa) => {
  test.each(Object.entries(cases))(
    'attention with %s agrees with the float64 reference',
    async (_, { shape, bias }) => {
      using device = await openOn(isa, 2);
      expect(device.info).toMatchObject({ isa });
      const args = { ...attentionInputs(seed, shape), bias };
      const { out, lse } = await device.attention(args);
      const reference = referenceAttention(args);
      expect(out.shape).toEqual([...shape.slice(0, 3), 20]);
      expect(lse.shape).toEqual(shape.slice(0, 3));
      expect(relativeError(out.data, reference.out)).toBeLessThan(2e-6);
      expect(relativeError(lse.data, reference.lse)).toBeLessThan(2e-6);
    },
  );

  test.each(Object.entries(cases))(
    'bias of %s agrees with the float64 reference',
    async (_, { shape, bias }) => {
      using device = await openOn(isa, 2);
      const result = await device.bias({ shape, bias });
      const reference = referenceBias({ shape, bias });
      expect(result.size).toBe(count(result.shape));
      expect(relativeError(result.data, reference)).toBeLessThan(1e-6);
    },
  );

  test('bfloat16 tensors are the float32 that they stand for', async () => {
    using device = await openOn(isa, 2);
    const inputs = attentionInputs(seed, [2, 2, 9, 70]);
    const bits = { query: narrowed(inputs.query), key: narrowed(inputs.key), value: narrowed(inputs.value) };
    const floats = { query: widened(bits.query), key: widened(bits.key), value: widened(bits.value) };
    const want = await device.attention(floats);
    for (const given of [bits, { ...floats, key: bits.key }]) {
      const { out, lse } = await device.attention(given);
      expect(out.data).toEqual(want.out.data);
      expect(lse.data).toEqual(want.lse.data);
    }
    expect(relativeError(want.out.data, referenceAttention(bits).out)).toBeLessThan(2e-6);
  });

  test.each(Object.entries(cases))('bias of %s in bfloat16 is the float32, rounded', async (_, c) => {
    using device = await openOn(isa, 2);
    const want = roundedToBfloat16((await device.bias(c)).data);
    const got = await device.bias({ ...c, dtype: 'bfloat16' });
    expect(got).toMatchObject({ dtype: 'bfloat16', memory: 'host' });
    expect(got.data).toEqual(want);
  });

  test('a bias that bfloat16 would round to infinity stays finite', async () => {
    using device = await openOn(isa, 1);
    const data = Float32Array.of(-3.4028234663852886e38, 3.4028234663852886e38, -Infinity, 1 + 2 ** -8);
    const bias = [{ type: 'dense' as const, bias: { data, shape: [1, 1, 1, 4] } }];
    const { data: bits } = await device.bias({ shape: [1, 1, 1, 4], bias, dtype: 'bfloat16' });
    expect([...bits]).toEqual([0xff7f, 0x7f7f, 0xff80, 0x3f80]);
  });

  test('the same threads give the same bits; other threads the same numbers', async () => {
    const next = random(seed);
    const args = {
      query: uniform(next, [1, 2, 37, 32]),
      key: uniform(next, [1, 2, 5000, 32]),
      value: uniform(next, [1, 2, 5000, 32]),
    };
    const reference = referenceAttention(args);
    for (const threads of [1, 2, 3]) {
      using device = await openOn(isa, threads);
      expect(device.info).toMatchObject({ threads });
      const [first, second] = await Promise.all([device.attention(args), device.attention(args)]);
      expect(Buffer.compare(Buffer.from(first.out.data.buffer), Buffer.from(second.out.data.buffer))).toBe(0);
      expect(Buffer.compare(Buffer.from(first.lse.data.buffer), Buffer.from(second.lse.data.buffer))).toBe(0);
      expect(relativeError(first.out.data, reference.out)).toBeLessThan(2e-6);
    }
  });
});

describe('operations', () => {
  let device: Device;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });

  test('a scale of the caller, 0 included', async () => {
    const inputs = attentionInputs(seed, [1, 2, 5, 9]);
    for (const scale of [0, 0.3, -1]) {
      const { out } = await device.attention({ ...inputs, scale });
      expect(relativeError(out.data, referenceAttention({ ...inputs, scale }).out)).toBeLessThan(2e-6);
    }
  });

  test('a query that sees no key has out 0 and lse −∞', async () => {
    const visible = { data: Uint8Array.of(1, 0, 1), shape: [1, 1, 3, 1] };
    const { out, lse } = await device.attention({
      ...attentionInputs(seed, [1, 1, 3, 8]),
      bias: [{ type: 'mask', visible }],
    });
    expect([...out.data.subarray(20, 40)]).toEqual(new Array(20).fill(0));
    expect([...lse.data].map(Number.isFinite)).toEqual([true, false, true]);
    expect(lse.data[1]).toBe(-Infinity);
  });

  test('bias keeps 1 for a batch or head that no term depends on', async () => {
    const alibi = { type: 'alibi', slopes: { data: Float32Array.of(1, 2), shape: [2] } } as const;
    expect((await device.bias({ shape: [3, 2, 4, 5], bias: [alibi] })).shape).toEqual([1, 2, 4, 5]);
    const ignore = { data: new Uint8Array(15), shape: [3, 5] };
    expect((await device.bias({ shape: [3, 2, 4, 5], bias: [{ type: 'padding', ignore }] })).shape).toEqual([
      3, 1, 4, 5,
    ]);
    const none = await device.bias({ shape: [3, 2, 4, 5], bias: [] });
    expect(none.shape).toEqual([1, 1, 4, 5]);
    expect(none.data.every((value) => value === 0)).toBe(true);
  });

  test('router is a sigmoid of a linear layer', async () => {
    const next = random(seed);
    const [features, weight, bias] = [uniform(next, [2, 7, 16]), uniform(next, [3, 16]), uniform(next, [3])];
    const weights = await device.router({ features, weight, bias });
    expect(weights.shape).toEqual([2, 7, 3]);
    const reference = Array.from({ length: 42 }, (_, i) => {
      const [row, m] = [Math.floor(i / 3), i % 3];
      let sum = bias.data[m] ?? NaN;
      for (let e = 0; e < 16; ++e)
        sum += (features.data[row * 16 + e] ?? NaN) * (weight.data[m * 16 + e] ?? NaN);
      return 1 / (1 + Math.exp(-sum));
    });
    expect(relativeError(weights.data, reference)).toBeLessThan(2e-6);
  });

  test('a fresh router weighs all modalities with sigmoid(1.5)', async () => {
    const weights = await device.router({
      features: uniform(random(seed), [1, 3, 8]),
      weight: { data: new Float32Array(16), shape: [2, 8] },
      bias: { data: new Float32Array(2).fill(1.5), shape: [2] },
    });
    for (const weight of weights.data) expect(weight).toBeCloseTo(0.8175745, 6);
  });

  test('project places points in BEV and camera cells', async () => {
    // A camera at the origin that looks along x: u = 50 − 50·y/x, v = 50 − 50·z/x, depth = x, in a 100 × 100 image.
    const camera = [50, -50, 0, 0, 50, 0, -50, 0, 1, 0, 0, 0, 0, 0, 0, 1];
    const { bevCenters, cameraCenters } = await device.project({
      referencePoints: { data: Float32Array.of(1, 0.5, 0.5, 0.75, 0.62, 0.5, 0, 0.5, 0.5), shape: [1, 3, 3] },
      pointCloudRange: [-50, -50, -5, 50, 50, 5],
      lidar2img: { data: Float32Array.from(camera), shape: [1, 1, 4, 4] },
      imageShape: [100, 100],
      featureShape: [10, 20],
      bevShape: [180, 180],
    });
    expect(bevCenters.shape).toEqual([1, 3, 2]);
    expect(cameraCenters.shape).toEqual([1, 3, 3]);
    // (50, 0, 0): past the last BEV cell, in the image's middle. (25, 12, 0): u = 26. Behind the camera: none.
    expect([...bevCenters.data]).toEqual([90, 180, 111, 135, 90, 0]);
    expect([...cameraCenters.data]).toEqual([0, 5, 10, 0, 5, 5, -1, -1, -1]);
  });

  test('operations called together end in the order of their calls', async () => {
    const order: number[] = [];
    const inputs = attentionInputs(seed, [1, 2, 64, 512]);
    await Promise.all(
      [0, 1, 2, 3].map(async (i) => {
        await device.attention(inputs);
        order.push(i);
      }),
    );
    expect(order).toEqual([0, 1, 2, 3]);
  });
});
