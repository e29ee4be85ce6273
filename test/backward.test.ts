/** Gradients through the API: by field, against the float64 reference and finite differences; and training with them. */
import { Adam, open } from '../lib/index.js';
import { gradientsWithPath } from '../lib/gradients.js';
import { referenceAttention, referenceBackward } from '../lib/reference.js';
import { attentionInputs, narrowed, random, relativeError, termCases, uniform, widened } from './support.js';
import type { BiasTerm, Device } from '../lib/index.js';

const seed = 417;
const cases = termCases(seed);
let device: Device;
beforeAll(async () => {
  device = await open({ device: 'cpu', threads: 2 });
});
afterAll(() => {
  device.close();
});

/** Attention's inputs and a gradient of its result. */
function inputsOf([b, h, q, k]: readonly [number, number, number, number]) {
  const inputs = attentionInputs(seed, [b, h, q, k]);
  return { ...inputs, gradOut: uniform(random(seed + 1), [b, h, q, inputs.value.shape[3]!], -1, 1) };
}

/** The learnable tensors of the terms, by path. */
function learnables(bias: readonly BiasTerm[]): Record<string, { shape: readonly number[] }> {
  const found: Record<string, { shape: readonly number[] }> = {};
  bias.forEach((term, i) => {
    const at = `bias[${i}]`;
    if (term.type === 'dense') found[`${at}.bias`] = term.bias;
    if (term.type === 'relativePosition') found[`${at}.table`] = term.table;
    if (term.type === 'alibi') found[`${at}.slopes`] = term.slopes;
    if (term.type === 'lowRank') {
      found[`${at}.queryFactors`] = term.queryFactors;
      found[`${at}.keyFactors`] = term.keyFactors;
    }
    if (term.type === 'modality' || term.type === 'spatial') {
      term.segments.forEach(({ weights }, j) => (found[`${at}.segments[${j}].weights`] = weights));
    }
  });
  return found;
}

test.each(Object.entries(cases))('%s', async (_, { shape, bias }) => {
  const { gradOut, ...inputs } = inputsOf(shape);
  const forward = { ...inputs, bias };
  const args = { ...forward, gradOut };
  using gradients = await device.attentionBackward(args);
  expect(gradients.terms).toHaveLength(bias.length);
  const byPath = Object.fromEntries(gradientsWithPath(gradients));
  const expectedShapes = { query: args.query, key: args.key, value: args.value, ...learnables(bias) };
  expect(Object.keys(byPath).sort()).toEqual(Object.keys(expectedShapes).sort());
  const want = referenceBackward(args);
  for (const [path, { shape: of }] of Object.entries<{ shape: readonly number[] }>(expectedShapes)) {
    expect({ path, shape: byPath[path]?.shape }).toEqual({ path, shape: of });
    expect(relativeError(byPath[path]!.data, want[path]!)).toBeLessThan(1e-5);
  }

  // The forward pass' results given, terms left out, and tensors of bfloat16.
  const { out, lse } = await device.attention(forward);
  using given = await device.attentionBackward({ ...args, out, lse });
  expect(given.key.data).toEqual(gradients.key.data);
  using some = await device.attentionBackward({ ...args, termGradients: false });
  expect(some.query.data).toEqual(gradients.query.data);
  expect(some.terms).toEqual([]);
  const [query, key, value] = [narrowed(args.query), narrowed(args.key), narrowed(args.value)];
  using narrow = await device.attentionBackward({ ...args, query, key, value });
  const wide = { query: widened(query), key: widened(key), value: widened(value) };
  using same = await device.attentionBackward({ ...args, ...wide });
  expect(narrow.value.data).toEqual(same.value.data);
});

test('types follow the terms', async () => {
  const weights = uniform(random(seed), [1, 3], 0, 1);
  const slopes = uniform(random(seed), [2], 0, 1);
  using gradients = await device.attentionBackward({
    ...inputsOf([1, 2, 3, 8]),
    bias: [
      {
        type: 'modality',
        segments: [
          { start: 4, length: 4, weights },
          { start: 0, length: 4, weights },
        ],
      },
      { type: 'causal' },
      { type: 'alibi', slopes },
    ],
  });
  const [modality, causal, alibi] = gradients.terms;
  expect(modality.segments.map((segment) => segment.weights.shape)).toEqual([
    [1, 3],
    [1, 3],
  ]);
  expect(causal).toEqual({});
  expect(alibi.slopes.shape).toEqual([2]);
});

test('segments keep their order, whatever their keys', async () => {
  const weights = uniform(random(seed), [1, 3], 0, 1);
  const segments = [
    { start: 4, length: 4, weights },
    { start: 0, length: 4, weights },
  ];
  const inputs = inputsOf([1, 1, 3, 8]);
  using one = await device.attentionBackward({ ...inputs, bias: [{ type: 'modality', segments }] });
  using other = await device.attentionBackward({
    ...inputs,
    bias: [{ type: 'modality', segments: [...segments].reverse() }],
  });
  expect(one.terms[0].segments[0]!.weights.data).toEqual(other.terms[0].segments[1]!.weights.data);
  expect(one.terms[0].segments[0]!.weights.data).not.toEqual(other.terms[0].segments[0]!.weights.data);
});

test('the gradient of a weight is the slope of the loss', async () => {
  const { shape, bias } = cases.modality!;
  const { gradOut, ...inputs } = inputsOf(shape);
  const args = { ...inputs, bias };
  using gradients = await device.attentionBackward({ ...args, gradOut });
  const [term] = bias;
  if (term?.type !== 'modality') throw new Error('modality');
  const weights = term.segments[0]!.weights.data as Float32Array;
  const loss = (): number =>
    referenceAttention(args).out.reduce((sum, x, i) => sum + x * (gradOut.data[i] ?? NaN), 0);
  for (const at of [0, 7, 17]) {
    const old = weights[at]!;
    weights[at] = old + 1e-3;
    const [high, above] = [weights[at], loss()];
    weights[at] = old - 1e-3;
    const slope = (above - loss()) / (high - weights[at]);
    weights[at] = old;
    const { data } = Object.fromEntries(gradientsWithPath(gradients))['bias[0].segments[0].weights']!;
    expect(Math.abs(data[at]! - slope)).toBeLessThan(1e-4 * (1 + Math.abs(slope)));
  }
});

describe('arguments', () => {
  const good = () => inputsOf([1, 2, 3, 8]);
  test.each<[string, object, string, RegExp]>([
    [
      'a gradient of another shape',
      { gradOut: uniform(random(1), [1, 2, 3, 7], 0, 1) },
      'ERR_SHAPE',
      /\[B, H, Q, Dv\].* for gradOut/,
    ],
    ['no gradient', { gradOut: undefined }, 'ERR_VALUE', /gradOut/],
    [
      'out without lse',
      { out: uniform(random(1), [1, 2, 3, 20], 0, 1) },
      'ERR_VALUE',
      /both or none for out and lse/,
    ],
    [
      'lse of another shape',
      { out: uniform(random(1), [1, 2, 3, 20], 0, 1), lse: uniform(random(1), [1, 2, 4], 0, 1) },
      'ERR_SHAPE',
      /for lse/,
    ],
    ['a list of terms that is none', { bias: new Proxy(new Float32Array(1), {}) }, 'ERR_VALUE', /bias/],
    ['an unknown field', { grad: 1 }, 'ERR_VALUE', /grad/],
    ['an unknown precision', { precision: 'f16' }, 'ERR_VALUE', /precision/],
  ])('%s is refused', async (_, wrong, code, message) => {
    const call = device.attentionBackward({ ...good(), ...wrong });
    await expect(call).rejects.toMatchObject({ code, message: expect.stringMatching(message) as string });
  });

  test('an abort stops it', async () => {
    const aborted = device.attentionBackward({ ...good(), signal: AbortSignal.abort('enough') });
    await expect(aborted).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' });
  });
});

describe('routerBackward', () => {
  test.each([false, true])('is the slope of the loss, outputsFirst %s', async (outputsFirst) => {
    const next = random(seed);
    const features = uniform(next, [2, 5, 6], -1, 1);
    const weight = uniform(next, [3, 6], -1, 1);
    const bias = uniform(next, [3], -1, 1);
    const gradOut = uniform(next, outputsFirst ? [3, 2, 5] : [2, 5, 3], -1, 1);
    const args = { features, weight, bias, outputsFirst };
    using gradients = await device.routerBackward({ ...args, gradOut });
    const loss = async (): Promise<number> => {
      using weights = await device.router(args);
      return weights.data.reduce((sum, w, i) => sum + w * (gradOut.data[i] ?? NaN), 0);
    };
    for (const [tensor, gradient] of [
      [features, gradients.features],
      [weight, gradients.weight],
      [bias, gradients.bias],
    ] as const) {
      expect(gradient.shape).toEqual(tensor.shape);
      for (const at of [0, tensor.data.length - 1]) {
        const old = tensor.data[at]!;
        tensor.data[at] = old + 0.01;
        const above = await loss();
        tensor.data[at] = old - 0.01;
        const slope = (above - (await loss())) / 0.02;
        tensor.data[at] = old;
        expect(Math.abs(gradient.data[at]! - slope)).toBeLessThan(2e-4);
      }
    }
  });

  test('a gradient of another shape is refused', async () => {
    const call = device.routerBackward({
      features: uniform(random(1), [1, 4, 2], 0, 1),
      weight: uniform(random(1), [2, 2], 0, 1),
      bias: uniform(random(1), [2], 0, 1),
      gradOut: uniform(random(1), [2, 1, 4], 0, 1),
    });
    await expect(call).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(/gradOut/) as string,
    });
  });
});

describe('Adam', () => {
  const tensor = (...values: number[]) => ({ data: Float32Array.from(values), shape: [values.length] });

  test('goes as in its paper', () => {
    const parameter = tensor(1, -2);
    const adam = new Adam([parameter], { learningRate: 0.1, betas: [0.8, 0.9], epsilon: 1e-6 });
    const [m, v] = [
      [0, 0],
      [0, 0],
    ];
    const want = [1, -2];
    for (let step = 1; step <= 3; step++) {
      const gradient = [0.5 * step, -1 / step];
      adam.step([tensor(...gradient)]);
      gradient.forEach((g, i) => {
        m[i] = 0.8 * m[i]! + 0.2 * g;
        v[i] = 0.9 * v[i]! + 0.1 * g * g;
        want[i]! -= (0.1 * (m[i] / (1 - 0.8 ** step))) / (Math.sqrt(v[i] / (1 - 0.9 ** step)) + 1e-6);
      });
    }
    expect(adam.steps).toBe(3);
    expect(relativeError(parameter.data, want)).toBeLessThan(1e-6);
  });

  test('finds the minimum of a bowl, and decays weights', () => {
    const parameter = tensor(3, -4);
    const adam = new Adam([parameter], { learningRate: 0.05 });
    for (let i = 0; i < 600; i++) adam.step([tensor(parameter.data[0]! - 1, 10 * (parameter.data[1]! + 2))]);
    expect(Math.hypot(parameter.data[0]! - 1, parameter.data[1]! + 2)).toBeLessThan(1e-3);
    const decaying = tensor(1);
    new Adam([decaying], { learningRate: 0.1, weightDecay: 0.5 }).step([tensor(0)]);
    expect(decaying.data[0]).toBeCloseTo(0.95, 6);
  });

  test('a wrong gradient changes nothing', () => {
    const [a, b] = [tensor(1), tensor(2, 3)];
    const adam = new Adam([a, b]);
    const thrown = (gradients: Parameters<Adam['step']>[0]): unknown => {
      try {
        adam.step(gradients);
      } catch (error) {
        return (error as { code: string }).code;
      }
      return undefined;
    };
    expect(thrown([tensor(1)])).toBe('ERR_SHAPE');
    expect(thrown([tensor(1), tensor(1)])).toBe('ERR_SHAPE');
    expect(thrown([tensor(1), tensor(NaN, 1)])).toBe('ERR_VALUE');
    expect(thrown([tensor(1), { data: new Int32Array(2), shape: [2] }])).toBe('ERR_DTYPE');
    expect([...a.data, ...b.data, adam.steps]).toEqual([1, 2, 3, 0]);
    expect(() => new Adam([a], { learningRate: -1 })).toThrow(/learningRate/);
    expect(() => new Adam([a], { betas: [0.9, 1] })).toThrow(/betas\[1\]/);
  });
});
