// What a fault in the middle of an operation comes to for a user: the n-th request for memory or for a thread fails, or the
// n-th call of an emulated device, for each n; for memory, also with all requests that follow. The addon with the emulated
// CUDA part has the faults (test/native/faults.h).
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { AttentionBiasError } from '../lib/errors.js';
import { native } from '../lib/native.js';
import { open } from '../lib/open.js';
import { Tensor } from '../lib/tensor.js';
import type { Device } from '../lib/index.js';

const emulates = spawnSync('cmake', ['--version']).status === 0;
process.env.ATTENTION_BIAS_BINARY = join(__dirname, '../build-emulated/Release/attention_bias.node');

type Faults = (kind?: 'memory' | 'thread' | 'deviceMemory' | 'device', n?: number, fault?: string) => number;
const faults: Faults = (...args) => (native() as unknown as { faults: Faults }).faults(...args);

type Operation = (args: unknown) => Promise<unknown>;
// eslint-disable-next-line @typescript-eslint/no-require-imports -- shared with programs that are not compiled
const { operations } = require('./process/operations.cjs') as {
  operations: (size: number) => Record<string, unknown>;
};
const names = emulates ? Object.keys(operations(1)) : [];

/** Every number that a result holds; its tensors are disposed. */
function numbers(result: unknown): number[] {
  if (result instanceof Tensor) {
    const data = result.memory === 'device' ? [] : Array.from(result.data as Float32Array);
    result.dispose();
    return data;
  }
  if (typeof result !== 'object' || result === null) return [];
  return Object.values(result).flatMap(numbers);
}

const run = async (device: Device, name: string, args: unknown): Promise<number[]> =>
  numbers(await (device as unknown as Record<string, Operation>)[name]!(args));

/** The error of a run, or what it gave. */
async function attempt(device: Device, name: string, args: unknown): Promise<AttentionBiasError | number[]> {
  try {
    return await run(device, name, args);
  } catch (error) {
    if (error instanceof AttentionBiasError) return error;
    throw new Error(`not an AttentionBiasError: ${String(error)}`, { cause: error });
  }
}

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

(emulates ? describe : describe.skip)('faults', () => {
  afterEach(() => {
    faults();
  });

  describe.each([
    ['no memory once on cpu', 'cpu', 1],
    ['no memory once on cuda', 'cuda', 1],
    ['no memory any more on cpu', 'cpu', -1],
    ['no memory any more on cuda', 'cuda', -1],
  ] as const)('%s', (_, backend, sign) => {
    test.each(names)('%s', async (name) => {
      using device = await open({ device: backend, threads: 3 });
      const args = operations(20)[name];
      const want = await run(device, name, args);
      let failed = 0;
      for (let n = 1; ; ++n) {
        faults('memory', sign * n);
        const got = await attempt(device, name, args);
        faults('memory', 0);
        if (Array.isArray(got)) {
          expect(got).toEqual(want);
          break;
        }
        expect(got.code).toBe('ERR_MEMORY');
        ++failed;
      }
      expect(failed).toBeGreaterThan(3);
      expect(await run(device, name, args)).toEqual(want);
    });
  });

  test('no memory while a device is opened and closed', async () => {
    let failed = 0;
    for (let n = 1; ; ++n) {
      faults('memory', n);
      try {
        (await open({ device: 'cpu', threads: 1 })).close();
        break;
      } catch (error) {
        expect(error).toMatchObject({ name: 'AttentionBiasError', code: 'ERR_MEMORY' });
        ++failed;
      } finally {
        faults('memory', 0);
      }
    }
    expect(failed).toBeGreaterThan(3);
  });

  test('no memory while operations are queued, aborted and closed away', async () => {
    const { attention } = operations(40) as { attention: never };
    for (let n = 1; n < 60; ++n) {
      const device = await open({ device: 'cpu', threads: 2 });
      const controller = new AbortController();
      const under = [1, 2, 3, 4].map((i) =>
        device.attention({
          ...(attention as Parameters<Device['attention']>[0]),
          signal: i === 3 ? controller.signal : undefined,
        }),
      );
      faults('memory', n);
      controller.abort();
      device.close();
      const ends = await Promise.allSettled(under); // every one settles
      faults('memory', 0);
      for (const end of ends) {
        if (end.status === 'rejected') {
          const { code } = end.reason as AttentionBiasError;
          expect(['ERR_MEMORY', 'ERR_ABORTED', 'ERR_DEVICE']).toContain(code);
        }
      }
    }
  });

  test('no threads', async () => {
    for (let n = 1; n <= 4; ++n) {
      faults('thread', n);
      await expect(open({ device: 'cpu', threads: 4 })).rejects.toMatchObject({
        name: 'AttentionBiasError',
        code: 'ERR_MEMORY',
      });
    }
    faults('thread', 0);
    using device = await open({ device: 'cpu', threads: 4 });
    expect(await run(device, 'bias', operations(5).bias)).toHaveLength(2 * 5 * 10);
  });

  test.each(names)('no device memory: %s', async (name) => {
    using device = await open({ device: 'cuda' });
    const args = operations(20)[name];
    const want = await run(device, name, args);
    let failed = 0;
    for (let n = 1; ; ++n) {
      device.trim();
      faults('deviceMemory', n);
      const got = await attempt(device, name, args);
      faults('deviceMemory', 0);
      if (Array.isArray(got)) break;
      expect(got).toMatchObject({ code: 'ERR_MEMORY', message: expect.stringContaining('bytes') as string });
      ++failed;
    }
    expect(failed).toBeGreaterThan(0);
    expect(await run(device, name, args)).toEqual(want);
    expect(device.memory().usedBytes).toBe(0);
  });

  test.each(['cudaErrorLaunchFailure', 'cudaErrorECCUncorrectable', 'cudaErrorDevicesUnavailable'])(
    'a device that is lost by %s',
    async (fault) => {
      const device = await open({ device: 'cuda' });
      const cpu = await open({ device: 'cpu' });
      const there = await device.toDevice({ data: Float32Array.of(1, 2, 3), shape: [3] });
      const all = operations(20);
      const want = await run(cpu, 'attention', all.attention);
      // What is queued fails with it.
      faults('device', 9, fault);
      const ends = await Promise.allSettled(names.map((name) => run(device, name, all[name])));
      for (const end of ends) {
        expect(end).toMatchObject({ status: 'rejected', reason: { code: 'ERR_DEVICE' } });
        const { message } = (end as PromiseRejectedResult).reason as Error;
        expect(message).toContain(fault);
        expect(message).toContain('start a new process');
      }
      await expect(device.toHost(there)).rejects.toMatchObject({ code: 'ERR_DEVICE' });
      await expect(open({ device: 'cuda' })).rejects.toMatchObject({ code: 'ERR_DEVICE' });
      there.dispose();
      device.close();
      // The other devices go on, and `auto` takes one that works.
      expect(await run(cpu, 'attention', all.attention)).toEqual(want);
      using other = await open({ device: 'cuda:1' });
      expect(await run(other, 'bias', all.bias)).toHaveLength(2 * 20 * 40);
      using auto = await open();
      expect(auto.info.backend).toBe('cpu');
      cpu.close();
    },
  );

  test('a launch that fails alone leaves the device as it was', async () => {
    using device = await open({ device: 'cuda' });
    const { attention } = operations(20);
    const want = await run(device, 'attention', attention);
    for (let n = 1; ; ++n) {
      faults('device', n, 'cudaErrorLaunchOutOfResources');
      const got = await attempt(device, 'attention', attention);
      faults('device', 0);
      if (Array.isArray(got)) break;
      expect(got).toMatchObject({ code: 'ERR_DEVICE' });
      expect(got.message).toContain('too many resources requested for launch');
      expect(got.message).not.toContain('new process');
    }
    expect(await run(device, 'attention', attention)).toEqual(want);
  });

  describe('memoryLimit of a CPU device', () => {
    test('bounds tensors and scratch, and is checked before memory is taken', async () => {
      using device = await open({ device: 'cpu', threads: 2, memoryLimit: 1_000_000 });
      const first = device.tensor([240_000]);
      expect(device.memory()).toMatchObject({ usedBytes: 960_000, limitBytes: 1_000_000 });
      const asked = 'expected 40004 bytes of memory for a tensor [10001] but received none: ';
      expect(() => device.tensor([10_001])).toThrow(`${asked}960000 are in use of a limit of 1000000`);
      device.tensor([10_000]).dispose();
      // An operation's results and scratch.
      const { attention } = operations(300);
      await expect(run(device, 'attention', attention)).rejects.toMatchObject({
        code: 'ERR_MEMORY',
        message: expect.stringMatching(/bytes of memory for .* are in use of a limit of 1000000/) as string,
      });
      first.dispose();
      using free = await open({ device: 'cpu', threads: 2 });
      expect(await run(device, 'attention', attention)).toEqual(await run(free, 'attention', attention));
      expect(device.memory().usedBytes).toBeLessThanOrEqual(1_000_000);
    });

    test.each(names)('%s passes at its peak and fails a byte below', async (name) => {
      const args = operations(40)[name];
      const passes = async (memoryLimit: number): Promise<boolean> => {
        using device = await open({ device: 'cpu', threads: 1, memoryLimit });
        const got = await attempt(device, name, args);
        if (Array.isArray(got)) return true;
        expect(got).toMatchObject({
          code: 'ERR_MEMORY',
          message: expect.stringContaining('limit') as string,
        });
        return false;
      };
      let [low, high] = [1, 2 ** 24];
      expect(await passes(high)).toBe(true);
      expect(await passes(low)).toBe(false);
      while (high - low > 1) {
        const middle = Math.floor((low + high) / 2);
        if (await passes(middle)) high = middle;
        else low = middle;
      }
      expect(high).toBeGreaterThan(100);
    });

    test('comes from the environment too', async () => {
      process.env.ATTENTION_BIAS_MEMORY_LIMIT = '4e3';
      try {
        using device = await open({ device: 'cpu' });
        expect(() => device.tensor([1001])).toThrow('limit of 4000');
        process.env.ATTENTION_BIAS_MEMORY_LIMIT = '1 GB';
        await expect(open()).rejects.toMatchObject({
          code: 'ERR_VALUE',
          message: expect.stringContaining('ATTENTION_BIAS_MEMORY_LIMIT') as string,
        });
      } finally {
        delete process.env.ATTENTION_BIAS_MEMORY_LIMIT;
      }
    });
  });

  test('no tensor of all these stays', async () => {
    // What a failure left to the garbage collector goes with it.
    for (let i = 0; i < 20 && native().memory().blocks > 0; ++i) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect(native().memory()).toEqual({ bytes: 0, blocks: 0 });
  });
});
