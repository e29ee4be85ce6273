/** What is told of operations and of the parts of a pipeline: on diagnostics channels, as spans, as metrics. */
import { AsyncLocalStorage } from 'node:async_hooks';
import {
  subscribe,
  tracingChannel,
  unsubscribe,
  type TracingChannelSubscribers,
} from 'node:diagnostics_channel';
import {
  context,
  metrics,
  ROOT_CONTEXT,
  SpanStatusCode,
  trace,
  type Context,
  type ContextManager,
} from '@opentelemetry/api';
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
  type DataPoint,
  type Histogram,
} from '@opentelemetry/sdk-metrics';
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base';

import { AttentionBiasError, open, operations } from '../lib/index.js';
import type { Device, Operation, OperationEvent, TelemetryEvent } from '../lib/index.js';
import { pipeline } from '../lib/pipeline/engine.js';
import { observeOperations, traceItem, traceShard, traceStage } from '../lib/telemetry.js';
import { BusyShare } from '../lib/telemetry/busy.js';
import { errorOf, random, uniform } from './support.js';

const next = random(5);
const attention = {
  query: uniform(next, [1, 2, 3, 8]),
  key: uniform(next, [1, 2, 5, 8]),
  value: uniform(next, [1, 2, 5, 6]),
  bias: [{ type: 'causal' as const }, { type: 'alibi' as const, slopes: uniform(next, [2], 0, 1) }],
};
const terms = ['causal', 'alibi'];
const deformable = {
  value: uniform(next, [2, 26, 3, 8]),
  spatialShapes: [
    [4, 5],
    [2, 3],
  ] as const,
  samplingLocations: uniform(next, [2, 7, 3, 2, 4, 2], 0, 1),
  attentionWeights: uniform(next, [2, 7, 3, 2, 4]),
};
const router = {
  features: uniform(next, [1, 4, 6]),
  weight: uniform(next, [2, 6]),
  bias: uniform(next, [2]),
};
const multihead = {
  query: uniform(next, [1, 3, 8]),
  key: uniform(next, [1, 5, 8]),
  value: uniform(next, [1, 5, 8]),
  inProjWeight: uniform(next, [24, 8]),
  outProjWeight: uniform(next, [8, 8]),
  heads: 2,
};

/** A call of each operation, and what is told of it beside operation, backend and device. */
const calls: Record<
  Operation,
  { call: (device: Device) => Promise<unknown>; told: Partial<OperationEvent> }
> = {
  attention: {
    call: (device) => device.attention(attention),
    told: { shape: { B: 1, H: 2, Q: 3, K: 5, D: 8, Dv: 6 }, precision: 'bf16', terms },
  },
  attentionBackward: {
    call: (device) =>
      device.attentionBackward({ ...attention, gradOut: uniform(next, [1, 2, 3, 6]), precision: 'f32' }),
    told: { shape: { B: 1, H: 2, Q: 3, K: 5, D: 8, Dv: 6 }, precision: 'f32', terms },
  },
  bias: {
    call: (device) => device.bias({ shape: [1, 2, 3, 5], bias: attention.bias }),
    told: { shape: { B: 1, H: 2, Q: 3, K: 5 }, terms },
  },
  linear: {
    call: (device) => device.linear({ input: uniform(next, [3, 2, 8]), weight: uniform(next, [4, 8]) }),
    told: { shape: { E: 8, N: 4 }, terms: [] },
  },
  multihead: {
    call: (device) => device.multihead(multihead),
    told: { shape: { B: 1, H: 2, Q: 3, K: 5, E: 8 }, precision: 'bf16', terms: [] },
  },
  router: {
    call: (device) => device.router(router),
    told: { shape: { B: 1, Q: 4, E: 6, M: 2 }, terms: [] },
  },
  routerBackward: {
    call: (device) => device.routerBackward({ ...router, gradOut: uniform(next, [1, 4, 2]) }),
    told: { shape: { B: 1, Q: 4, E: 6, M: 2 }, terms: [] },
  },
  project: {
    call: (device) =>
      device.project({
        referencePoints: uniform(next, [1, 4, 3], 0, 1),
        pointCloudRange: [-50, -50, -5, 50, 50, 3],
        lidar2img: uniform(next, [1, 6, 4, 4]),
        imageShape: [640, 1600],
        featureShape: [40, 100],
        bevShape: [180, 180],
      }),
    told: { shape: { B: 1, Q: 4, V: 6 }, terms: [] },
  },
  deformable: {
    call: (device) => device.deformable(deformable),
    told: { shape: { B: 2, H: 3, Q: 7, S: 26, D: 8, L: 2, P: 4 }, terms: [] },
  },
  deformableBackward: {
    call: (device) => device.deformableBackward({ ...deformable, gradOut: uniform(next, [2, 7, 24]) }),
    told: { shape: { B: 2, H: 3, Q: 7, S: 26, D: 8, L: 2, P: 4 }, terms: [] },
  },
  toDevice: {
    call: (device) => device.toDevice({ data: new Uint16Array(6), shape: [2, 3] }),
    told: { shape: { elements: 6 }, bytes: 12, terms: [] },
  },
  toHost: {
    call: (device) => device.toHost(device.tensor([2, 3])),
    told: { shape: { elements: 6 }, bytes: 24, terms: [] },
  },
};

const job = { key: 'a', kind: 'job' };
const wrong = { ...attention, key: uniform(next, [1, 2, 5, 7]) };

let device: Device;
beforeAll(async () => {
  device = await open({ device: 'cpu', threads: 1, precision: 'bf16' });
});
afterAll(() => {
  device.close();
});

/** Notes what a channel tells while `run` runs, a copy of each event. */
async function heard<E extends TelemetryEvent = TelemetryEvent>(
  name: string,
  run: () => unknown,
): Promise<[string, E][]> {
  const told: [string, E][] = [];
  const note = (what: string) => (event: object) => void told.push([what, { ...(event as E) }]);
  const subscribers: TracingChannelSubscribers<object> = {
    start: note('start'),
    end: note('end'),
    asyncStart: note('asyncStart'),
    asyncEnd: note('asyncEnd'),
    error: note('error'),
  };
  const channel = tracingChannel<unknown, object>(name);
  channel.subscribe(subscribers);
  try {
    await run();
  } finally {
    channel.unsubscribe(subscribers);
  }
  return told;
}

describe('diagnostics channels', () => {
  test('operations are those of a device', () => {
    expect([...operations].sort()).toEqual(Object.keys(calls).sort());
  });

  test.each(operations)('%s tells of its start and its end', async (operation) => {
    const { call, told } = calls[operation];
    let result: unknown;
    const events = await heard<OperationEvent>(`attention-bias:${operation}`, async () => {
      result = await call(device);
    });
    expect(events.map(([what]) => what)).toEqual(['start', 'end', 'asyncStart', 'asyncEnd']);
    const start = { kind: 'operation', operation, backend: 'cpu', device: 'cpu', ...told };
    expect(events[0]![1]).toEqual(start);
    const last = events.at(-1)![1];
    expect(last).toEqual({ ...start, ms: expect.any(Number) as number, result });
    expect(last.result).toBe(result);
    expect(last.ms).toBeGreaterThan(0);
  });

  test.each<[string, Operation, () => Promise<unknown>, string]>([
    ['what the native part refuses', 'attention', () => device.attention(wrong), 'ERR_SHAPE'],
    [
      'what is refused before it',
      'attention',
      () => device.attention({ ...attention, precision: 'tf32' }),
      'ERR_VALUE',
    ],
    ['no arguments', 'bias', () => device.bias(undefined as never), 'ERR_VALUE'],
    ['arguments that are no such', 'multihead', () => device.multihead(7 as never), 'ERR_VALUE'],
    [
      'an abort',
      'attention',
      () => device.attention({ ...attention, signal: AbortSignal.abort() }),
      'ERR_ABORTED',
    ],
  ])('%s is an error', async (_, operation, call, code) => {
    let thrown: unknown;
    const events = await heard<OperationEvent>(`attention-bias:${operation}`, async () => {
      thrown = await errorOf(call);
    });
    expect(events.map(([what]) => what)).toEqual(['start', 'end', 'error', 'asyncStart', 'asyncEnd']);
    const last = events.at(-1)![1];
    expect(last.error).toBe(thrown);
    expect(last).toMatchObject({ error: { code }, ms: expect.any(Number) as number });
    expect(last).not.toHaveProperty('result');
  });

  test('an argument that throws when it is read is told of as far as it can be', async () => {
    const args = {
      ...attention,
      get bias(): never {
        throw new RangeError('no bias');
      },
    };
    const events = await heard<OperationEvent>('attention-bias:attention', async () => {
      await expect(device.attention(args)).rejects.toThrow('no bias');
    });
    expect(events[0]![1]).toMatchObject({ terms: [], shape: { B: 1, K: 5 } });
  });

  test('of parallel calls each has an event of its own, in the order of the calls', async () => {
    const queries = [1, 2, 3, 4, 5];
    const events = await heard<OperationEvent>('attention-bias:attention', () =>
      Promise.all(queries.map((q) => device.attention({ ...attention, query: uniform(next, [1, 2, q, 8]) }))),
    );
    const shapes = (what: string) => events.flatMap(([name, { shape }]) => (name === what ? [shape.Q] : []));
    expect(shapes('start')).toEqual(queries);
    expect(shapes('asyncEnd')).toEqual(queries);
  });

  test('nothing is made and nothing is read where nobody listens', async () => {
    let reads = 0;
    const args = {
      ...attention,
      get bias() {
        ++reads;
        return attention.bias;
      },
    };
    await device.attention(args);
    const alone = reads;
    await heard('attention-bias:bias', () => device.attention(args)); // of another operation
    expect(reads).toBe(2 * alone);
    await heard('attention-bias:attention', () => device.attention(args));
    expect(reads).toBeGreaterThan(3 * alone);
    const inner = Promise.resolve(1);
    class Probe {
      readonly info = { backend: 'cpu' };
    }
    for (const operation of operations) Object.assign(Probe.prototype, { [operation]: () => inner });
    observeOperations(Probe.prototype as unknown as Device, () => undefined);
    const probe = new Probe() as unknown as Record<Operation, () => unknown>;
    for (const operation of operations) expect(probe[operation]()).toBe(inner);
  });

  test('a method keeps its name and stays off the enumerable ones', () => {
    const prototype = Object.getPrototypeOf(device) as object;
    expect(Object.keys(prototype)).toEqual([]);
    for (const operation of operations) expect(device[operation].name).toBe(operation);
  });

  test('stages, items and shards have channels of their own', async () => {
    const fails = new AttentionBiasError('ERR_IO', 'no file');
    const item = { key: 'a', kind: 'frame', frame: 'frame.json' };
    const named = { index: 3, key: 'a', type: 'frame' };
    const stage = await heard('attention-bias:stage', async () => {
      expect(await traceStage('read', { index: 3, item }, async () => Promise.resolve(7))).toBe(7);
    });
    expect(stage[0]).toEqual(['start', { kind: 'stage', stage: 'read', ...named }]);
    expect(stage.at(-1)![1]).toMatchObject({ stage: 'read', result: 7, ms: expect.any(Number) as number });
    const whole = await heard('attention-bias:item', async () => {
      await expect(traceItem({ index: 3, item, bytes: 9 }, () => Promise.reject(fails))).rejects.toBe(fails);
    });
    expect(whole.map(([what]) => what)).toEqual(['start', 'end', 'error', 'asyncStart', 'asyncEnd']);
    expect(whole.at(-1)![1]).toMatchObject({ kind: 'item', ...named, bytes: 9, error: fails });
    const secretive = {
      get key(): never {
        throw new Error('no key');
      },
    };
    for (const any of [7, null, secretive, { key: 7 }]) {
      const [first] = await heard('attention-bias:item', () =>
        traceItem({ index: 0, item: any }, () => Promise.resolve()),
      );
      expect(first).toEqual(['start', { kind: 'item', index: 0 }]);
    }
    const shard = await heard('attention-bias:shard', () =>
      traceShard({ shard: 3, items: 64, format: 'tar' }, () => Promise.resolve({ skipped: true })),
    );
    expect(shard.at(-1)![1]).toMatchObject({ kind: 'shard', shard: 3, items: 64, result: { skipped: true } });
  });
});

describe('of a pipeline', () => {
  const items = ['a', 'b', 'c'].map((key) => ({ key, kind: 'job' }));
  const stages = [
    function read({ key }: { key: string }) {
      if (key === 'b') throw new AttentionBiasError('ERR_IO', 'no b');
      return key;
    },
    async function compute() {
      return device.attention(attention);
    },
  ] as const;

  test('items and their stages are told of, and of a failure where it was', async () => {
    const run = pipeline(items, { stages, concurrency: 1, bytes: () => 10 });
    const all: [string, TelemetryEvent][] = [];
    const told = await heard('attention-bias:stage', async () => {
      all.push(
        ...(await heard('attention-bias:item', async () => {
          for await (const { out } of run) out.dispose();
        })),
      );
    });
    const ended = (events: [string, TelemetryEvent][]) =>
      events.flatMap(([what, event]) => (what === 'asyncEnd' ? [event] : []));
    const failure = { error: expect.objectContaining({ code: 'ERR_IO' }) as Error };
    const of = (index: number) => ({ index, key: 'abc'[index], type: 'job' });
    expect(ended(all)).toMatchObject([
      { kind: 'item', ...of(0), bytes: 10 },
      { kind: 'item', ...of(1), bytes: 10, ...failure },
      { kind: 'item', ...of(2), bytes: 10 },
    ]);
    expect(ended(told)).toMatchObject([
      { kind: 'stage', stage: 'read', ...of(0), result: 'a' },
      { kind: 'stage', stage: 'compute', ...of(0) },
      { kind: 'stage', stage: 'read', ...of(1), ...failure },
      { kind: 'stage', stage: 'read', ...of(2), result: 'c' },
      { kind: 'stage', stage: 'compute', ...of(2) },
    ]);
    expect(run.failures).toMatchObject([{ index: 1, stage: 'read' }]);
  });

  test('an item that an abort keeps from its next stage is aborted, not done', async () => {
    const controller = new AbortController();
    const stopping = [() => controller.abort(), () => 1] as const;
    const told = await heard('attention-bias:item', async () => {
      await expect(async () => {
        for await (const one of pipeline([1], { stages: stopping, signal: controller.signal }))
          expect(one).toBe(0);
      }).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    });
    expect(told.at(-1)).toMatchObject(['asyncEnd', { kind: 'item', error: { code: 'ERR_ABORTED' } }]);
  });
});

/** Contexts that follow promises; what an SDK for Node.js registers. */
class AsyncContext implements ContextManager {
  readonly #storage = new AsyncLocalStorage<Context>();
  active(): Context {
    return this.#storage.getStore() ?? ROOT_CONTEXT;
  }
  with: ContextManager['with'] = (active, run, self, ...args) =>
    this.#storage.run(active, () => run.apply(self!, args));
  bind: ContextManager['bind'] = (_, target) => target;
  enable = () => this;
  disable = () => this;
}

describe('spans', () => {
  const exporter = new InMemorySpanExporter();
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  beforeAll(() => {
    context.setGlobalContextManager(new AsyncContext());
    trace.setGlobalTracerProvider(provider);
  });
  beforeEach(() => exporter.reset());
  afterAll(async () => {
    trace.disable();
    context.disable();
    await provider.shutdown();
  });

  test('an operation is a span below the active one, with what it was of', async () => {
    const outer = trace.getTracer('test').startSpan('outer');
    await context.with(trace.setSpan(context.active(), outer), () => device.attention(attention));
    const [span, ...more] = exporter.getFinishedSpans();
    expect(more).toEqual([]);
    expect(span!.name).toBe('attention-bias.attention');
    expect(span!.parentSpanContext?.spanId).toBe(outer.spanContext().spanId);
    expect(span!.instrumentationScope).toMatchObject({ name: 'attention-bias', version: '0.1.0' });
    expect(span!.attributes).toEqual({
      'attention_bias.operation': 'attention',
      'attention_bias.backend': 'cpu',
      'attention_bias.device': 'cpu',
      'attention_bias.precision': 'bf16',
      'attention_bias.terms': terms,
      'attention_bias.shape.b': 1,
      'attention_bias.shape.h': 2,
      'attention_bias.shape.q': 3,
      'attention_bias.shape.k': 5,
      'attention_bias.shape.d': 8,
      'attention_bias.shape.dv': 6,
    });
    expect(span!.status).toEqual({ code: SpanStatusCode.UNSET });
    expect(span!.ended).toBe(true);
    outer.end();
  });

  test.each(operations)('%s has a span', async (operation) => {
    await calls[operation].call(device);
    expect(exporter.getFinishedSpans().map(({ name }) => name)).toEqual([`attention-bias.${operation}`]);
  });

  test('an error is the status, and is recorded', async () => {
    const { message } = await errorOf(() => device.attention(wrong));
    const [span] = exporter.getFinishedSpans();
    expect(span!.status).toEqual({ code: SpanStatusCode.ERROR, message });
    expect(span!.attributes).toMatchObject({ 'error.type': 'ERR_SHAPE' });
    expect(span!.events).toMatchObject([
      { name: 'exception', attributes: { 'exception.type': 'ERR_SHAPE', 'exception.message': message } },
    ]);
  });

  test('operations lie below stages, stages below items, items below shards', async () => {
    await traceShard({ shard: 0, items: 1, format: 'tar' }, () =>
      traceItem({ index: 0, item: job }, () =>
        traceStage('attention', { index: 0, item: job }, () => device.attention(attention)),
      ),
    );
    const spans = exporter.getFinishedSpans();
    expect(spans.map(({ name }) => name)).toEqual([
      'attention-bias.attention',
      'attention-bias.stage.attention',
      'attention-bias.item',
      'attention-bias.shard',
    ]);
    expect(spans.map(({ parentSpanContext }) => parentSpanContext?.spanId)).toEqual([
      ...spans.slice(1).map((span) => span.spanContext().spanId),
      undefined,
    ]);
    const named = { 'attention_bias.key': 'a', 'attention_bias.index': 0, 'attention_bias.type': 'job' };
    expect(spans.slice(1).map(({ attributes }) => attributes)).toEqual([
      { 'attention_bias.stage': 'attention', ...named },
      named,
      { 'attention_bias.shard': 0, 'attention_bias.items': 1, 'attention_bias.format': 'tar' },
    ]);
  });

  test('a subscriber finds the span active at the start', async () => {
    let active: string | undefined;
    const note = () => {
      active = trace.getActiveSpan()?.spanContext().spanId;
    };
    subscribe('tracing:attention-bias:attention:start', note);
    await device.attention(attention);
    unsubscribe('tracing:attention-bias:attention:start', note);
    expect(active).toBe(exporter.getFinishedSpans()[0]!.spanContext().spanId);
  });
});

describe('metrics', () => {
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e6 });
  const provider = new MeterProvider({ readers: [reader] });
  beforeAll(() => metrics.setGlobalMeterProvider(provider));
  afterAll(async () => {
    metrics.disable();
    await provider.shutdown();
  });

  /** The points of each metric, as last collected. */
  async function collected(): Promise<Record<string, { unit: string; points: DataPoint<unknown>[] }>> {
    exporter.reset();
    await provider.forceFlush();
    const found = exporter
      .getMetrics()
      .flatMap(({ scopeMetrics }) => scopeMetrics.flatMap((scope) => scope.metrics));
    return Object.fromEntries(
      found.map(({ descriptor, dataPoints }) => [
        descriptor.name,
        { unit: descriptor.unit, points: dataPoints },
      ]),
    );
  }

  test('operations are timed; items, shards, bytes and failures counted', async () => {
    await device.attention(attention);
    await device.attention(attention);
    await errorOf(() => device.attention(wrong));
    await device.toDevice({ data: new Float32Array(6), shape: [6] });
    for (const skipped of [true, false])
      await traceShard({ shard: 0, items: 1, format: 'tar' }, () => Promise.resolve({ skipped }));
    await traceItem({ index: 0, item: job, bytes: 100 }, () => Promise.resolve());
    for (const error of [new TypeError('no'), new AttentionBiasError('ERR_ABORTED', 'aborted')])
      await traceItem({ index: 1, item: job }, () => Promise.reject(error)).catch(() => undefined);

    const told = await collected();
    const values = (name: string) =>
      told[name]!.points.map(({ attributes, value }) => [attributes, value] as const);
    const { unit, points } = told['attention_bias.operation.duration']!;
    expect(unit).toBe('s');
    const attentions = { 'attention_bias.operation': 'attention', 'attention_bias.backend': 'cpu' };
    const point = (attributes: object) =>
      points.find((one) => JSON.stringify(one.attributes) === JSON.stringify(attributes))!.value as Histogram;
    expect(point(attentions).count).toBe(2);
    expect(point(attentions).sum).toBeGreaterThan(0);
    expect(point(attentions).sum).toBeLessThan(10);
    expect(point(attentions).buckets.boundaries[0]).toBe(0.0001);
    expect(point({ ...attentions, 'error.type': 'ERR_SHAPE' }).count).toBe(1);
    expect(values('attention_bias.items')).toEqual([
      [{ 'attention_bias.outcome': 'ok' }, 1],
      [{ 'attention_bias.outcome': 'failed' }, 1],
      [{ 'attention_bias.outcome': 'aborted' }, 1],
    ]);
    expect(values('attention_bias.shards')).toEqual([
      [{ 'attention_bias.outcome': 'skipped' }, 1],
      [{ 'attention_bias.outcome': 'ok' }, 1],
    ]);
    expect(values('attention_bias.io')).toEqual([
      [{ 'attention_bias.kind': 'operation', 'attention_bias.name': 'toDevice' }, 24],
      [{ 'attention_bias.kind': 'item', 'attention_bias.name': 'job' }, 100],
    ]);
    expect(values('attention_bias.failures')).toEqual([
      [
        {
          'attention_bias.kind': 'operation',
          'attention_bias.name': 'attention',
          'error.type': 'ERR_SHAPE',
        },
        1,
      ],
      [{ 'attention_bias.kind': 'item', 'attention_bias.name': 'job', 'error.type': 'TypeError' }, 1],
      [{ 'attention_bias.kind': 'item', 'attention_bias.name': 'job', 'error.type': 'ERR_ABORTED' }, 1],
    ]);
    expect(values('attention_bias.operations.running')).toEqual([[{}, 0]]);
    const [busy] = values('attention_bias.attention.busy');
    expect(busy![1]).toBeGreaterThan(0);
    expect(busy![1]).toBeLessThan(1);
  });

  test('while operations run they are running', async () => {
    const pending = [device.attention(attention), device.toHost(device.tensor([4]))];
    expect((await collected())['attention_bias.operations.running']!.points[0]!.value).toBe(2);
    await Promise.all(pending);
    expect((await collected())['attention_bias.operations.running']!.points[0]!.value).toBe(0);
  });
});

test('the busy share is that of the last minute', () => {
  let at = 0;
  const share = new BusyShare(() => at);
  expect(share.ratio).toBe(0);
  at = 500;
  share.enter();
  at = 600;
  share.enter(); // beside it
  at = 1000;
  share.leave();
  expect(share.ratio).toBeCloseTo(0.5);
  at = 1500;
  share.leave();
  at = 2000;
  expect(share.ratio).toBeCloseTo(0.5);
  for (at = 2000; at < 120_000; at += 500) expect(share.ratio).toBeLessThanOrEqual(0.5);
  expect(share.ratio).toBe(0); // that was more than a minute ago
  share.enter();
  at += 30_000;
  expect(share.ratio).toBeCloseTo(0.5, 1);
  at += 600_000;
  expect(share.ratio).toBeCloseTo(1, 1);
});
