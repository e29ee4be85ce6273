import { open } from '../lib/index.js';
import { native } from '../lib/native.js';
import { attentionInputs, expectError } from './support.js';
import type { Device } from '../lib/index.js';

const memory = (): { bytes: number; blocks: number } => native().memory();

describe('tensors', () => {
  let device: Device;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });

  test('have a frozen shape, a dtype, a size and zeros', () => {
    using tensor = device.tensor([2, 3, 4]);
    expect(tensor.shape).toEqual([2, 3, 4]);
    expect(Object.isFrozen(tensor.shape)).toBe(true);
    expect([tensor.dtype, tensor.size, tensor.disposed]).toEqual(['float32', 24, false]);
    expect(tensor.data).toEqual(new Float32Array(24));
    using ids = device.tensor([3], { dtype: 'int32' });
    expect(ids.data).toEqual(new Int32Array(3));
    using mask = device.tensor([3], { dtype: 'uint8' });
    expect(mask.data).toEqual(new Uint8Array(3));
  });

  test('are zero also where memory was used before, and aligned', () => {
    for (const size of [1, 100, 100_000, 3_000_000]) {
      for (let i = 0; i < 3; ++i) {
        using tensor = device.tensor([size]);
        expect(tensor.data.every((value) => value === 0)).toBe(true);
        tensor.data.fill(7);
      }
    }
  });

  test('show their memory, not a copy of it', async () => {
    const inputs = attentionInputs(3, [1, 2, 5, 9]);
    using query = device.tensor(inputs.query.shape);
    expect(query.data).toBe(query.data);
    query.data.set(inputs.query.data);
    const first = await device.attention({ ...inputs, query });
    expect(first.out.data).toEqual((await device.attention(inputs)).out.data);
    query.data.fill(0); // seen by the next call
    const second = await device.attention({ ...inputs, query });
    expect(second.out.data).not.toEqual(first.out.data);
    // A result is native memory too: another operation takes it as it is.
    const third = await device.attention({ ...inputs, out: first.out });
    expect(third.out.data).toBe(first.out.data);
  });

  test('from wraps the very buffer', async () => {
    const inputs = attentionInputs(3, [1, 2, 5, 9]);
    const data = new Float32Array(500);
    const part = data.subarray(37, 37 + inputs.query.data.length);
    part.set(inputs.query.data);
    const query = device.from(part, inputs.query.shape);
    expect(query.data).toBe(part);
    expect(query.data.buffer).toBe(data.buffer);
    const result = await device.attention({ ...inputs, query });
    expect(result.out.data).toEqual((await device.attention(inputs)).out.data);
    query.dispose();
    expect(data.length).toBe(500);
    expect(device.from(Int32Array.of(1, 2, 3)).shape).toEqual([3]);
    expect(device.from(new Uint8Array(4), [2, 2]).dtype).toBe('uint8');
  });

  test('a SharedArrayBuffer is used in place', async () => {
    const inputs = attentionInputs(3, [1, 2, 5, 9]);
    const data = new Float32Array(new SharedArrayBuffer(inputs.query.data.byteLength));
    data.set(inputs.query.data);
    const out = { data: new Float32Array(new SharedArrayBuffer(4 * 200)), shape: [1, 2, 5, 20] };
    await device.attention({ ...inputs, query: { data, shape: inputs.query.shape }, out });
    expect([...out.data]).toEqual([...(await device.attention(inputs)).out.data]);
  });

  test('bad shapes and options', async () => {
    for (const shape of [[], [0], [-1], [1.5], [NaN], [2 ** 53, 2], 3, null, ['2'], new Array(9).fill(1)]) {
      await expectError(() => device.tensor(shape as number[]), 'ERR_SHAPE', 'shape');
    }
    await expectError(
      () => device.tensor([1], { dtype: 'float64' as 'float32' }),
      'ERR_VALUE',
      'dtype',
      '"float64"',
    );
    await expectError(() => device.tensor([1], { dtyp: 'int32' } as object), 'ERR_VALUE', '"dtyp"');
    await expectError(() => device.from(new Float32Array(3), [2]), 'ERR_SHAPE', '3');
    await expectError(() => device.from([1, 2] as unknown as Float32Array, [2]), 'ERR_DTYPE', '[1, 2]');
    await expectError(
      () => device.from(new Float64Array(2) as unknown as Float32Array),
      'ERR_DTYPE',
      'Float64Array',
    );
  });

  test('more memory than there is', async () => {
    await expectError(() => device.tensor([2 ** 20, 2 ** 20]), 'ERR_MEMORY', '4398046511104 bytes');
    await expectError(
      () => device.tensor([2 ** 40], { dtype: 'uint8' }),
      'ERR_MEMORY',
      '1099511627776 bytes',
    );
    await expectError(
      () => device.bias({ shape: [1, 1, 2 ** 20, 2 ** 20], bias: [] }),
      'ERR_MEMORY',
      '4398046511104 bytes',
    );
    await expectError(() => device.bias({ shape: [1, 1, 2 ** 31, 1], bias: [] }), 'ERR_SHAPE', '2^31');
  });

  describe('dispose', () => {
    test('frees native memory at once, and once', async () => {
      const before = memory();
      const tensor = device.tensor([1000]);
      const { data } = tensor;
      expect(memory()).toEqual({ bytes: before.bytes + 4000, blocks: before.blocks + 1 });
      tensor.dispose();
      expect(memory()).toEqual(before);
      expect(tensor.disposed).toBe(true);
      expect(data.length).toBe(0);
      expect(tensor.shape).toEqual([1000]);
      await expectError(() => tensor.data, 'ERR_DISPOSED', 'data', 'disposed');
      tensor.dispose();
      tensor[Symbol.dispose]();
      expect(memory()).toEqual(before);
    });

    test('by using', async () => {
      const before = memory();
      const inputs = attentionInputs(3, [1, 2, 5, 9]);
      {
        const result = await device.attention(inputs);
        using out = result.out;
        using lse = result.lse;
        expect(memory().blocks).toBe(before.blocks + 2);
        expect([out.disposed, lse.disposed]).toEqual([false, false]);
      }
      expect(memory()).toEqual(before);
    });

    test('of an input keeps its memory until the operation ends', async () => {
      const before = memory();
      const inputs = attentionInputs(3, [1, 8, 200, 3000]);
      const expected = await device.attention(inputs);
      const query = device.tensor(inputs.query.shape);
      query.data.set(inputs.query.data);
      const running = device.attention({ ...inputs, query });
      query.dispose();
      expect(memory().bytes).toBeGreaterThanOrEqual(before.bytes + inputs.query.data.byteLength);
      const result = await running;
      expect(result.out.data).toEqual(expected.out.data);
      for (const tensor of [expected.out, expected.lse, result.out, result.lse]) tensor.dispose();
      expect(memory()).toEqual(before);
    });

    test('of an output while it is written', async () => {
      const before = memory();
      const out = device.tensor([1, 8, 200, 20]);
      const running = device.attention({ ...attentionInputs(3, [1, 8, 200, 3000]), out });
      out.dispose();
      const result = await running;
      expect(result.out).toBe(out);
      expect(out.disposed).toBe(true);
      result.lse.dispose();
      expect(memory()).toEqual(before);
    });

    test('leaves nothing behind a failed or aborted operation', async () => {
      const before = memory();
      const inputs = attentionInputs(3, [1, 8, 200, 3000]);
      const controller = new AbortController();
      const running = device.attention({ ...inputs, signal: controller.signal });
      controller.abort();
      await expectError(() => running, 'ERR_ABORTED');
      const lse = { data: new Float32Array(3), shape: [3] };
      await expectError(() => device.attention({ ...inputs, lse }), 'ERR_SHAPE', 'lse');
      expect(memory()).toEqual(before);
    });

    test('frees what a closed device made', async () => {
      const before = memory();
      const other = await open({ device: 'cpu', threads: 1 });
      const tensor = other.tensor([10]);
      other.close();
      tensor.data[0] = 1;
      tensor.dispose();
      expect(memory()).toEqual(before);
    });
  });

  test('without external buffers results are copied into ordinary ones', async () => {
    const inputs = attentionInputs(3, [1, 2, 5, 9]);
    const expected = await device.attention(inputs);
    const before = memory();
    native().setExternalLimit(0);
    try {
      const query = device.tensor(inputs.query.shape);
      query.data.set(inputs.query.data);
      const { out, lse } = await device.attention({ ...inputs, query });
      expect(out.data).toEqual(expected.out.data);
      expect(memory()).toEqual(before);
      for (const tensor of [query, out, lse]) tensor.dispose();
      expect(out.disposed).toBe(true);
    } finally {
      native().setExternalLimit(2 ** 32 - 1);
    }
  });
});
