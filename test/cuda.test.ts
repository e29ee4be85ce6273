// The host side of the CUDA backend upon the emulator: where tensors are, what chains, what memory is taken, how it ends.
// The kernels' results are conformance.test.ts's and test/native's. Nothing here has run on a GPU.
import { execFile, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { open, openCuda } from '../lib/open.js';
import { referenceAttention, referenceBias } from '../lib/reference.js';
import {
  attentionInputs,
  count,
  expectError,
  narrowed,
  random,
  relativeError,
  roundedToBfloat16,
  termCases,
  uniform,
  widened,
} from './support.js';
import type { NativeBinding } from '../lib/binding.js';
import type { NativeDevice } from '../lib/native-device.js';
import type { BiasTerm, TensorLike } from '../lib/index.js';

const emulated =
  process.env.ATTENTION_BIAS_EMULATED_BINARY ??
  join(__dirname, '../build-emulated/Release/attention_bias.node');
const emulates = spawnSync('cmake', ['--version']).status === 0;
// eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon can't be imported
const binding = (): NativeBinding => require(emulated) as NativeBinding;
const cuda = (options: { memoryLimit?: number } = {}, ordinal = 0): Promise<NativeDevice> =>
  openCuda(binding(), ordinal, 'device', options);

/** The same value with each tensor in it on the device. */
async function onDevice<T>(device: NativeDevice, value: T): Promise<T> {
  if (Array.isArray(value)) return (await Promise.all(value.map((item) => onDevice(device, item)))) as T;
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value;
  if ('data' in value) return (await device.toDevice(value as unknown as TensorLike)) as T;
  const entries = Object.entries(value).map(
    async ([key, item]) => [key, await onDevice(device, item)] as const,
  );
  return Object.fromEntries(await Promise.all(entries)) as T;
}

(emulates ? describe : describe.skip)('CUDA, emulated', () => {
  let device: NativeDevice;
  beforeAll(async () => {
    device = await cuda();
  });
  afterAll(() => {
    device.close();
  });

  describe('memory of tensors', () => {
    test('a round trip keeps every dtype', async () => {
      for (const data of [
        Float32Array.of(1, -0, NaN, Infinity),
        Int32Array.of(1, -2, 3, 4),
        Uint8Array.of(1, 2, 255, 4),
        Uint16Array.of(0x3f80, 1, 0xffff, 4),
      ]) {
        using there = await device.toDevice({ data, shape: [2, 2] });
        expect(there).toMatchObject({ memory: 'device', shape: [2, 2], size: 4, disposed: false });
        using back = await device.toHost(there);
        expect(back).toMatchObject({ memory: 'host', dtype: there.dtype, shape: [2, 2] });
        expect(back.data).toEqual(data);
        using pinned = await device.toHost(there, { memory: 'pinned' });
        expect(pinned.memory).toBe('pinned');
        expect(pinned.data).toEqual(data);
        const out = device.tensor([2, 2], { dtype: there.dtype });
        expect(await device.toHost(there, { out })).toBe(out);
        expect(out.data).toEqual(data);
      }
    });

    test('more than the staging buffers hold', async () => {
      const next = random(3);
      const large = uniform(next, [5_000_001]);
      using there = await device.toDevice(large);
      using back = await device.toHost(there);
      expect(Buffer.compare(Buffer.from(back.data.buffer), Buffer.from(large.data.buffer))).toBe(0);
    });

    test('new tensors are zeros, wherever they are', async () => {
      const first = device.tensor([1000], { memory: 'device' });
      await device.toHost(first);
      first.dispose(); // its block, full of what was there, is the next one's
      for (const memory of ['device', 'pinned', 'host'] as const) {
        using tensor = device.tensor([1000], { memory });
        expect(tensor.memory).toBe(memory);
        using host = await device.toHost(tensor);
        expect(host.data.every((value) => value === 0)).toBe(true);
      }
    });

    test('device memory can not be read by JavaScript', async () => {
      using tensor = device.tensor([2], { memory: 'device' });
      await expectError(() => tensor.data, 'ERR_VALUE', 'host memory', 'toHost');
      await expectError(
        () => device.tensor([2], { memory: 'gpu' as 'device' }),
        'ERR_VALUE',
        '"pinned"',
        '"gpu"',
      );
    });

    test('views share memory and end with their tensor', async () => {
      const data = Float32Array.from({ length: 24 }, (_, i) => i);
      for (const tensor of [
        await device.toDevice({ data, shape: [2, 3, 4] }),
        device.from(data, [2, 3, 4]),
      ]) {
        const row = tensor.at(1).at(2);
        expect(row).toMatchObject({ shape: [4], size: 4, memory: tensor.memory });
        // Seven elements in, so not where a kernel would have it.
        const odd = tensor.reshape([24, 1]).at(7);
        using host = await device.toHost(row);
        using one = await device.toHost(odd);
        expect([...host.data, ...one.data]).toEqual([20, 21, 22, 23, 7]);
        await expectError(() => tensor.reshape([5, 5]), 'ERR_SHAPE', '24 elements', '[5, 5]');
        await expectError(() => tensor.at(2), 'ERR_VALUE', '0 to 1', '2');
        await expectError(() => row.at(0), 'ERR_SHAPE');
        tensor.dispose();
        expect(row.disposed).toBe(true);
        await expectError(() => device.toHost(row), 'ERR_DISPOSED', 'source');
        await expectError(() => row.reshape([2, 2]), 'ERR_DISPOSED');
      }
    });

    test('a hostile object is refused', async () => {
      const tensor = device.tensor([4], { memory: 'device' });
      const { deviceBuffer } = tensor;
      const like = { deviceBuffer, dtype: 'float32', shape: [4], byteOffset: 0 };
      await device.toHost(like as unknown as TensorLike);
      for (const wrong of [
        { ...like, shape: [5] },
        { ...like, byteOffset: 4 },
        { ...like, byteOffset: -4 },
        { ...like, byteOffset: 2, shape: [1] },
        { ...like, dtype: 'float64' },
        { ...like, deviceBuffer: Object.create(Object.getPrototypeOf(deviceBuffer) as object) as object },
      ]) {
        await expect(device.toHost(wrong as unknown as TensorLike)).rejects.toMatchObject({ code: /^ERR_/ });
      }
      tensor.dispose();
      await expectError(() => device.toHost(like as unknown as TensorLike), 'ERR_DISPOSED', 'source');
    });
  });

  describe('operations', () => {
    test.each(Object.entries(termCases(7)))(
      '%s: the same bits from host, pinned and device memory',
      async (_, c) => {
        const inputs = attentionInputs(9, c.shape);
        const host = await device.attention({ ...inputs, bias: c.bias });
        const placed = await onDevice(device, { ...inputs, bias: c.bias });
        const there = await device.attention(placed);
        expect([host.out.memory, there.out.memory, there.lse.memory]).toEqual(['host', 'device', 'device']);
        const query = device.tensor(inputs.query.shape, { memory: 'pinned' });
        query.data.set(inputs.query.data);
        const mixed = await device.attention({ ...placed, query, memory: 'pinned' });
        expect(mixed.out.memory).toBe('pinned');
        for (const { out, lse } of [await hosted(there), mixed]) {
          expect(out.data).toEqual(host.out.data);
          expect(lse.data).toEqual(host.lse.data);
        }
        const want = referenceAttention({ ...inputs, bias: c.bias });
        expect(relativeError(host.out.data, want.out)).toBeLessThan(2e-6);
      },
    );

    const hosted = async <T extends object>(results: T): Promise<T> => {
      const entries = Object.entries(results).map(
        async ([name, tensor]) => [name, await device.toHost(tensor as TensorLike)] as const,
      );
      return Object.fromEntries(await Promise.all(entries)) as T;
    };

    test('heads that come from the host in pieces', async () => {
      // 12 heads of 1.2 MB each, 8 MiB a piece, keys split.
      const next = random(5);
      const [query, key, value] = [
        uniform(next, [2, 6, 3, 8]),
        uniform(next, [2, 6, 20_000, 8]),
        uniform(next, [2, 6, 20_000, 8]),
      ];
      const bias: BiasTerm[] = [
        { type: 'padding', ignore: { data: new Uint8Array(40_000), shape: [2, 20_000] } },
      ];
      const { out, lse } = await device.attention({ query, key, value, bias });
      const there = await hosted(await device.attention(await onDevice(device, { query, key, value, bias })));
      expect(there.out.data).toEqual(out.data);
      expect(there.lse.data).toEqual(lse.data);
      expect(relativeError(out.data, referenceAttention({ query, key, value, bias }).out)).toBeLessThan(2e-6);
    });

    test.each(['f32', 'bf16'] as const)(
      'bfloat16 tensors are the float32 that they stand for, in %s',
      async (precision) => {
        const inputs = attentionInputs(9, [1, 3, 7, 70]);
        const bits = {
          query: narrowed(inputs.query),
          key: narrowed(inputs.key),
          value: narrowed(inputs.value),
        };
        const want = await device.attention({
          query: widened(bits.query),
          key: widened(bits.key),
          value: widened(bits.value),
          precision,
        });
        const mixed = { ...bits, query: widened(bits.query) };
        const one = { query: bits.key, key: bits.key, value: bits.key }; // one copy in three roles
        const same = { query: widened(bits.key), key: widened(bits.key), value: widened(bits.key) };
        for (const [given, expected] of [
          [bits, want],
          [mixed, want],
          [await onDevice(device, bits), want],
          [one, await device.attention({ ...same, precision })],
        ] as const) {
          const { out, lse } = await device.attention({ ...given, precision, memory: 'host' });
          expect(out.data).toEqual(expected.out.data);
          expect(lse.data).toEqual(expected.lse.data);
        }
      },
    );

    test('a stack that never leaves the GPU: project, router, attention', async () => {
      const next = random(8);
      const [queries, grid, keys] = [20, [12, 12], 144] as const;
      const inputs = {
        features: uniform(next, [1, queries, 16]),
        weight: uniform(next, [2, 16]),
        bias: uniform(next, [2], 0, 1),
        referencePoints: uniform(next, [1, queries, 3], 0, 1),
        lidar2img: {
          data: Float32Array.of(8, -9, 0, 0, 4, 0, -9, 0, 1, 0, 0, 0, 0, 0, 0, 1),
          shape: [1, 1, 4, 4],
        },
        query: uniform(next, [1, 2, queries, 8]),
        key: uniform(next, [1, 2, keys, 8]),
        value: uniform(next, [1, 2, keys, 8]),
      };
      const run = async (t: typeof inputs): Promise<Float32Array> => {
        const weights = await device.router({
          features: t.features,
          weight: t.weight,
          bias: t.bias,
          outputsFirst: true,
        });
        expect(weights.shape).toEqual([2, 1, queries]);
        const { bevCenters } = await device.project({
          referencePoints: t.referencePoints,
          pointCloudRange: [-6, -6, -5, 6, 6, 3],
          lidar2img: t.lidar2img,
          imageShape: [9, 16],
          featureShape: [4, 10],
          bevShape: grid,
        });
        const bias: BiasTerm[] = [
          { type: 'modality', segments: [{ start: 0, length: 100, weights: weights.at(0) }] },
          {
            type: 'spatial',
            segments: [{ start: 0, grid, centers: bevCenters, radius: 3, weights: weights.at(1) }],
          },
          { type: 'window', segments: [{ start: 0, grid, centers: bevCenters, size: 5 }] },
        ];
        const result = await device.attention({ query: t.query, key: t.key, value: t.value, bias });
        expect([weights.memory, bevCenters.memory, result.out.memory]).toEqual(
          Array(3).fill(t.query instanceof Object && 'memory' in t.query ? 'device' : 'host'),
        );
        return (await device.toHost(result.out)).data;
      };
      const host = await run(inputs);
      expect(host.some((value) => value !== 0)).toBe(true);
      expect(await run(await onDevice(device, inputs))).toEqual(host);
    });

    test('router with the outputs first', async () => {
      const next = random(4);
      const args = {
        features: uniform(next, [2, 3, 5]),
        weight: uniform(next, [4, 5]),
        bias: uniform(next, [4]),
      };
      const plain = await device.router(args);
      const first = await device.router({ ...args, outputsFirst: true });
      expect([plain.shape, first.shape]).toEqual([
        [2, 3, 4],
        [4, 2, 3],
      ]);
      for (let row = 0; row < 6; ++row)
        for (let m = 0; m < 4; ++m) expect(first.data[m * 6 + row]).toBe(plain.data[row * 4 + m]);
    });

    test.each(['host', 'device'] as const)('values are checked in %s memory', async (memory) => {
      const place = async <T>(value: T): Promise<T> =>
        memory === 'device' ? onDevice(device, value) : value;
      const weights = (data: number[]): Promise<TensorLike> =>
        place({ data: Float32Array.from(data), shape: [1, 3] });
      const modality = async (data: number[], more: BiasTerm[] = []) =>
        device.bias({
          shape: [1, 1, 3, 4],
          bias: [
            ...more,
            { type: 'modality', segments: [{ start: 0, length: 2, weights: await weights(data) }] },
          ],
        });
      await modality([0, 0.5, 1]);
      const name = 'bias[0].segments[0].weights';
      await expectError(() => modality([0, 1.5, -1]), 'ERR_VALUE', '[0, 1]', name, '1.5 at element 1');
      await expectError(() => modality([0, 1, NaN]), 'ERR_VALUE', name, 'nan at element 2');
      const dense = await place({ data: Float32Array.of(0, -Infinity, 1, 2), shape: [1, 1, 1, 4] });
      const bad = await place({ data: Float32Array.of(0, 0, 0, Infinity), shape: [1, 1, 1, 4] });
      await modality([0, 0, 0], [{ type: 'dense', bias: dense }]);
      await expectError(
        () => modality([0, 2, 0], [{ type: 'dense', bias: bad }]),
        'ERR_VALUE',
        'bias[0].bias',
        'inf at element 3',
      );
      const referencePoints = await place({ data: Float32Array.of(0, 1, 1.25), shape: [1, 1, 3] });
      const lidar2img = { data: new Float32Array(16), shape: [1, 1, 4, 4] };
      await expectError(
        () =>
          device.project({
            referencePoints,
            lidar2img,
            pointCloudRange: [0, 0, 0, 1, 1, 1],
            imageShape: [1, 1],
            featureShape: [1, 1],
            bevShape: [1, 1],
          }),
        'ERR_VALUE',
        'referencePoints',
        '1.25 at element 2',
      );
    });

    test.each(Object.entries(termCases(3)))('bias in bfloat16: %s', async (_, { shape, bias }) => {
      using bits = await device.bias({ shape, bias, dtype: 'bfloat16' });
      using single = await device.bias({ shape, bias });
      expect(bits.dtype).toBe('bfloat16');
      expect(bits.data).toEqual(roundedToBfloat16(single.data));
      expect(relativeError(single.data, referenceBias({ shape, bias }))).toBeLessThan(1e-6);
      using there = await device.bias({ shape, bias, dtype: 'bfloat16', memory: 'device' });
      expect((await device.toHost(there)).data).toEqual(bits.data);
      await expectError(
        () => device.bias({ shape, bias, dtype: 'bfloat16', out: single }),
        'ERR_DTYPE',
        'out',
        'bfloat16',
      );
    });

    test('a given output in device memory, also where no kernel would write it', async () => {
      const inputs = attentionInputs(2, [1, 2, 3, 5]);
      const { out } = await device.attention(inputs);
      using all = device.tensor([125], { memory: 'device' });
      const odd = all.reshape([125, 1]).at(3); // one float of it, to say where it begins
      expect(odd.byteOffset).toBe(12);
      using rows = device.tensor([5, 1, 2, 3, 20], { memory: 'device' });
      const given = rows.at(1);
      const result = await device.attention({ ...inputs, out: given });
      expect(result.out).toBe(given);
      using host = await device.toHost(rows);
      expect(host.data.subarray(120, 240)).toEqual(out.data);
      expect(host.data.subarray(0, 120).every((value) => value === 0)).toBe(true);
      await expectError(
        () => device.attention({ ...inputs, query: given.reshape([1, 2, 3, 20]), out: given }),
        'ERR_VALUE',
        'memory of its own',
      );
    });
  });

  describe('what is taken of the memory', () => {
    test('comes back, and is used again', async () => {
      using own = await cuda();
      expect(own.memory()).toMatchObject({ usedBytes: 0, limitBytes: 0, totalBytes: 2 ** 30 });
      const tensor = own.tensor([1 << 20], { memory: 'device' });
      expect(own.memory()).toMatchObject({
        usedBytes: 4 << 20,
        cachedBytes: 0,
        freeBytes: 2 ** 30 - (4 << 20),
      });
      tensor.dispose();
      tensor.dispose();
      expect(own.memory()).toMatchObject({ usedBytes: 0, cachedBytes: 4 << 20 });
      using again = own.tensor([1 << 20], { memory: 'device' });
      expect(own.memory()).toMatchObject({ usedBytes: 4 << 20, cachedBytes: 0 });
      again.dispose();
      await own.attention(attentionInputs(1, [1, 2, 9, 40]));
      expect(own.memory().usedBytes).toBe(0);
      own.trim();
      expect(own.memory()).toMatchObject({ usedBytes: 0, cachedBytes: 0, freeBytes: 2 ** 30 });
    });

    test('out of memory says how much was asked for and is free, and what was there works on', async () => {
      using own = await cuda();
      using tensor = own.tensor([1000], { memory: 'device' });
      const wanted = 2 ** 29;
      const words = [
        `${String(wanted * 4)} bytes of device memory`,
        'a tensor [536870912]',
        `of ${String(2 ** 30)} bytes are free`,
      ];
      await expectError(() => own.tensor([wanted], { memory: 'device' }), 'ERR_MEMORY', ...words);
      using host = await own.toHost(tensor);
      expect(host.size).toBe(1000);
      await own.attention(attentionInputs(1, [1, 2, 9, 40]));
    });

    test('stays below the limit that was given', async () => {
      using own = await cuda({ memoryLimit: 8 << 20 });
      expect(own.memory().limitBytes).toBe(8 << 20);
      const first = own.tensor([1 << 20], { memory: 'device' });
      await expectError(
        () => own.tensor([(1 << 20) + 1], { memory: 'device' }),
        'ERR_MEMORY',
        `${String(4 << 20)} are in use of a limit of ${String(8 << 20)}`,
      );
      first.dispose(); // what is cached counts, and makes room
      using second = own.tensor([(1 << 20) + 1], { memory: 'device' });
      expect(own.memory().cachedBytes).toBe(0);
      await expectError(() => own.attention(attentionInputs(1, [1, 20, 9, 9000])), 'ERR_MEMORY', 'limit');
      expect(own.memory().usedBytes).toBe(5 << 20);
      expect(second.disposed).toBe(false);
    });

    test.each([0, -1, 1.5, '1 GB', NaN])('memoryLimit %p is refused', async (memoryLimit) => {
      await expectError(
        () => open({ device: 'cpu', memoryLimit: memoryLimit as number }),
        'ERR_VALUE',
        'memoryLimit',
      );
    });
  });

  describe('several devices', () => {
    test('compute side by side; a tensor is its device’s alone', async () => {
      using one = await cuda({}, 1);
      expect([device.info, one.info]).toMatchObject([{ ordinal: 0 }, { ordinal: 1 }]);
      const inputs = attentionInputs(6, [1, 2, 17, 90]);
      const [a, b] = await Promise.all([device.attention(inputs), one.attention(inputs)]);
      expect(a.out.data).toEqual(b.out.data);
      using theirs = await one.toDevice(inputs.query);
      const words = ['query', 'this device', "another device's memory"];
      await expectError(() => device.attention({ ...inputs, query: theirs }), 'ERR_DEVICE', ...words);
      await expectError(() => device.toHost(theirs), 'ERR_DEVICE', 'source');
      using host = await one.toHost(theirs);
      using ours = await device.toDevice(host);
      expect((await device.attention({ ...inputs, query: ours, memory: 'host' })).out.data).toEqual(
        a.out.data,
      );
    });

    test('one that is not there', async () => {
      const words = ['a device that can be used for device', '"cuda:7"', 'cuda:0 (emulated', 'cuda:1'];
      await expectError(() => cuda({}, 7), 'ERR_DEVICE', ...words);
    });
  });

  describe('the end', () => {
    test('tensors outlive their device, operations do not', async () => {
      const own = await cuda();
      const data = Float32Array.of(1, 2, 3);
      const tensor = await own.toDevice({ data, shape: [3] });
      const pinned = own.tensor([2], { memory: 'pinned' });
      pinned.data.set([5, 6]);
      own.close();
      expect([tensor.disposed, [...pinned.data]]).toEqual([false, [5, 6]]);
      await expectError(() => own.toHost(tensor), 'ERR_DEVICE', 'open device');
      await expectError(() => own.tensor([1], { memory: 'device' }), 'ERR_DEVICE');
      await expectError(() => own.memory(), 'ERR_DEVICE');
      tensor.dispose();
      pinned.dispose();
      expect(pinned.disposed).toBe(true);
    });

    test('a tensor that an operation uses may be disposed meanwhile', async () => {
      const inputs = attentionInputs(6, [1, 2, 17, 90]);
      const want = (await device.attention(inputs)).out.data;
      const placed = await onDevice(device, inputs);
      const pending = device.attention({ ...placed, memory: 'host' });
      for (const tensor of Object.values(placed)) (tensor as unknown as Disposable)[Symbol.dispose]();
      const others = Array.from({ length: 8 }, () =>
        device.tensor([count(inputs.key.shape)], { memory: 'device' }),
      );
      expect((await pending).out.data).toEqual(want);
      others.forEach((tensor) => {
        tensor.dispose();
      });
    });

    test('an aborted operation rejects, and the next one runs', async () => {
      const controller = new AbortController();
      const inputs = attentionInputs(6, [1, 40, 9, 20_000]);
      const pending = device.attention({ ...inputs, signal: controller.signal });
      controller.abort('enough');
      await expectError(() => pending, 'ERR_ABORTED');
      await device.attention(attentionInputs(6, [1, 1, 9, 20]));
    });

    test.each(['workers', 'terminate', 'exit', 'auto', 'forced-gc'])(
      'process: %s',
      async (mode) => {
        const { stdout, stderr } = await promisify(execFile)(
          process.execPath,
          ['--expose-gc', join(__dirname, 'process', 'cuda.cjs'), mode],
          {
            env: { ...process.env, ATTENTION_BIAS_BINARY: emulated, ATTENTION_BIAS_DEVICE: '' },
            timeout: 100_000,
          },
        );
        expect({ stdout, stderr }).toEqual({ stdout: 'ok\n', stderr: '' });
      },
      120_000,
    );
  });
});
