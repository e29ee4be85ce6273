import { availableParallelism } from 'node:os';
import { AttentionBiasError, open } from '../lib/index.js';
import { native } from '../lib/native.js';
import { attentionInputs, constantInputs, errorOf, expectError } from './support.js';
import type { Device, OpenOptions } from '../lib/index.js';

const variables = ['ATTENTION_BIAS_DEVICE', 'ATTENTION_BIAS_THREADS', 'ATTENTION_BIAS_ISA'] as const;
const saved = variables.map((name) => process.env[name]);
const restore = (): void => {
  variables.forEach((name, i) => {
    if (saved[i] === undefined)
      delete process.env[name]; // eslint-disable-line @typescript-eslint/no-dynamic-delete
    else process.env[name] = saved[i];
  });
};
beforeEach(() => {
  for (const name of variables) delete process.env[name]; // eslint-disable-line @typescript-eslint/no-dynamic-delete
});
afterEach(restore);

describe('open', () => {
  test('by default takes all cores', async () => {
    using device = await open();
    expect(device.info).toEqual({
      backend: 'cpu',
      name: expect.stringMatching(/./) as string,
      isa: expect.stringMatching(/^(x86-64-v[234]|arm64|generic)$/) as string,
      threads: availableParallelism(),
    });
  });

  test('takes options before the environment', async () => {
    process.env.ATTENTION_BIAS_THREADS = '3';
    process.env.ATTENTION_BIAS_DEVICE = 'cuda';
    using two = await open({ device: 'cpu', threads: 2, precision: 'f32' });
    expect(two.info).toMatchObject({ threads: 2 });
    process.env.ATTENTION_BIAS_DEVICE = 'cpu';
    using three = await open();
    expect(three.info).toMatchObject({ threads: 3 });
    process.env.ATTENTION_BIAS_DEVICE = '';
    process.env.ATTENTION_BIAS_THREADS = '';
    using all = await open();
    expect(all.info).toMatchObject({ threads: availableParallelism() });
  });

  test.each<[object | null, string, ...string[]]>([
    [{ devic: 'cpu' }, 'ERR_VALUE', 'the options of open', '"devic"'],
    [null, 'ERR_VALUE', 'the options of open', 'null'],
    [{ device: 'gpu' }, 'ERR_VALUE', 'device', '"gpu"'],
    [{ device: 'cuda:x' }, 'ERR_VALUE', 'device', '"cuda:x"'],
    [{ device: 0 }, 'ERR_VALUE', 'device', '0'],
    [{ device: 'cpu', threads: 0 }, 'ERR_VALUE', 'an integer from 1 to 1024', 'threads', '0'],
    [{ device: 'cpu', threads: 1.5 }, 'ERR_VALUE', 'threads', '1.5'],
    [{ device: 'cpu', threads: NaN }, 'ERR_VALUE', 'threads', 'NaN'],
    [{ device: 'cpu', threads: 1025 }, 'ERR_VALUE', 'threads', '1025'],
    [{ device: 'cpu', precision: 'tf32' }, 'ERR_VALUE', '"f32"', 'precision on the cpu backend', '"tf32"'],
    [{ device: 'cpu', precision: 'f16' }, 'ERR_VALUE', 'precision', '"f16"'],
    [{ device: 'cuda', precision: 'f16' }, 'ERR_VALUE', 'precision on the cuda backend', '"f16"'],
  ])('%j', async (options, code, ...words) => {
    await expectError(() => open(options as OpenOptions), code as 'ERR_VALUE', ...words);
  });

  // No machine has that many; `cuda` itself only where there is a GPU.
  const absent = native().cuda(false).devices.length > 0 ? [] : (['cuda', 'cuda:1'] as const);
  test.each([...absent, 'cuda:9999'] as const)('%s never falls back', async (device) => {
    await expectError(() => open({ device }), 'ERR_DEVICE', 'device', device);
    process.env.ATTENTION_BIAS_DEVICE = device;
    await expectError(() => open(), 'ERR_DEVICE', 'ATTENTION_BIAS_DEVICE', device);
  });

  test.each([
    ['ATTENTION_BIAS_DEVICE', 'gpu'],
    ['ATTENTION_BIAS_THREADS', 'many'],
    ['ATTENTION_BIAS_THREADS', '0'],
    ['ATTENTION_BIAS_ISA', 'sse2'],
  ])('%s=%s', async (name, value) => {
    process.env[name] = value;
    await expectError(() => open(), 'ERR_VALUE', name, JSON.stringify(value));
  });

  test('info can not be written', async () => {
    using device = await open({ device: 'cpu', threads: 1 });
    expect(Object.isFrozen(device.info)).toBe(true);
  });
});

describe('several devices', () => {
  test('side by side give one result', async () => {
    const inputs = attentionInputs(5, [1, 4, 64, 700]);
    const devices = await Promise.all([1, 2, 2, 3].map((threads) => open({ device: 'cpu', threads })));
    const results = await Promise.all(
      devices.flatMap((device) => [device.attention(inputs), device.attention(inputs)]),
    );
    for (const { out } of results) {
      for (let i = 0; i < out.size; ++i) expect(out.data[i]).toBeCloseTo(results[0]?.out.data[i] ?? NaN, 5);
    }
    devices.forEach((device) => {
      device.close();
    });
  });

  test('a hundred opened and closed', async () => {
    for (let i = 0; i < 100; ++i) {
      using device = await open({ device: 'cpu', threads: 4 });
      if (i % 10 === 0) await device.attention(attentionInputs(5, [1, 1, 4, 8]));
    }
  });
});

describe('close', () => {
  test('ends a device for good', async () => {
    const device = await open({ device: 'cpu', threads: 1 });
    device.close();
    device.close();
    device[Symbol.dispose]();
    const inputs = attentionInputs(5, [1, 1, 4, 8]);
    await expectError(() => device.attention(inputs), 'ERR_DEVICE', 'open device', 'closed');
    await expectError(() => device.bias({ shape: [1, 1, 1, 1], bias: [] }), 'ERR_DEVICE');
    await expectError(() => device.tensor([1]), 'ERR_DEVICE');
    await expectError(() => device.from(new Float32Array(1)), 'ERR_DEVICE');
    expect(device.info.backend).toBe('cpu');
  });

  test('lets the running operation finish and rejects those that wait', async () => {
    const device = await open({ device: 'cpu', threads: 2 });
    const inputs = constantInputs(16384, 2048);
    const lse = { data: new Float32Array(8 * 16384).fill(NaN), shape: [1, 8, 16384] };
    const running = device.attention({ ...inputs, lse });
    const waiting = [device.attention(inputs), device.attention(inputs)];
    waiting.forEach((promise) => {
      promise.catch(() => undefined);
    });
    // Until it has begun, which its first rows show. No turn of the event loop lies between this and close().
    const deadline = performance.now() + 30_000;
    while (lse.data.every(Number.isNaN) && performance.now() < deadline);
    device.close();
    for (const promise of waiting) await expectError(() => promise, 'ERR_DEVICE', 'closed');
    expect((await running).out.shape).toEqual([1, 8, 16384, 20]);
    expect(lse.data.some(Number.isNaN)).toBe(false);
  });
});

describe('signal', () => {
  let device: Device;
  const long = constantInputs(16384, 32768); // seconds on two cores, and long enough on a hundred
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });

  test('aborted before the call', async () => {
    const signal = AbortSignal.abort('reason');
    const error = await errorOf(() => device.attention({ ...long, signal }));
    expect([error.code, error.cause]).toEqual(['ERR_ABORTED', 'reason']);
    expect(error).toBeInstanceOf(AttentionBiasError);
  });

  test('stops a running operation between tiles', async () => {
    const controller = new AbortController();
    const start = performance.now();
    const running = device.attention({ ...long, signal: controller.signal });
    const reason = new Error('enough');
    setTimeout(() => {
      controller.abort(reason);
    }, 50);
    const error = await errorOf(() => running);
    expect([error.code, error.cause]).toEqual(['ERR_ABORTED', reason]);
    expect(performance.now() - start).toBeLessThan(400);
    const inputs = attentionInputs(5, [1, 1, 4, 8]);
    expect((await device.attention(inputs)).out.size).toBe(80); // the device goes on
  });

  test('takes a waiting operation out at once', async () => {
    const [first, second] = [new AbortController(), new AbortController()];
    const running = device.attention({ ...long, signal: first.signal });
    const waiting = device.attention({ ...long, signal: second.signal });
    let ended = false;
    running.catch(() => (ended = true));
    await new Promise((resolve) => setTimeout(resolve, 20));
    second.abort();
    await expectError(() => waiting, 'ERR_ABORTED');
    expect(ended).toBe(false);
    first.abort();
    await expectError(() => running, 'ERR_ABORTED');
  });

  test('after the end changes nothing, and no listener stays', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const added = jest.spyOn(signal, 'addEventListener');
    const removed = jest.spyOn(signal, 'removeEventListener');
    const { out } = await device.attention({ ...attentionInputs(5, [1, 1, 4, 8]), signal });
    await expectError(
      () => device.attention({ ...attentionInputs(5, [1, 1, 4, 8]), scale: NaN, signal }),
      'ERR_VALUE',
    );
    expect(added).toHaveBeenCalledTimes(1);
    expect(removed).toHaveBeenCalledWith('abort', added.mock.calls[0]?.[1]);
    controller.abort();
    expect(out.size).toBe(80);
  });

  test('one signal of many operations has one listener', async () => {
    const { signal } = new AbortController();
    const added = jest.spyOn(signal, 'addEventListener');
    const removed = jest.spyOn(signal, 'removeEventListener');
    const inputs = attentionInputs(5, [1, 1, 4, 8]);
    await Promise.all(Array.from({ length: 20 }, () => device.attention({ ...inputs, signal })));
    expect([added.mock.calls.length, removed.mock.calls.length]).toEqual([1, 1]);
  });

  test('aborted by a getter among the arguments', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const running = device.attention({
      ...long,
      signal,
      get scale() {
        controller.abort();
        return 1;
      },
    });
    await expectError(() => running, 'ERR_ABORTED');
  });

  test('must be a signal', async () => {
    await expectError(() => device.attention({ ...long, signal: {} as AbortSignal }), 'ERR_VALUE', 'signal');
  });

  test('stops a bias', async () => {
    const signal = AbortSignal.timeout(20);
    await expectError(
      () => device.bias({ shape: [1, 1, 16384, 16384], bias: [{ type: 'causal' }], signal }),
      'ERR_ABORTED',
    );
  });
});
