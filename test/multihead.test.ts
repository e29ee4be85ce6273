/** `linear` and `multihead`, and weights from a state dict. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

import { openSafetensors, writeSafetensors } from '../lib/formats/index.js';
import { loadMultihead, open } from '../lib/index.js';
import { native } from '../lib/native.js';
import { openCpu, openCuda } from '../lib/open.js';
import { referenceMultihead } from '../lib/reference.js';
import { temporaryFolder } from './formats/temporary.js';
import { expectError, random, relativeError, uniform, type Dense } from './support.js';
import type { NativeBinding } from '../lib/binding.js';
import type { BiasTerm, Device, ErrorCode, MultiheadArgs, Tensor, TensorLike } from '../lib/index.js';

const seed = 20;

function weights(next: () => number, e: number) {
  const scale = (3 / e) ** 0.5;
  return {
    inProjWeight: uniform(next, [3 * e, e], -scale, scale),
    inProjBias: uniform(next, [3 * e]),
    outProjWeight: uniform(next, [e, e], -scale, scale),
    outProjBias: uniform(next, [e]),
  };
}

/** B 2, Q 9, K 40, E 24. */
function inputs(next: () => number) {
  const [query, key, value] = [
    uniform(next, [2, 9, 24]),
    uniform(next, [2, 40, 24]),
    uniform(next, [2, 40, 24]),
  ];
  const [queryPos, keyPos] = [uniform(next, [2, 9, 24]), uniform(next, [2, 40, 24])];
  return { query, key, value, queryPos, keyPos, heads: 3, ...weights(next, 24) };
}

const modality = (next: () => number): BiasTerm[] => [
  { type: 'modality', segments: [{ start: 5, length: 20, weights: uniform(next, [2, 9], 0, 1) }] },
];

describe.each(native().info().isas)('%s', (isa) => {
  let device: Device;
  beforeAll(() => {
    device = openCpu({ threads: 2, isa });
  });
  afterAll(() => {
    device.close();
  });

  test.each<[string, (all: ReturnType<typeof inputs>) => Partial<MultiheadArgs>]>([
    ['everything', () => ({ bias: modality(random(3)), identity: true })],
    ['no positions', () => ({ queryPos: undefined, keyPos: undefined })],
    ['no biases', () => ({ inProjBias: undefined, outProjBias: undefined })],
    ['key and value one tensor', ({ key }) => ({ value: key })],
    [
      'one tensor in three roles',
      ({ key, keyPos }) => ({ query: key, value: key, queryPos: keyPos, bias: [{ type: 'causal' }] }),
    ],
    ['one head', () => ({ heads: 1 })],
    ['as many heads as features', () => ({ heads: 24 })],
  ])('multihead agrees with the float64 reference: %s', async (_, change) => {
    const all = inputs(random(seed));
    const args: MultiheadArgs = { ...all, ...change(all) };
    const out = await device.multihead(args);
    expect(out.shape).toEqual(args.query.shape);
    expect(relativeError(out.data, referenceMultihead(args))).toBeLessThan(2e-6);
  });

  test('multihead is linear, attention and linear', async () => {
    const { query, key, value, heads, ...of } = inputs(random(seed));
    const part = ({ data, shape }: Dense, i: number): Dense => {
      const size = data.length / 3;
      return { data: data.subarray(i * size, (i + 1) * size), shape: [shape[0]! / 3, ...shape.slice(1)] };
    };
    const intoHeads = async (input: Dense, i: number): Promise<Dense> => {
      const [b, t] = input.shape as [number, number];
      const weight = part(of.inProjWeight, i);
      const { data } = await device.linear({ input, weight, bias: part(of.inProjBias, i) });
      const split = new Float32Array(data.length);
      data.forEach((x, at) => {
        const [row, c] = [Math.floor(at / 24), at % 24];
        const head = Math.floor(row / t) * heads + Math.floor(c / 8);
        split[(head * t + (row % t)) * 8 + (c % 8)] = x;
      });
      return { data: split, shape: [b, heads, t, 8] };
    };
    const bias = modality(random(3));
    const { out } = await device.attention({
      query: await intoHeads(query, 0),
      key: await intoHeads(key, 1),
      value: await intoHeads(value, 2),
      bias,
    });
    const joined = new Float32Array(out.size);
    joined.forEach((_, at) => {
      const [b, q, c] = [Math.floor(at / 216), Math.floor(at / 24) % 9, at % 24];
      joined[at] = out.data[((b * heads + Math.floor(c / 8)) * 9 + q) * 8 + (c % 8)]!;
    });
    const input = { data: joined, shape: [2, 9, 24] };
    const want = await device.linear({ input, weight: of.outProjWeight, bias: of.outProjBias });
    const none = { queryPos: undefined, keyPos: undefined };
    const got = await device.multihead({ query, key, value, heads, ...of, ...none, bias });
    expect([...got.data]).toEqual([...want.data]);
  });
});

describe('arguments', () => {
  let device: Device;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });
  const floats = (...shape: number[]) => uniform(random(1), shape);
  const call = (changes: object) => () => device.multihead({ ...inputs(random(seed)), ...changes });

  test('an output of the caller', async () => {
    const all = inputs(random(seed));
    const want = await device.multihead(all);
    const out = device.tensor([2, 9, 24]);
    expect(await device.multihead({ ...all, out })).toBe(out);
    expect(out.data).toEqual(want.data);
    await expectError(call({ out: floats(2, 9, 25) }), 'ERR_SHAPE', '[B, Q, E]', 'out', '[2, 9, 25]');
    const same = { ...all, out: all.query };
    await expectError(() => device.multihead(same), 'ERR_VALUE', 'memory of its own', 'out', 'query');
  });

  test.each<[object, ErrorCode, ...string[]]>([
    [{ heads: 5 }, 'ERR_VALUE', 'a divisor of E = 24 for heads but received 5'],
    [{ heads: 0 }, 'ERR_VALUE', 'heads but received 0'],
    [{ heads: 1.5 }, 'ERR_VALUE', 'an integer for heads but received 1.5'],
    [{ heads: undefined }, 'ERR_VALUE', 'heads but received undefined'],
    [{ query: floats(9, 24) }, 'ERR_SHAPE', '[B, Q, E] for query but received [9, 24]'],
    [{ key: floats(2, 40, 23) }, 'ERR_SHAPE', '[2, 40, 24] for key but received [2, 40, 23]'],
    [{ value: floats(2, 39, 24) }, 'ERR_SHAPE', '[2, 40, 24] for value but received [2, 39, 24]'],
    [{ queryPos: floats(2, 40, 24) }, 'ERR_SHAPE', '[2, 9, 24] for queryPos but received [2, 40, 24]'],
    [{ keyPos: floats(40, 24) }, 'ERR_SHAPE', '[2, 40, 24] for keyPos but received [40, 24]'],
    [{ inProjWeight: floats(24, 24) }, 'ERR_SHAPE', '[3E, E] = [72, 24] for inProjWeight'],
    [{ inProjBias: floats(24) }, 'ERR_SHAPE', '[3E] = [72] for inProjBias but received [24]'],
    [{ outProjWeight: undefined }, 'ERR_VALUE', 'outProjWeight but received undefined'],
    [{ outProjBias: floats(72) }, 'ERR_SHAPE', '[E] = [24] for outProjBias but received [72]'],
    [{ identity: 1 }, 'ERR_VALUE', 'true or false for identity but received 1'],
    [{ precision: 'tf32' }, 'ERR_VALUE', '"f32" or "bf16" for precision on the cpu backend'],
    [{ scale: 1 }, 'ERR_VALUE', 'no other fields', '"scale"'],
    [{ bias: [{ type: 'denoising', groups: 1, groupSize: 2 }] }, 'ERR_SHAPE', 'bias[0]'],
    [
      { key: { data: new Int32Array(1920), shape: [2, 40, 24] } },
      'ERR_DTYPE',
      'float32 [B, K, E] for key but received int32 [2, 40, 24]',
    ],
  ])('multihead refuses %j', async (changes, code, ...words) => {
    await expectError(call(changes), code, ...words);
  });

  test.each<[object, ErrorCode, ...string[]]>([
    [{ weight: floats(5, 7) }, 'ERR_SHAPE', '[.., E] = [3, 4, 7] for input but received [3, 4, 8]'],
    [{ weight: floats(8) }, 'ERR_SHAPE', '[N, E] for weight but received [8]'],
    [{ bias: floats(4) }, 'ERR_SHAPE', '[N] = [5] for bias but received [4]'],
    [{ out: floats(3, 4, 8) }, 'ERR_SHAPE', '[3, 4, 5] for out but received [3, 4, 8]'],
    [{ heads: 2 }, 'ERR_VALUE', 'no other fields', '"heads"'],
  ])('linear refuses %j', async (changes, code, ...words) => {
    const good = { input: floats(3, 4, 8), weight: floats(5, 8) };
    await expectError(() => device.linear({ ...good, ...changes }), code, ...words);
  });

  test('linear of one vector', async () => {
    const weight = { data: Float32Array.of(1, 2, 3, 4, 5, 6), shape: [3, 2] };
    const out = await device.linear({ input: { data: Float32Array.of(1, -1), shape: [2] }, weight });
    expect(out.shape).toEqual([3]);
    expect([...out.data]).toEqual([-1, -1, -1]);
  });

  test('an aborted signal, before and while it runs', async () => {
    const controller = new AbortController();
    const big = { data: new Float32Array(40_000 * 64).fill(0.1), shape: [1, 40_000, 64] };
    const args = { query: big, key: big, value: big, heads: 2, ...weights(random(2), 64) };
    const running = device.multihead({ ...args, signal: controller.signal });
    setTimeout(() => {
      controller.abort();
    }, 20);
    await expectError(() => running, 'ERR_ABORTED');
    await expectError(() => device.multihead({ ...args, signal: controller.signal }), 'ERR_ABORTED');
  });
});

const emulated =
  process.env.ATTENTION_BIAS_EMULATED_BINARY ??
  join(__dirname, '../build-emulated/Release/attention_bias.node');
const emulates = spawnSync('cmake', ['--version']).status === 0;

(emulates ? test : test.skip)('CUDA, emulated: tensors in device memory, results there', async () => {
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon can't be imported
  using device = await openCuda(require(emulated) as NativeBinding, 0, 'device', {});
  const all = { ...inputs(random(seed)), bias: modality(random(3)), identity: true };
  const fromHost = await device.multihead(all);
  expect(fromHost.memory).toBe('host');
  expect(relativeError(fromHost.data, referenceMultihead(all))).toBeLessThan(2e-6);

  const { heads, bias, identity, ...tensors } = all;
  const entries = Object.entries(tensors).map(
    async ([name, tensor]) => [name, await device.toDevice(tensor)] as const,
  );
  const there = Object.fromEntries(await Promise.all(entries)) as Record<keyof typeof tensors, Tensor>;
  const out = await device.multihead({ ...there, heads, bias, identity });
  expect(out.memory).toBe('device');
  const read = await device.toHost(out);
  expect([...read.data]).toEqual([...fromHost.data]);

  const [input, weight] = [uniform(random(4), [3, 5, 7]), uniform(random(5), [6, 7])];
  const layer = { input: await device.toDevice(input), weight };
  const chained: TensorLike = await device.linear(layer);
  expect(chained).toMatchObject({ memory: 'device', shape: [3, 5, 6] });
  using cpu = await open({ device: 'cpu', threads: 1 });
  const want = await cpu.linear({ input, weight });
  expect(relativeError((await device.toHost(chained)).data as Float32Array, want.data)).toBeLessThan(1e-6);
});

describe('loadMultihead', () => {
  const e = 6;
  const next = random(8);
  const of = weights(next, e);
  const module = (prefix: string) => ({
    [`${prefix}in_proj_weight`]: of.inProjWeight,
    [`${prefix}in_proj_bias`]: of.inProjBias,
    [`${prefix}out_proj.weight`]: of.outProjWeight,
    [`${prefix}out_proj.bias`]: of.outProjBias,
  });

  async function loaded(tensors: Record<string, Dense | Dense<Uint16Array>>, prefix: string) {
    await using folder = await temporaryFolder();
    await writeSafetensors(folder.file('model.safetensors'), tensors);
    return await loadMultihead(folder.file('model.safetensors'), prefix);
  }
  const plain = (given: Partial<Record<string, TensorLike>>) =>
    Object.fromEntries(
      Object.entries(given).map(([name, tensor]) => [name, { data: tensor?.data, shape: tensor?.shape }]),
    );

  test.each(['decoder.layers.0.attn', 'decoder.layers.0.attn.'])('by the prefix %s', async (prefix) => {
    const other = { 'decoder.layers.1.attn.in_proj_weight': uniform(next, [2, 2]) };
    const result = await loaded({ ...module('decoder.layers.0.attn.'), ...other }, prefix);
    expect(plain({ ...result })).toEqual(plain(of));
  });

  test('from an open file, without a prefix, without biases', async () => {
    await using folder = await temporaryFolder();
    const path = folder.file('model.safetensors');
    await writeSafetensors(path, { in_proj_weight: of.inProjWeight, 'out_proj.weight': of.outProjWeight });
    await using file = await openSafetensors(path);
    const result = await loadMultihead(file, '');
    const { inProjWeight, outProjWeight } = of;
    expect(plain({ ...result })).toEqual(plain({ inProjWeight, outProjWeight }));
    await file.read('in_proj_weight'); // still open
  });

  test('bfloat16 weights become float32, and go into multihead', async () => {
    const bits = (value: number, shape: number[]): Dense<Uint16Array> => ({
      data: new Uint16Array(shape.reduce((a, b) => a * b)).fill(value),
      shape,
    });
    const tensors = { in_proj_weight: bits(0x3f80, [18, 6]), 'out_proj.weight': bits(0x4000, [6, 6]) }; // 1 and 2
    const result = await loaded(tensors, '');
    expect(result.inProjWeight).toMatchObject({ dtype: 'float32', shape: [18, 6] });
    using device = await open({ device: 'cpu', threads: 1 });
    const token = { data: new Float32Array(6).fill(0.5), shape: [1, 1, 6] };
    const out = await device.multihead({ query: token, key: token, value: token, heads: 2, ...result });
    expect([...out.data]).toEqual(new Array(6).fill(36)); // 0.5·6 each, and 2·6 of those
  });

  test('what is missing, of other sizes or of another kind is refused', async () => {
    const good = module('a.');
    await expectError(
      () => loaded(good, 'b'),
      'ERR_FORMAT',
      'expected a tensor of a for b.out_proj.weight in ',
      'but received nothing',
    );
    const without = Object.fromEntries(Object.entries(good).filter(([name]) => name !== 'a.in_proj_weight'));
    await expectError(() => loaded(without, 'a'), 'ERR_FORMAT', 'a.in_proj_weight');
    const separate = { ...without, 'a.q_proj_weight': uniform(next, [6, 6]) };
    await expectError(() => loaded(separate, 'a'), 'ERR_FORMAT', 'one in_proj_weight', 'a.q_proj_weight');
    const added = { ...good, 'a.bias_k': uniform(next, [1, 1, 6]) };
    await expectError(() => loaded(added, 'a'), 'ERR_FORMAT', 'a.bias_k');
    for (const [name, shape, want] of [
      ['a.in_proj_weight', [6, 6], '[18, 6]'],
      ['a.in_proj_bias', [6], '[18]'],
      ['a.out_proj.weight', [6, 5], '[6, 6]'],
      ['a.out_proj.bias', [5], '[6]'],
    ] as const) {
      const wrong = { ...good, [name]: uniform(next, [...shape]) };
      await expectError(() => loaded(wrong, 'a'), 'ERR_SHAPE', `expected ${want} for ${name} in `);
    }
    await expectError(() => loadMultihead('/nonexistent.safetensors', ''), 'ERR_IO');
  });
});
