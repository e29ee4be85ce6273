/** Pipelines: every item once, in order, within bounds; errors, aborts, streams, tensors that come to nothing. */
import { Readable, Writable } from 'node:stream';
import { pipeline as pipeStreams } from 'node:stream/promises';
import { ReadableStream } from 'node:stream/web';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';

import type { Device } from '../lib/device.js';
import { open, pipeline, pipelineStream, type Pipeline, type Tensor } from '../lib/index.js';
import { byteSize } from '../lib/pipeline/values.js';
import { errorOf, expectError } from './support.js';

async function collect<T>(results: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const result of results) all.push(result);
  return all;
}

/** Waits some turns of the event loop: delays without a clock. */
async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; ++i) await turn();
}

/** A promise, and what settles it. */
function gate(): { promise: Promise<void>; open: () => void } {
  let open = (): void => undefined;
  const promise = new Promise<void>((resolve) => (open = resolve));
  return { promise, open };
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

let device: Device;
const unhandled: unknown[] = [];
const note = (reason: unknown): void => void unhandled.push(reason);

beforeAll(async () => {
  process.on('unhandledRejection', note);
  device = await open({ device: 'cpu', threads: 1 });
});

afterEach(async () => {
  await turns(3);
  expect(unhandled.splice(0)).toEqual([]);
});

afterAll(() => {
  process.off('unhandledRejection', note);
  device.close();
});

describe('any stages, delays, sizes and failures', () => {
  const item = fc.record({
    bytes: fc.integer({ min: 0, max: 60 }),
    sourceDelay: fc.integer({ min: 0, max: 2 }),
    consumerDelay: fc.integer({ min: 0, max: 2 }),
    delays: fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 4, maxLength: 4 }),
    failsIn: fc.option(fc.integer({ min: 0, max: 3 }), { freq: 4, nil: -1 }),
  });
  const plan = fc.record({
    items: fc.array(item, { maxLength: 25 }),
    stages: fc.array(fc.integer({ min: 1, max: 5 }), { maxLength: 4 }),
    concurrency: fc.integer({ min: 1, max: 6 }),
    maxBytes: fc.integer({ min: 1, max: 100 }),
    ordered: fc.boolean(),
    breakAfter: fc.option(fc.integer({ min: 0, max: 20 }), { freq: 3, nil: Infinity }),
  });

  test('give every item once, in order, within bounds, and leave nothing behind', async () => {
    const check = async ({
      items,
      stages,
      concurrency,
      maxBytes,
      ordered,
      breakAfter,
    }: typeof plan extends fc.Arbitrary<infer T> ? T : never): Promise<void> => {
      const inside = new Map<number, number>(); // items between source and consumer, with their bytes
      const running = stages.map(() => 0);
      let finished = false;
      const source = { returned: false };
      let starts = 0;
      function* generate(): Generator<Promise<{ i: number }>, void> {
        try {
          for (const i of items.keys()) {
            yield turns(items[i]!.sourceDelay).then(() => {
              inside.set(i, items[i]!.bytes);
              // Seen from outside, the last result may be on its way to the consumer, and this item has only just come.
              expect(inside.size).toBeLessThanOrEqual(concurrency + 1);
              const sizes = [...inside].filter(([other]) => other !== i).map(([, size]) => size);
              const sum = sizes.reduce((a, b) => a + b, 0);
              expect(sizes.length <= 2 || sum - Math.max(...sizes) <= maxBytes).toBe(true);
              return { i };
            });
          }
        } finally {
          source.returned = true;
        }
      }
      const run: Pipeline<{ i: number }, unknown> = pipeline(generate(), {
        concurrency,
        maxBytes,
        ordered,
        bytes: ({ i }) => items[i]!.bytes,
        stages: stages.map((limit, s) => ({
          name: `s${s}`,
          concurrency: limit,
          run: async (value: { i: number }, { index }: { index: number }) => {
            expect(finished).toBe(false);
            expect(index).toBe(value.i);
            running[s]! += 1;
            starts += 1;
            expect(running[s]!).toBeLessThanOrEqual(Math.min(limit, concurrency));
            await turns(items[value.i]!.delays[s]!);
            running[s]! -= 1;
            if (items[value.i]!.failsIn === s) throw new Error(`item ${value.i}`);
            return value;
          },
        })),
      });
      const seen: number[] = [];
      for await (const outcome of run.outcomes()) {
        expect(outcome.index).toBe(outcome.item.i);
        const { failsIn } = items[outcome.index]!;
        const fails = failsIn >= 0 && failsIn < stages.length;
        expect(outcome.ok).toBe(!fails);
        if (!outcome.ok) expect(outcome.stage).toBe(`s${failsIn}`);
        seen.push(outcome.index);
        inside.delete(outcome.index);
        if (seen.length > breakAfter) break;
        await turns(items[outcome.index]!.consumerDelay);
      }
      finished = true;
      expect(running).toEqual(stages.map(() => 0));
      const complete = seen.length === items.length;
      if (breakAfter >= items.length) expect(complete).toBe(true);
      expect([...seen].sort((a, b) => a - b)).toEqual(
        ordered || complete ? range(seen.length) : [...new Set(seen)].sort((a, b) => a - b),
      );
      if (ordered) expect(seen).toEqual(range(seen.length));
      const failures = run.failures.map(({ index }) => index);
      expect(failures).toEqual([...failures].sort((a, b) => a - b));
      const failing = seen.filter((i) => items[i]!.failsIn >= 0 && items[i]!.failsIn < stages.length);
      expect(failures).toEqual(expect.arrayContaining(failing));
      const { stats } = run;
      expect(stats.peak.items).toBeLessThanOrEqual(concurrency);
      expect(stats.peak.bytes).toBeLessThanOrEqual(Math.max(maxBytes, ...items.map(({ bytes }) => bytes)));
      expect(stats.delivered).toBe(seen.length);
      expect(stats.stages.reduce((sum, { items, failed }) => sum + items + failed, 0)).toBe(starts);
      for (const { busyMs, totalMs } of stats.stages) {
        expect(busyMs).toBeLessThanOrEqual(stats.wallMs + 1e-6);
        expect(busyMs).toBeLessThanOrEqual(totalMs + 0.5 * items.length);
      }
      await turns(4);
      expect(source.returned || items.length === 0).toBe(true);
    };
    await fc.assert(fc.asyncProperty(plan, check), { numRuns: 250 });
  }, 30_000);

  test('give the results alone when the pipeline itself is iterated, failures beside', async () => {
    const run = pipeline(range(20), {
      stages: [
        (i) => i * 2,
        async function half(i) {
          await turns(i % 7);
          if (i % 3 === 0) throw new Error(`no ${i}`);
          return `${i / 2}`;
        },
      ],
    });
    const some = range(20).filter((i) => i % 3 !== 0);
    expect(await collect(run)).toEqual(some.map(String));
    expect(run.failures.map(({ item }) => item)).toEqual([0, 3, 6, 9, 12, 15, 18]);
    expect(run.failures[1]).toMatchObject({ index: 3, stage: 'half', error: new Error('no 6') });
    expect(run.stats.stages).toMatchObject([
      { name: 'stage 1', items: 20, failed: 0 },
      { name: 'half', items: 13, failed: 7 },
    ]);
    expect(await collect(run)).toEqual([]); // once
  });
});

describe('flow', () => {
  test('nothing is taken before it is asked for, nor more than there is room for', async () => {
    let taken = 0;
    function* source() {
      for (;;) yield taken++;
    }
    const results = pipeline(source(), { concurrency: 3, stages: [] })[Symbol.asyncIterator]();
    await turns(5);
    expect(taken).toBe(0);
    expect(await results.next()).toEqual({ done: false, value: 0 });
    await turns(20);
    expect(taken).toBe(4);
    await results.return!();
    expect(taken).toBe(4);
  });

  test('items overlap: the next is in stage 1 while one is in stage 2', async () => {
    const second = gate();
    const seen: string[] = [];
    const run = pipeline(range(2), {
      concurrency: 2,
      stages: [
        {
          name: 'one',
          concurrency: 1,
          run: (i) => {
            if (i === 1) second.open(); // which item 0 waits for in stage 2
            return i;
          },
        },
        async (i) => {
          if (i === 0) await second.promise;
          seen.push(`two ${i}`);
          return i;
        },
      ],
    });
    expect(await collect(run)).toEqual([0, 1]);
    expect(seen).toContain('two 0');
  });

  test('unordered results come as they are done', async () => {
    const last = gate();
    const run = pipeline(range(3), {
      ordered: false,
      stages: [
        async (i) => {
          if (i === 0) await last.promise;
          return i;
        },
      ],
    });
    const order: number[] = [];
    for await (const i of run) {
      order.push(i);
      if (order.length === 2) last.open();
    }
    expect(order).toEqual([1, 2, 0]);
  });

  test('several requests at once are answered in order', async () => {
    const results = pipeline(range(3), { stages: [async (i) => (await turns(3 - i), i)] })[
      Symbol.asyncIterator
    ]();
    const all = await Promise.all(range(5).map(() => results.next()));
    expect(all.map(({ value }) => value)).toEqual([0, 1, 2, undefined, undefined]);
  });

  test('the bytes of an item are those of its buffers, texts and tensors, each once', () => {
    const data = new Float32Array(10);
    using tensor = device.tensor([2, 3]);
    expect(byteSize(Buffer.alloc(7))).toBe(7);
    expect(byteSize({ data, again: data, nested: [{ text: 'abc' }, tensor], n: 5 })).toBe(40 + 6 + 24);
    expect(byteSize(new Map([['a', new ArrayBuffer(9)]]))).toBe(9);
    expect(byteSize(null)).toBe(0);
    const ring: { self?: unknown } = {};
    ring.self = ring;
    expect(byteSize(ring)).toBe(0);
  });

  test('a size that is none makes its item a failure', async () => {
    const run = pipeline(range(3), { bytes: (i) => (i === 1 ? NaN : 1), stages: [] });
    expect(await collect(run)).toEqual([0, 2]);
    expect(run.failures).toMatchObject([{ item: 1, stage: 'bytes', error: { code: 'ERR_VALUE' } }]);
  });

  test('stages get the device, and are told where there is none', async () => {
    expect(await collect(pipeline([1], { device, stages: [(_, context) => context.device] }))).toEqual([
      device,
    ]);
    const run = pipeline([1], { stages: [(_, context) => context.device.info] });
    expect(await collect(run)).toEqual([]);
    expect(run.failures).toMatchObject([{ error: { code: 'ERR_DEVICE' } }]);
  });
});

describe('sources', () => {
  test('of every kind', async () => {
    const plus = { stages: [(i: number) => i + 1] } as const;
    async function* generator() {
      for (const i of range(3)) yield await Promise.resolve(i);
    }
    expect(await collect(pipeline(new Set([0, 1, 2]), plus))).toEqual([1, 2, 3]);
    expect(await collect(pipeline([0, Promise.resolve(1), 2], plus))).toEqual([1, 2, 3]);
    expect(await collect(pipeline(generator(), plus))).toEqual([1, 2, 3]);
    expect(await collect(pipeline(Readable.from([0, 1, 2]), plus))).toEqual([1, 2, 3]);
    expect(await collect(pipeline(ReadableStream.from([0, 1, 2]), plus))).toEqual([1, 2, 3]);
    expect(await collect(pipeline([] as number[], plus))).toEqual([]);
  });

  test('a reader that can only throw when it is cancelled does not keep the pipeline from its end', async () => {
    const reader = {
      read: async () => Promise.resolve({ done: false, value: 1 }),
      cancel: (): never => {
        throw new Error('no cancel');
      },
      releaseLock: () => undefined,
    };
    const run = pipeline({ getReader: () => reader }, { stages: [(i: number) => i + 1] });
    const results = run[Symbol.asyncIterator]();
    expect(await results.next()).toEqual({ done: false, value: 2 });
    await expect(results.return!()).rejects.toThrow('no cancel');
    expect(await results.next()).toEqual({ done: true, value: undefined });
  });

  test('that are none are refused at once, as are options', async () => {
    const bad = (source: unknown, options: unknown, ...words: string[]): Promise<void> =>
      expectError(() => pipeline(source as number[], options as { stages: [] }), 'ERR_VALUE', ...words);
    await bad(5, { stages: [] }, 'source', 'number');
    await bad('abc', { stages: [] }, 'source', 'string');
    await bad([], undefined, 'options of pipeline');
    await bad([], { stages: [], concurency: 2 }, 'concurency');
    await bad([], {}, 'stages');
    await bad([], { stages: [5] }, 'stages[0]', '5');
    await bad([], { stages: [{ name: '', run: () => 0 }] }, 'stages[0].name');
    await bad([], { stages: [{ name: 'a', run: () => 0, concurrency: 0 }] }, 'stages[0].concurrency', '0');
    await bad([], { stages: ['a', 'a'].map((name) => ({ name, run: () => 0 })) }, 'stages[1].name');
    await bad([], { stages: [], concurrency: 1.5 }, 'concurrency', '1.5');
    await bad([], { stages: [], maxBytes: 0 }, 'maxBytes', '0');
    await bad([], { stages: [], bytes: 5 }, 'bytes');
    await bad([], { stages: [], onError: 'ignore' }, 'onError', '"ignore"');
  });

  test('that fail end the pipeline, after what they gave before', async () => {
    async function* source() {
      yield* await Promise.resolve([0, 1, 2]);
      throw new Error('disk on fire');
    }
    const seen: number[] = [];
    const run = pipeline(source(), { stages: [async (i: number) => (await turns(5), i)] });
    const consume = async (): Promise<void> => {
      for await (const i of run) seen.push(i);
    };
    await expect(consume()).rejects.toThrow('disk on fire');
    expect(seen).toEqual([0, 1, 2]);
  });

  test('that wait for ever do not keep an end', async () => {
    const never = (): Promise<never> => new Promise(() => undefined);
    let returned = 0;
    const source = {
      [Symbol.asyncIterator]: () => ({
        count: 0,
        next(): Promise<IteratorResult<number>> {
          return this.count < 2 ? Promise.resolve({ done: false, value: this.count++ }) : never();
        },
        return: () => {
          returned += 1;
          return never();
        },
      }),
    };
    for await (const i of pipeline(source, { stages: [] })) if (i === 1) break;
    expect(returned).toBe(1);
    const stream = new Readable({ objectMode: true, read: () => undefined });
    stream.push(1);
    for await (const i of pipeline(stream, { stages: [] })) {
      expect(i).toBe(1);
      break;
    }
    expect(stream.destroyed).toBe(true);
    let cancelled = false;
    const web = new ReadableStream<number>({
      start: (controller) => controller.enqueue(1),
      cancel: () => void (cancelled = true),
    });
    for await (const i of pipeline(web, { stages: [] })) {
      expect(i).toBe(1);
      break;
    }
    expect(cancelled).toBe(true);
  });

  test('whose end fails are told of it', async () => {
    const source = {
      [Symbol.iterator]: () => ({
        next: () => ({ done: false, value: 1 }),
        return: (): never => {
          throw new Error('stuck door');
        },
      }),
    };
    const results = pipeline(source as Iterable<number>, { stages: [] })[Symbol.asyncIterator]();
    await results.next();
    await turns(3);
    await expect(results.return!()).rejects.toThrow('stuck door');
  });
});

describe('errors and aborts', () => {
  test("with onError 'throw' the first error in order ends the run", async () => {
    const seen: number[] = [];
    let later = 0;
    const run = pipeline(range(100), {
      onError: 'throw',
      concurrency: 3,
      stages: [
        async (i) => {
          if (i > 3) later += 1;
          await turns(i === 2 ? 10 : 1);
          if (i === 3) throw new TypeError('bad 3');
          return i;
        },
      ],
    });
    const consume = async (): Promise<void> => {
      for await (const i of run) seen.push(i);
    };
    await expect(consume()).rejects.toThrow(new TypeError('bad 3'));
    expect(seen).toEqual([0, 1, 2]);
    expect(later).toBeLessThan(3);
  });

  test('stages may throw at once, and anything', async () => {
    const run = pipeline(range(2), {
      stages: [
        (i) => {
          // eslint-disable-next-line @typescript-eslint/only-throw-error -- what JavaScript allows
          if (i === 0) throw 'a text';
          return i;
        },
      ],
    });
    expect(await collect(run)).toEqual([1]);
    expect(run.failures[0]!.error).toBe('a text');
  });

  test.each(['while a stage runs', 'while the source waits', 'before'])(
    'a signal ends everything: %s',
    async (when) => {
      const controller = new AbortController();
      let running = 0;
      let returned = false;
      async function* source() {
        try {
          yield 0;
          if (when === 'while the source waits') await turns(20);
          yield* range(50);
        } finally {
          returned = true;
        }
      }
      const run = pipeline(source(), {
        signal: controller.signal,
        stages: [
          async (i: number, { signal }) => {
            running += 1;
            if (when === 'while a stage runs') setImmediate(() => controller.abort(new Error('enough')));
            try {
              if (when === 'while a stage runs') {
                await new Promise((_, reject) => {
                  signal.addEventListener('abort', () => reject(signal.reason as Error));
                });
              }
              await turns(3);
            } finally {
              running -= 1;
            }
            return i;
          },
        ],
      });
      if (when === 'before') controller.abort(new Error('enough'));
      if (when === 'while the source waits') setImmediate(() => controller.abort(new Error('enough')));
      const error = await errorOf(() => collect(run));
      expect(error).toMatchObject({ code: 'ERR_ABORTED', cause: new Error('enough') });
      expect(running).toBe(0);
      expect(run.failures).toEqual([]); // ended is not failed
      await turns(30);
      expect(returned).toBe(when !== 'before');
      expect(await collect(run)).toEqual([]);
    },
  );

  test('an abort between two requests is told at the next one', async () => {
    const controller = new AbortController();
    const results = pipeline(range(9), { signal: controller.signal, stages: [] })[Symbol.asyncIterator]();
    await results.next();
    controller.abort();
    await turns(3);
    await expectError(() => results.next(), 'ERR_ABORTED');
    expect(await results.next()).toEqual({ done: true, value: undefined });
  });

  test('a break waits for stages, and aborts their signal', async () => {
    let running = 0;
    const run = pipeline(range(9), {
      stages: [
        async (i, { signal }) => {
          running += 1;
          await turns(i > 0 ? 10 : 3);
          running -= 1;
          return signal.aborted;
        },
      ],
    });
    for await (const aborted of run) {
      expect(aborted).toBe(false);
      expect(running).toBeGreaterThan(0);
      break;
    }
    expect(running).toBe(0);
  });
});

describe('Node.js streams', () => {
  const square = { stages: [{ name: 'square', run: async (i: number) => (await turns(i % 3), i * i) }] };
  const sink = (chunks: unknown[]): Writable =>
    new Writable({
      objectMode: true,
      write: (chunk, _, done) => {
        chunks.push(chunk);
        setImmediate(done);
      },
    });

  test('out: readable()', async () => {
    const chunks: unknown[] = [];
    await pipeStreams(pipeline(range(30), square).readable(), sink(chunks));
    expect(chunks).toEqual(range(30).map((i) => i * i));
    let returned = false;
    function* source() {
      try {
        yield* range(30);
      } finally {
        returned = true;
      }
    }
    for await (const i of pipeline(source(), square).readable()) if (i === 4) break;
    expect(returned).toBe(true);
  });

  test('in and out: pipelineStream', async () => {
    const chunks: unknown[] = [];
    const stream = pipelineStream<number>({
      concurrency: 2,
      stages: [(i: number) => i, (i: number) => (i === 7 ? Promise.reject(new Error('seven')) : i * i)],
    });
    await pipeStreams(Readable.from(range(30)), stream, sink(chunks));
    expect(chunks).toEqual(
      range(30)
        .filter((i) => i !== 7)
        .map((i) => i * i),
    );
    expect(stream.failures).toMatchObject([{ item: 7, stage: 'stage 2' }]);
    expect(stream.stats).toMatchObject({ delivered: 29, failed: 1 });
    expect(stream.stats.peak.items).toBeLessThanOrEqual(2);
  });

  test('back-pressure goes through: a slow sink makes a slow source', async () => {
    let taken = 0;
    let written = 0;
    let most = 0;
    const source = Readable.from(
      (function* () {
        for (const i of range(60)) {
          taken += 1;
          most = Math.max(most, taken - written);
          yield i;
        }
      })(),
      { highWaterMark: 1 },
    );
    const slow = new Writable({
      objectMode: true,
      highWaterMark: 1,
      write: (_chunk, _encoding, done) => {
        written += 1;
        void turns(3).then(() => done());
      },
    });
    await pipeStreams(source, pipelineStream({ ...square, concurrency: 2 }), slow);
    expect(written).toBe(60);
    expect(most).toBeLessThanOrEqual(2 + 6); // the pipeline's, and one or two in each stream's own buffers
  });

  test('errors on either side end the other', async () => {
    const controller = new AbortController();
    const aborted = pipelineStream({ signal: controller.signal, stages: [(i: number) => i] });
    const whole = pipeStreams(Readable.from(range(1e6)), aborted, sink([]));
    setImmediate(() => controller.abort());
    await expectError(() => whole, 'ERR_ABORTED');
    expect(aborted.destroyed).toBe(true);
    const thrown = pipelineStream({ onError: 'throw', stages: [() => Promise.reject(new Error('no'))] });
    await expect(pipeStreams(Readable.from([1]), thrown, sink([]))).rejects.toThrow('no');
    const broken = new Readable({ read: () => undefined, objectMode: true });
    const stream = pipelineStream(square);
    const piped = pipeStreams(broken, stream, sink([]));
    broken.destroy(new Error('cable'));
    await expect(piped).rejects.toThrow('cable');
    expect(stream.destroyed).toBe(true);
  });
});

describe('Tensors', () => {
  test("of items that come to nothing are disposed; results, shared ones and the source's stay", async () => {
    const shared = device.tensor([4]);
    const given = range(6).map(() => device.tensor([4]));
    const made: Tensor[] = [];
    const run = pipeline(given, {
      device,
      stages: [
        async (input, { device, index }) => {
          await turn();
          const own = device.tensor([4]);
          made[index] = own;
          return { own: [own], input, shared };
        },
        (value, { index }) => {
          if (index % 2 === 0) throw new Error('no');
          return value;
        },
      ],
    });
    const results = await collect(run);
    expect(made.map(({ disposed }) => disposed)).toEqual([true, false, true, false, true, false]);
    expect([shared, ...given].some(({ disposed }) => disposed)).toBe(false);
    expect(results.map(({ own }) => own[0])).toEqual([made[1], made[3], made[5]]);
    for (const tensor of [shared, ...given, ...made]) tensor.dispose();
  });

  test('that operations made are disposed when the consumer breaks off', async () => {
    const outs: Tensor[] = [];
    const one = { data: new Float32Array(4).fill(1), shape: [1, 1, 1, 4] };
    const run = pipeline(range(20), {
      device,
      concurrency: 4,
      stages: [
        async (_, { device }) => {
          const result = await device.attention({ query: one, key: one, value: one });
          outs.push(result.out, result.lse);
          return result;
        },
      ],
    });
    for await (const { out } of run) {
      expect(out.data[0]).toBe(1);
      await turns(20);
      break;
    }
    expect(outs.length).toBeGreaterThan(2);
    expect(outs.filter(({ disposed }) => !disposed)).toEqual([outs[0], outs[1]]);
  });

  test('disposable values are disposed as they say', async () => {
    const log: string[] = [];
    const run = pipeline(['a', 'b', 'c'], {
      stages: [
        (name) => {
          if (name === 'b')
            return { [Symbol.asyncDispose]: async () => void log.push(await Promise.resolve(name)) };
          return {
            [Symbol.dispose]: () => {
              log.push(name);
              throw new Error('stuck');
            },
          };
        },
        () => Promise.reject(new Error('no')),
      ],
    });
    expect(await collect(run)).toEqual([]);
    expect(log.sort()).toEqual(['a', 'b', 'c']);
    expect(run.failures.map(({ error }) => String(error))).toEqual(Array(3).fill('Error: no'));
  });
});
