// Everything that a call may be given and must refuse: always an error that names the field, never a crash.
import fc from 'fast-check';
import { open } from '../lib/index.js';
import { attentionInputs, errorOf, expectError } from './support.js';
import type { AttentionArgs, Device, Tensor, TensorLike } from '../lib/index.js';

const shape: [number, number, number, number] = [1, 2, 5, 9];
const good = (): AttentionArgs => attentionInputs(1, shape);
const floats = (...dims: number[]) => ({
  data: new Float32Array(dims.reduce((a, b) => a * b, 1)),
  shape: dims,
});

describe('arguments', () => {
  let device: Device;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });
  const attend =
    (changes: object): (() => unknown) =>
    () =>
      device.attention({ ...good(), ...changes });

  test('unknown, missing and no fields', async () => {
    await expectError(attend({ quer: 1 }), 'ERR_VALUE', 'query, key, value', '"quer"');
    await expectError(attend({ key: undefined }), 'ERR_VALUE', 'key', 'undefined');
    await expectError(() => device.attention(null as never), 'ERR_VALUE', 'an object', 'null');
    await expectError(() => device.router([] as never), 'ERR_VALUE', 'features');
    await expectError(() => device.project({} as never), 'ERR_VALUE', 'referencePoints');
    await expectError(() => device.bias({ shape: [1, 1, 1, 1] } as never), 'ERR_VALUE', 'bias', 'undefined');
    await expectError(
      () => device.bias({ shape: [1, 1, 1] as never, bias: [] }),
      'ERR_SHAPE',
      '[B, H, Q, K]',
      '[1, 1, 1]',
    );
    await expectError(attend({ bias: 'causal' }), 'ERR_VALUE', 'bias', '"causal"');
    await expectError(attend({ bias: null }), 'ERR_VALUE', 'bias', 'null');
  });

  test('what is no tensor', async () => {
    for (const query of [
      null,
      1,
      'q',
      [1, 2],
      new Float32Array(90),
      () => 1,
      {},
      { data: [1] },
      { shape: [1] },
    ]) {
      const error = await errorOf(attend({ query }));
      expect(error.message).toContain('query');
      expect(['ERR_VALUE', 'ERR_DTYPE']).toContain(error.code);
    }
  });

  test.each([Float64Array, Int8Array, Int16Array, BigInt64Array, Uint8ClampedArray])('%p', async (Type) => {
    const query = { data: new Type(5 * 2 * 12), shape: [1, 2, 5, 12] };
    await expectError(attend({ query }), 'ERR_DTYPE', 'query', Type.name);
  });

  test('an element type that the field does not have', async () => {
    const query = { data: new Int32Array(120), shape: [1, 2, 5, 12] };
    await expectError(attend({ query }), 'ERR_DTYPE', 'float32', 'query', 'int32');
    await expectError(
      attend({ query: { data: new DataView(new ArrayBuffer(480)), shape: [1] } }),
      'ERR_DTYPE',
      'a DataView',
    );
    await expectError(
      attend({ query: { data: Buffer.alloc(120), shape: [1, 2, 5, 12] } }),
      'ERR_DTYPE',
      'uint8',
    );
  });

  test.each([
    ['not as long as its data', [1, 2, 5, 13]],
    ['2^40 elements', [2 ** 20, 2 ** 20, 1, 1]],
    ['more than 2^53 elements', [2 ** 30, 2 ** 30, 1, 1]],
    ['an infinite dimension', [Infinity, 1, 1, 1]],
    ['an empty dimension', [0, 2, 5, 12]],
    ['a negative dimension', [-1, -2, 5, 12]],
    ['a fraction', [1, 2, 2.5, 24]],
    ['NaN', [NaN, 2, 5, 12]],
    ['a string', ['1', 2, 5, 12]],
    ['no dimensions', []],
    ['nine dimensions', [1, 1, 1, 1, 1, 1, 2, 5, 12]],
    ['a sparse array', new Array<number>(4)],
    ['a huge sparse array', new Array<number>(2 ** 32 - 1)],
    ['a typed array', Int32Array.of(1, 2, 5, 12)],
    ['undefined', undefined],
  ])('a shape: %s', async (_, dims) => {
    await expectError(attend({ query: { data: new Float32Array(120), shape: dims } }), 'ERR_SHAPE', 'query');
  });

  test('shapes that do not fit each other', async () => {
    await expectError(attend({ key: floats(1, 2, 9, 13) }), 'ERR_SHAPE', 'key', '[1, 2, 9, 13]');
    await expectError(attend({ value: floats(1, 2, 8, 4) }), 'ERR_SHAPE', 'value', '[1, 2, 8, 4]');
    await expectError(attend({ query: floats(2, 5, 12) }), 'ERR_SHAPE', 'query', '[2, 5, 12]');
  });

  test.each([NaN, Infinity, -Infinity, '1', null])('scale %p', async (scale) => {
    await expectError(attend({ scale }), 'ERR_VALUE', 'scale');
  });

  test('precision', async () => {
    await expectError(
      attend({ precision: 'tf32' }),
      'ERR_VALUE',
      '"f32" or "bf16"',
      'precision on the cpu backend',
      '"tf32"',
    );
  });

  test('reference points and ranges out of bounds', async () => {
    const args = {
      referencePoints: { data: Float32Array.of(0.5, 0.5, 1.5), shape: [1, 1, 3] },
      pointCloudRange: [-50, -50, -5, 50, 50, 5] as const,
      lidar2img: floats(1, 1, 4, 4),
      imageShape: [10, 10] as const,
      featureShape: [5, 5] as const,
      bevShape: [5, 5] as const,
    };
    await expectError(() => device.project(args), 'ERR_VALUE', 'referencePoints', '1.5');
    const referencePoints = floats(1, 1, 3);
    await expectError(
      () => device.project({ ...args, referencePoints, pointCloudRange: [5, 0, 0, 1, 1, 1] }),
      'ERR_VALUE',
      'pointCloudRange',
    );
    await expectError(
      () => device.project({ ...args, referencePoints, bevShape: [0, 5] }),
      'ERR_VALUE',
      'bevShape',
    );
    await expectError(
      () => device.project({ ...args, referencePoints, imageShape: [NaN, 5] }),
      'ERR_VALUE',
      'imageShape',
      'NaN',
    );
  });

  describe('memory', () => {
    test('a detached buffer', async () => {
      const { query } = attentionInputs(1, shape);
      structuredClone(query.data.buffer, { transfer: [query.data.buffer as ArrayBuffer] });
      await expectError(attend({ query }), 'ERR_VALUE', 'query.data', 'detached');
    });

    test('a buffer detached by a getter of a later argument', async () => {
      const { query } = attentionInputs(1, shape);
      const args = { ...good(), query };
      Object.defineProperty(args, 'value', {
        enumerable: true,
        get: () => {
          // `...rest` in the API reads the getter, so this is before the addon; the next is within it.
          structuredClone(query.data.buffer, { transfer: [query.data.buffer as ArrayBuffer] });
          return good().value;
        },
      });
      await expectError(() => device.attention(args), 'ERR_VALUE', 'query.data', 'detached');

      const late = attentionInputs(1, shape);
      const value = {
        data: late.value.data,
        get shape(): number[] {
          structuredClone(late.query.data.buffer, { transfer: [late.query.data.buffer as ArrayBuffer] });
          return late.value.shape;
        },
      };
      await expectError(() => device.attention({ ...late, value }), 'ERR_VALUE', 'query.data', 'detached');
    });

    test('a buffer detached while the operation runs', async () => {
      const inputs = attentionInputs(1, [1, 8, 256, 4096]);
      const running = device.attention(inputs);
      structuredClone(inputs.key.data.buffer, { transfer: [inputs.key.data.buffer as ArrayBuffer] });
      await expectError(() => running, 'ERR_VALUE', 'key.data', 'detached');
    });

    test('a resizable buffer', async () => {
      const Resizable = ArrayBuffer as unknown as new (length: number, options: object) => ArrayBuffer;
      const data = new Float32Array(new Resizable(480, { maxByteLength: 4800 }));
      await expectError(
        attend({ query: { data, shape: [1, 2, 5, 12] } }),
        'ERR_VALUE',
        'query.data',
        'resizable',
      );
    });

    test('a disposed tensor', async () => {
      const query = device.tensor([1, 2, 5, 12]);
      query.dispose();
      await expectError(attend({ query }), 'ERR_DISPOSED', 'query', 'disposed');
    });

    test('what a getter throws is passed on', async () => {
      const query = {
        data: new Float32Array(120),
        get shape(): number[] {
          throw new RangeError('mine');
        },
      };
      await expect(device.attention({ ...good(), query })).rejects.toThrow(new RangeError('mine'));
    });

    test('proxies are read as the objects they show', async () => {
      const { query, ...rest } = attentionInputs(1, shape);
      const plain = await device.attention({ query, ...rest });
      const proxied = await device.attention({ query: new Proxy(query, {}), ...rest });
      expect(proxied.out.data).toEqual(plain.out.data);
    });
  });

  describe('outputs of the caller', () => {
    test('are written and returned', async () => {
      const expected = await device.attention(good());
      const [out, lse] = [device.tensor([1, 2, 5, 20]), device.from(new Float32Array(10), [1, 2, 5])];
      const result = await device.attention({ ...good(), out, lse });
      expect(result.out).toBe(out);
      expect(result.lse).toBe(lse);
      expect(out.data).toEqual(expected.out.data);
      expect(lse.data).toEqual(expected.lse.data);
    });

    test('may be plain, and one alone', async () => {
      const out = floats(1, 2, 5, 20);
      const result = await device.attention({ ...good(), out });
      expect(result.out.data).toBe(out.data);
      expect(result.lse.shape).toEqual([1, 2, 5]);
      expect(out.data.some((value) => value !== 0)).toBe(true);
    });

    test('of another shape or dtype are refused', async () => {
      await expectError(attend({ out: floats(1, 2, 5, 21) }), 'ERR_SHAPE', 'out', '[1, 2, 5, 21]');
      await expectError(attend({ lse: floats(1, 2, 5, 1) }), 'ERR_SHAPE', 'lse', '[1, 2, 5, 1]');
      await expectError(
        attend({ lse: { data: new Int32Array(10), shape: [1, 2, 5] } }),
        'ERR_DTYPE',
        'lse',
        'int32',
      );
    });

    test('that share memory are refused', async () => {
      const memory = new ArrayBuffer(4 * 2000);
      const at = (offset: number, ...dims: number[]): TensorLike => ({
        data: new Float32Array(
          memory,
          offset,
          dims.reduce((a, b) => a * b, 1),
        ),
        shape: dims,
      });
      // query takes 480 bytes; out 800; lse 40.
      await expectError(
        attend({ query: at(0, 1, 2, 5, 12), out: at(476, 1, 2, 5, 20) }),
        'ERR_VALUE',
        'out',
        'query',
      );
      await expectError(
        attend({ out: at(0, 1, 2, 5, 20), lse: at(796, 1, 2, 5) }),
        'ERR_VALUE',
        'out',
        'lse',
      );
      await device.attention({
        ...good(),
        query: at(0, 1, 2, 5, 12),
        out: at(480, 1, 2, 5, 20),
        lse: at(1280, 1, 2, 5),
      });
      const shared = good().query as { data: Float32Array };
      await expectError(
        attend({ query: shared, out: { data: shared.data, shape: [1, 2, 5, 20] } }),
        'ERR_SHAPE',
        'out',
      );
    });
  });

  test('any arguments at all give an error or a result', async () => {
    const leaf = fc.oneof(
      fc.anything(),
      fc.constantFrom<unknown>(
        floats(1, 1, 2, 3),
        floats(1, 1, 2),
        { data: new Int32Array(2), shape: [1, 2] },
        { data: new Uint8Array(2), shape: [1, 2] },
        -1,
        2 ** 53,
        [1, 2],
        'causal',
      ),
    );
    const types = 'dense mask padding causal slidingWindow blockDiagonal modality spatial window denoising';
    const type = fc.constantFrom(
      ...types.split(' '),
      'shiftedWindow',
      'relativePosition',
      'lowRank',
      'alibi',
    );
    const names =
      'bias visible ignore align left right queryIds keyIds strength groups groupSize resolution window';
    const more =
      'shift value table clsToken queryFactors keyFactors scale slopes start grid centers radius weights size';
    const name = fc.constantFrom(...names.split(' '), ...more.split(' '), 'length', 'other');
    const fields = fc.dictionary(name, leaf, { maxKeys: 5 });
    const term = fc
      .tuple(type, fields, fc.array(fields, { maxLength: 2 }), fc.boolean())
      .map(([t, own, segments, has]) => ({ ...own, type: t, ...(has ? { segments } : {}) }));
    const args = fc.record(
      {
        query: fc.oneof(
          { weight: 4, arbitrary: fc.constant(floats(1, 1, 2, 3)) },
          { weight: 1, arbitrary: leaf },
        ),
        key: fc.oneof(
          { weight: 4, arbitrary: fc.constant(floats(1, 1, 2, 3)) },
          { weight: 1, arbitrary: leaf },
        ),
        value: fc.oneof(
          { weight: 4, arbitrary: fc.constant(floats(1, 1, 2, 3)) },
          { weight: 1, arbitrary: leaf },
        ),
        bias: fc.array(term, { maxLength: 3 }),
      },
      { requiredKeys: ['query', 'key', 'value'] },
    );
    await fc.assert(
      fc.asyncProperty(args, async (some) => {
        const result = await device.attention(some as never).catch((error: unknown) => error);
        if (result instanceof Error) {
          expect((result as { code?: string }).code).toMatch(/^ERR_/);
          expect(result.message).toMatch(/^expected .* for .* but received /);
        } else {
          expect((result as { out: Tensor }).out.size).toBe(6);
        }
      }),
      { numRuns: 500 },
    );
  });
});
