// Public operations given what JavaScript can make of an argument: getters that throw or answer differently the second time,
// proxies, memory that shrinks or goes away, numbers of every kind. Each call ends well or with the package's own error,
// and the device computes afterwards what it did before.
import { isProxy } from 'node:util/types';

import fc from 'fast-check';
import { Adam, open, pipeline } from '../lib/index.js';
import { AttentionBiasError } from '../lib/errors.js';
import { attentionInputs } from './support.js';
import type { AttentionArgs, Device } from '../lib/index.js';

type Args = Record<PropertyKey, unknown>;

const floats = (...shape: number[]) => ({
  data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.25),
  shape,
});
const codes: readonly string[] = [
  ...['ERR_SHAPE', 'ERR_DTYPE', 'ERR_VALUE', 'ERR_TERM', 'ERR_DEVICE', 'ERR_MEMORY', 'ERR_ABORTED'],
  'ERR_DISPOSED',
];
/** What getters here throw: it must come out as it is. */
class Mine extends Error {}
const mine = new Mine('of a getter');
const throwMine = (): never => {
  throw mine;
};

// TypeScript's library of this target knows no resizable memory.
const Resizable = ArrayBuffer as unknown as new (
  length: number,
  options: { maxByteLength: number },
) => ArrayBuffer & { resize: (length: number) => void };
const Growable = SharedArrayBuffer as unknown as new (
  length: number,
  options: { maxByteLength: number },
) => SharedArrayBuffer;

const transfer = (array: { buffer: ArrayBufferLike }): void => {
  if (!(array.buffer instanceof ArrayBuffer) || array.buffer.byteLength === 0) return;
  structuredClone(array.buffer, { transfer: [array.buffer] });
};
function detached(): Float32Array {
  const array = new Float32Array(6);
  transfer(array);
  return array;
}
function revoked(target: object): object {
  const { proxy, revoke } = Proxy.revocable(target, {});
  revoke();
  return proxy;
}
/** Resizable memory that says it isn't. */
function disguised(): Float32Array {
  const array = new Float32Array(new Resizable(24, { maxByteLength: 4096 }), 0, 6);
  Object.defineProperty(array, 'buffer', { value: {} });
  return array;
}

const values: (() => unknown)[] = [
  ...[undefined, null, true, false, NaN, -0, 0, 1, 2, 3, 6, -1, 1.5, Infinity, -Infinity, 2 ** 31].map(
    (value) => () => value,
  ),
  ...[2 ** 53, 2 ** 53 + 2, -(2 ** 53), 1e308, 5e-324, 10n, '', '1', 'a\nb', 'f32', 'x'.repeat(500)].map(
    (value) => () => value,
  ),
  () => Symbol('a symbol'),
  () => Symbol.iterator,
  () => () => 1,
  () => (): number => {
    // over lines
    return 2;
  },
  () => [],
  () => new Array<number>(3),
  () => new Array<number>(2 ** 32 - 1),
  () => [1, , 2],
  () => [2, 3],
  () => [2 ** 30, 2 ** 30, 2 ** 30, 2 ** 30],
  () => ({}),
  () => Object.create(null) as object,
  () => [Object.create(null) as object],
  () => new (class extends Map {})(),
  () => new (Object.defineProperty(class extends Map {}, 'name', { value: 'a\nb' }))(),
  () => ({ [Symbol.toPrimitive]: throwMine }),
  () => ({ [Symbol.toStringTag]: 'Float32Array', length: 6 }),
  () => new Date(NaN),
  () => Promise.resolve(1),
  () => new Float32Array(0),
  () => new Float32Array(6),
  () => new Float64Array(6),
  () => new BigInt64Array(6),
  () => new Uint8Array(6),
  () => new DataView(new ArrayBuffer(24)),
  () => new ArrayBuffer(24),
  () => new Float32Array(new SharedArrayBuffer(24)),
  () => new Float32Array(new Growable(24, { maxByteLength: 4096 })),
  () => new Float32Array(new Resizable(24, { maxByteLength: 4096 })),
  disguised,
  detached,
  () => ({ data: disguised(), shape: [2, 3] }),
  () => ({ data: detached(), shape: [2, 3] }),
  () => ({ data: new Float32Array(6), shape: revoked([2, 3]) }),
  () => ({ data: new Float32Array(6), shape: [2 ** 52, 2 ** 52] }),
  () => ({ data: new Float32Array(6).fill(NaN), shape: [2, 3] }),
  () => Object.freeze({ data: new Float32Array(6), shape: Object.freeze([2, 3]) }),
  () => revoked({}),
  () => new Proxy(new Float32Array(6), {}),
  () => new Proxy({}, { get: throwMine }),
  () => new Proxy([1, 2], {}),
  () => AbortSignal.abort(mine),
  () => ({ aborted: false, addEventListener: throwMine, removeEventListener: throwMine }),
  () => ({ aborted: false, addEventListener: () => 1 }),
];

type Place = readonly [parent: Args, key: string];

/** Every field and entry of plain objects and arrays; getters and proxies are left alone. */
function placesOf(args: object): Place[] {
  const places: Place[] = [];
  const visit = (value: unknown): void => {
    if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value) || isProxy(value)) return;
    if (!Array.isArray(value) && Object.getPrototypeOf(value) !== Object.prototype) return;
    if (Array.isArray(value) && value.length > 64) return;
    for (const [key, descriptor] of Object.entries(Object.getOwnPropertyDescriptors(value as Args))) {
      if (descriptor.get || !descriptor.configurable) continue;
      places.push([value as Args, key]);
      visit(descriptor.value);
    }
  };
  visit(args);
  return places;
}

const arraysOf = (args: object): Float32Array[] =>
  placesOf(args)
    .map(([parent, key]) => parent[key])
    .filter((value): value is Float32Array => ArrayBuffer.isView(value) && !isProxy(value));

function define(parent: Args, key: string, get: () => unknown): void {
  Object.defineProperty(parent, key, { get, enumerable: true, configurable: true });
}

/** One change of arguments: at a place, of a kind, to a value. */
interface Edit {
  at: number;
  how: number;
  value: number;
}

function apply(args: object, { at, how, value }: Edit): void {
  const places = placesOf(args);
  const place = places[at % places.length];
  if (!place) return;
  const [parent, key] = place;
  const old = parent[key];
  const arrays = arraysOf(args);
  const hostile = values[value % values.length]!();
  const wrap = typeof old === 'object' && old !== null && !isProxy(old) ? old : {};
  const fields = ArrayBuffer.isView(wrap) ? {} : Object.getOwnPropertyDescriptors(wrap);
  const set = (changed: unknown): void => {
    Object.defineProperty(parent, key, { value: changed, enumerable: true, configurable: true });
  };
  const name = typeof hostile === 'string' ? hostile : String(value);
  let reads = 0;
  const kinds: (() => void)[] = [
    () => set(hostile),
    () => set(hostile),
    () => set(hostile),
    () => Reflect.deleteProperty(parent, key),
    () => define(parent, key, throwMine),
    () => define(parent, key, () => (reads++ === 0 ? old : hostile)),
    () => define(parent, key, () => (reads++ === 0 ? hostile : old)),
    () => define(parent, key, () => (reads++ < 2 ? old : hostile)),
    () => define(parent, key, () => (reads++ < 1 ? old : throwMine())),
    () => set(new Proxy(wrap, {})),
    () => set(revoked(wrap)),
    () => set(new Proxy(wrap, { get: throwMine })),
    () => set(Object.create(null, fields)),
    () => (ArrayBuffer.isView(wrap) ? set(hostile) : Object.freeze(wrap)),
    () => set(Object.create(Object.prototype, { ...fields, [name]: { value: hostile, enumerable: true } })),
    () => set(Object.isExtensible(wrap) ? Object.assign(wrap, { [Symbol('key')]: hostile }) : hostile),
    () =>
      define(parent, key, () => {
        if (reads++ === 0 && arrays.length > 0) transfer(arrays[value % arrays.length]!);
        return old;
      }),
  ];
  kinds[how % kinds.length]!();
}

const edits = fc.array(fc.record({ at: fc.nat(400), how: fc.nat(16), value: fc.nat(200) }), {
  minLength: 1,
  maxLength: 3,
});

const terms = () => [
  { type: 'modality', strength: 3, segments: [{ start: 0, length: 2, weights: floats(1, 2) }] },
  {
    type: 'spatial',
    segments: [{ start: 0, grid: [1, 3], centers: floats(1, 2, 2), radius: 2, weights: floats(1, 2) }],
  },
  { type: 'slidingWindow', left: 2, right: 1, align: 'bottom-right' },
  { type: 'dense', bias: floats(1, 1, 2, 3) },
  { type: 'padding', ignore: { data: new Uint8Array(3), shape: [1, 3] } },
  { type: 'blockDiagonal', queryIds: ids(1, 2), keyIds: ids(1, 3) },
  { type: 'lowRank', queryFactors: floats(1, 1, 2, 2), keyFactors: floats(1, 1, 3, 2), scale: 0.5 },
];
const ids = (...shape: number[]) => ({ data: new Int32Array(shape[0]! * shape[1]!), shape });
const attention = () => ({ query: floats(1, 1, 2, 3), key: floats(1, 1, 3, 3), value: floats(1, 1, 3, 2) });
const deformable = () => ({
  value: floats(1, 6, 1, 2),
  spatialShapes: [[2, 3]],
  samplingLocations: floats(1, 2, 1, 1, 2, 2),
  attentionWeights: floats(1, 2, 1, 1, 2),
});
const router = () => ({ features: floats(1, 2, 3), weight: floats(2, 3), bias: floats(2) });
const every = { signal: undefined, memory: undefined };

/** Good arguments of each operation, and the call. */
const operations: Record<string, [args: () => object, call: (device: Device, args: never) => unknown]> = {
  attention: [
    () => ({
      ...attention(),
      bias: terms(),
      scale: 1,
      precision: 'f32',
      out: undefined,
      lse: undefined,
      ...every,
    }),
    (device, args) => device.attention(args),
  ],
  'attention into out and lse': [
    () => ({ ...attention(), out: floats(1, 1, 2, 2), lse: floats(1, 1, 2) }),
    (device, args) => device.attention(args),
  ],
  attentionBackward: [
    () => ({ ...attention(), bias: terms(), gradOut: floats(1, 1, 2, 2), termGradients: true, ...every }),
    (device, args) => device.attentionBackward(args),
  ],
  bias: [
    () => ({ shape: [1, 1, 2, 3], bias: terms(), dtype: 'float32', out: undefined, ...every }),
    (device, args) => device.bias(args),
  ],
  linear: [
    () => ({ input: floats(2, 3), weight: floats(2, 3), bias: floats(2), out: undefined, ...every }),
    (device, args) => device.linear(args),
  ],
  deformable: [
    () => ({ ...deformable(), out: undefined, ...every }),
    (device, args) => device.deformable(args),
  ],
  deformableBackward: [
    () => ({ ...deformable(), gradOut: floats(1, 2, 2), deterministic: true, ...every }),
    (device, args) => device.deformableBackward(args),
  ],
  multihead: [
    () => ({
      ...{ query: floats(1, 2, 4), key: floats(1, 3, 4), value: floats(1, 3, 4), heads: 2 },
      ...{ inProjWeight: floats(12, 4), inProjBias: floats(12), outProjWeight: floats(4, 4) },
      ...{ bias: terms().slice(0, 3), identity: true, out: undefined, precision: undefined, ...every },
    }),
    (device, args) => device.multihead(args),
  ],
  router: [
    () => ({ ...router(), outputsFirst: true, out: undefined, ...every }),
    (device, args) => device.router(args),
  ],
  routerBackward: [
    () => ({ ...router(), gradOut: floats(1, 2, 2), ...every }),
    (device, args) => device.routerBackward(args),
  ],
  project: [
    () => ({
      ...{ referencePoints: floats(1, 2, 3), pointCloudRange: [-1, -1, -1, 1, 1, 1] },
      ...{
        lidar2img: floats(1, 1, 4, 4),
        imageShape: [8, 8],
        featureShape: [4, 4],
        bevShape: [4, 4],
        ...every,
      },
    }),
    (device, args) => device.project(args),
  ],
  toHost: [
    () => ({ tensor: floats(2, 3), options: { out: floats(2, 3), memory: 'host', signal: undefined } }),
    (device, { tensor, options }: { tensor: never; options: never }) => device.toHost(tensor, options),
  ],
  toDevice: [
    () => ({ tensor: floats(2, 3), options: { signal: undefined } }),
    (device, { tensor, options }: { tensor: never; options: never }) => device.toDevice(tensor, options),
  ],
  tensor: [
    () => ({ shape: [2, 3], options: { dtype: 'int32', memory: 'host' } }),
    (device, { shape, options }: { shape: never; options: never }) => {
      const tensor = device.tensor(shape, options);
      return [tensor.size, tensor.data.length];
    },
  ],
  from: [
    () => ({ data: new Float32Array(6), shape: [2, 3] }),
    (device, { data, shape }: { data: never; shape: never }) => {
      const tensor = device.from(data, shape);
      return [tensor.size, (tensor.data as Float32Array).length];
    },
  ],
  reshape: [
    () => ({ shape: [3, 2], index: 1 }),
    (device, { shape, index }: { shape: never; index: never }) => {
      const view = device.tensor([2, 3]).reshape(shape);
      return [view.size, view.data.length, view.at(index).data.length];
    },
  ],
  Adam: [
    () => ({
      parameters: [floats(2, 3)],
      options: { learningRate: 0.1, betas: [0.9, 0.999], epsilon: 1e-8, weightDecay: 0.1 },
      gradients: [floats(2, 3)],
    }),
    (_, { parameters, options, gradients }: Record<string, never>) => {
      const adam = new Adam(parameters!, options);
      adam.step(gradients!);
      return adam.steps;
    },
  ],
  open: [
    () => ({ options: { device: 'cpu', threads: 1, precision: 'f32', memoryLimit: 2 ** 30 } }),
    async (_, { options }: { options: never }) => (await open(options)).close(),
  ],
  pipeline: [
    () => ({
      options: {
        ...{ stages: [{ name: 'same', run: (x: unknown) => x, concurrency: 1 }, (x: unknown) => x] },
        ...{
          concurrency: 2,
          maxBytes: 100,
          bytes: () => 1,
          ordered: true,
          onError: 'throw',
          signal: undefined,
        },
      },
    }),
    async (device, { options }: { options: never }) => {
      const running = pipeline([1, 2], options);
      let count = 0;
      for await (const item of running as AsyncIterable<unknown>) count += item === undefined ? 0 : 1;
      return [device.info, count];
    },
  ],
};

/** A revoked proxy has no better to say than the engine, nor has a thing that was made to refuse conversion. */
const isOfArguments = (error: unknown): boolean =>
  error === mine || /^TypeError: .* has been revoked$/.test(String(error)); // of any realm

function requireOwnError(error: unknown): void {
  if (isOfArguments(error)) return;
  if (!(error instanceof AttentionBiasError)) throw error;
  expect(codes).toContain(error.code);
  if (error.code === 'ERR_ABORTED') return;
  expect(error.message).toMatch(/^expected .* but received .*$/); // one line
}

describe('hostile arguments', () => {
  let device: Device;
  let known: Float32Array;
  const lost: unknown[] = [];
  const note = (error: unknown): void => {
    lost.push(error);
  };
  const good = (): AttentionArgs => attentionInputs(5, [1, 2, 5, 70]);
  const requireUsable = async (): Promise<void> => {
    const { out } = await device.attention(good());
    expect(out.data).toEqual(known);
    out.dispose();
  };
  beforeAll(async () => {
    process.on('unhandledRejection', note);
    device = await open({ device: 'cpu', threads: 2 });
    const { out } = await device.attention(good());
    known = out.data.slice();
  });
  afterAll(() => {
    device.close();
    process.off('unhandledRejection', note);
  });
  afterEach(() => {
    expect(lost).toEqual([]);
  });

  test.each(Object.keys(operations))('%s', async (name) => {
    const [make, call] = operations[name]!;
    await call(device, make() as never); // good as they are
    await fc.assert(
      fc.asyncProperty(edits, async (changes) => {
        const args = make();
        for (const change of changes) apply(args, change);
        try {
          const result = await call(device, args as never);
          // Sizes that a handle tells, of its own and of its data.
          if (name === 'tensor' || name === 'from')
            expect((result as number[])[0]).toBe((result as number[])[1]);
        } catch (error) {
          requireOwnError(error);
        }
        await requireUsable();
      }),
      { numRuns: 300 },
    );
  });

  test.each(Object.keys(operations).filter((name) => arraysOf(operations[name]![0]()).length > 0))(
    '%s while its memory goes away',
    async (name) => {
      const [make, call] = operations[name]!;
      await fc.assert(
        fc.asyncProperty(fc.array(fc.nat(40), { minLength: 1, maxLength: 4 }), async (places) => {
          const args = make();
          const arrays = arraysOf(args);
          const running = new Promise((settle) => settle(call(device, args as never))); // begun at once
          for (const at of places) transfer(arrays[at % arrays.length]!);
          await running.catch(requireOwnError);
          await requireUsable();
        }),
        { numRuns: 20 },
      );
    },
  );

  test('resizable memory is refused however it is disguised, and stays usable', async () => {
    const { query, key, value } = attention();
    for (const shadow of [
      (array: Float32Array) => Object.defineProperty(array, 'buffer', { value: {} }),
      (array: Float32Array) => Object.defineProperty(array, 'buffer', { value: undefined }),
      (array: Float32Array) => Object.defineProperty(array.buffer, 'resizable', { value: false }),
    ]) {
      const memory = new Resizable(24, { maxByteLength: 2 ** 20 });
      const data = new Float32Array(memory, 0, 6);
      shadow(data);
      const running = device.attention({ query: { data, shape: query.shape }, key, value });
      memory.resize(0);
      await expect(running).rejects.toMatchObject({ code: 'ERR_VALUE' });
    }
  });
});
