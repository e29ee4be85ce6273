import { open } from '../lib/index.js';
import { attentionInputs, expectError } from './support.js';
import type { Device } from '../lib/index.js';

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
    await expectError(() => device.bias({ shape: [1, 1, 2 ** 31, 1], bias: [] }), 'ERR_SHAPE', '2^30');
  });
});
