/**
 * Spans and metrics through @opentelemetry/api. The package is loaded once a provider is registered in this process; until
 * then all of this costs one look at a global.
 */
import type * as Api from '@opentelemetry/api';

import { packageVersion } from '../version.js';
import { WorkClocks } from './work.js';
import { errorType, type TelemetryEvent } from './events.js';
import { BUCKETS, gauges, measure, measures } from './measures.js';
import type { Label, Labels, Measure, MeasureName, Sink } from './measures.js';

const SCOPE = 'attention-bias';

/** Where every copy of @opentelemetry/api 1 of a process keeps what was registered. */
const REGISTRY = Symbol.for('opentelemetry.js.api.1');
const registry = (): { trace?: unknown; metrics?: unknown } | undefined =>
  (globalThis as { [REGISTRY]?: { trace?: unknown; metrics?: unknown } })[REGISTRY];

let loaded: { api: typeof Api; version: string } | undefined;
function load(): { api: typeof Api; version: string } {
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- an import would be at once
  return (loaded ??= { api: require('@opentelemetry/api') as typeof Api, version: packageVersion() });
}

const attributeOf = (label: Label): string => (label === 'code' ? 'error.type' : `attention_bias.${label}`);

function attributes(event: TelemetryEvent): Api.Attributes {
  if (event.kind === 'stage' || event.kind === 'item') {
    const { index, key, type } = event;
    return known({ ...(event.kind === 'stage' ? { stage: event.stage } : {}), index, key, type });
  }
  if (event.kind === 'shard') return known({ shard: event.shard, items: event.items, format: event.format });
  const shape = Object.entries(event.shape).map(([letter, size]) => [`shape.${letter.toLowerCase()}`, size]);
  const { operation, backend, device, precision, bytes } = event;
  return {
    ...known({ operation, backend, device, precision, bytes }),
    ...known(Object.fromEntries(shape) as Record<string, number>),
    ...(event.terms.length > 0 ? { 'attention_bias.terms': [...event.terms] } : {}),
  };
}

function known(values: Readonly<Record<string, string | number | undefined>>): Api.Attributes {
  const given = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given.map(([name, value]) => [`attention_bias.${name}`, value]));
}

/** `attention-bias.attention`, `attention-bias.stage.read`, `attention-bias.item`, `attention-bias.shard` */
function spanName(event: TelemetryEvent): string {
  if (event.kind === 'operation') return `${SCOPE}.${event.operation}`;
  return event.kind === 'stage' ? `${SCOPE}.stage.${event.stage}` : `${SCOPE}.${event.kind}`;
}

/** Runs within a span below the active one. */
async function withinSpan<T>(event: TelemetryEvent, run: () => Promise<T>): Promise<T> {
  const { api, version } = load();
  const tracer = api.trace.getTracer(SCOPE, version);
  const span = tracer.startSpan(spanName(event), { attributes: attributes(event) });
  try {
    return await api.context.with(api.trace.setSpan(api.context.active(), span), run);
  } catch (error) {
    span.recordException(error instanceof Error ? error : String(error));
    span.setAttribute('error.type', errorType(error));
    const message = error instanceof Error ? error.message : String(error);
    span.setStatus({ code: api.SpanStatusCode.ERROR, message });
    throw error;
  } finally {
    span.end();
  }
}

interface Meters {
  readonly provider: Api.MeterProvider;
  readonly sink: Sink;
  readonly clocks: WorkClocks;
}

let current: Meters | undefined;

function bind(provider: Api.MeterProvider): Meters {
  const meter = provider.getMeter(SCOPE, load().version);
  const take = ({ type, name, unit, description }: Measure) => {
    if (type === 'counter') {
      const counter = meter.createCounter(name, { unit, description });
      return (value: number, given: Api.Attributes) => counter.add(value, given);
    }
    const advice = { explicitBucketBoundaries: [...BUCKETS] };
    const histogram = meter.createHistogram(name, { unit, description, advice });
    return (value: number, given: Api.Attributes) => histogram.record(value, given);
  };
  const instruments = Object.fromEntries(
    Object.entries(measures).map(([name, definition]) => [name, take(definition)]),
  ) as Record<MeasureName, ReturnType<typeof take>>;
  const clocks = new WorkClocks();
  for (const [gauge, { name, unit, description }] of Object.entries(gauges))
    meter
      .createObservableGauge(name, { unit, description })
      .addCallback((result) => result.observe(clocks[gauge as keyof typeof gauges]));
  const sink: Sink = (name, value, labels: Labels) => {
    const given = Object.entries(labels).map(([label, text]) => [attributeOf(label as Label), text]);
    instruments[name](value, Object.fromEntries(given) as Api.Attributes);
  };
  return { provider, sink, clocks };
}

/** Runs while the provider's instruments take what the event adds to them. */
async function metered<T>(event: TelemetryEvent, run: () => Promise<T>): Promise<T> {
  const provider = load().api.metrics.getMeterProvider();
  if (provider !== current?.provider) current = bind(provider);
  const { sink, clocks } = current;
  clocks.begin(event);
  try {
    return await run();
  } finally {
    clocks.end(event);
    measure(event, sink);
  }
}

/** Whether anybody takes spans or metrics. */
export function openTelemetryIsOn(): boolean {
  const registered = registry();
  return registered !== undefined && (registered.trace !== undefined || registered.metrics !== undefined);
}

/** Runs within a span and with metrics, as far as somebody takes them. `run` sets the event's `ms`, and `error` where it fails. */
export function withOpenTelemetry<T>(event: TelemetryEvent, run: () => Promise<T>): Promise<T> {
  const { trace, metrics } = registry() ?? {};
  const measured = metrics === undefined ? run : () => metered(event, run);
  return trace === undefined ? measured() : withinSpan(event, measured);
}
