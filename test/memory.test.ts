/** Native memory is freed exactly once. Every test disposes of all it made, so that no finalizer of one runs in another. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { open } from '../lib/index.js';
import { native } from '../lib/native.js';
import { attentionInputs, expectError } from './support.js';
import type { Device } from '../lib/index.js';

const memory = (): { bytes: number; blocks: number } => native().memory();

describe('dispose', () => {
  let device: Device;
  beforeAll(async () => {
    // Jest runs other files in this process before: what they left behind goes now, not in the middle of a test.
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    for (let still = 0, blocks = -1; still < 5; still = memory().blocks === blocks ? still + 1 : 0) {
      ({ blocks } = memory());
      collect();
      await new Promise((resolve) => setTimeout(resolve, 10)); // finalizers run later
    }
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });

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
    // Two, so that one waits: a running one might end before it sees the signal. The first takes a while, since this
    // thread may be kept waiting too before it aborts.
    const running = device.attention(attentionInputs(3, [1, 8, 1000, 30_000]));
    const waiting = device.attention({ ...inputs, signal: controller.signal });
    controller.abort();
    await expectError(() => waiting, 'ERR_ABORTED');
    const { out, lse: given } = await running;
    out.dispose();
    given.dispose();
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

  test('without external buffers results are copied into ordinary ones', async () => {
    const inputs = attentionInputs(3, [1, 2, 5, 9]);
    const reference = await device.attention(inputs);
    const expected = reference.out.data.slice();
    reference.out.dispose();
    reference.lse.dispose();
    const before = memory();
    native().setExternalLimit(0);
    try {
      const query = device.tensor(inputs.query.shape);
      query.data.set(inputs.query.data);
      const { out, lse } = await device.attention({ ...inputs, query });
      expect(out.data).toEqual(expected);
      expect(memory()).toEqual(before);
      for (const tensor of [query, out, lse]) tensor.dispose();
      expect(out.disposed).toBe(true);
    } finally {
      native().setExternalLimit(2 ** 32 - 1);
    }
  });
});
