/**
 * Seeing inside: every operation of a device, and every stage, item and shard of a pipeline, is told on
 * node:diagnostics_channel and to OpenTelemetry. Where nobody listens, nothing is made and nothing is read.
 *
 * Channels are tracing channels (`start`, `end`, `asyncStart`, `asyncEnd`, `error`), named `attention-bias:<operation>`, such
 * as `attention-bias:attention`, and `attention-bias:stage`, `attention-bias:item`, `attention-bias:shard`.
 */
import { tracingChannel, type TracingChannel } from 'node:diagnostics_channel';

import type { Device, Precision } from './device.js';
import type {
  ItemEvent,
  OperationEvent,
  ShardEvent,
  StageEvent,
  TelemetryEvent,
} from './telemetry/events.js';
import { openTelemetryIsOn, withOpenTelemetry } from './telemetry/opentelemetry.js';
import { describeCall, operations } from './telemetry/operations.js';

export { operations };
export type {
  ItemEvent,
  Operation,
  OperationEvent,
  ShardEvent,
  StageEvent,
  TelemetryEvent,
} from './telemetry/events.js';

type Channel<E extends TelemetryEvent> = TracingChannel<unknown, E>;

// Held here: a channel that nobody holds may be collected, and the next of its name be another.
const stages: Channel<StageEvent> = tracingChannel('attention-bias:stage');
const items: Channel<ItemEvent> = tracingChannel('attention-bias:item');
const shards: Channel<ShardEvent> = tracingChannel('attention-bias:shard');

function observed<E extends TelemetryEvent, T>(
  channel: Channel<E>,
  describe: () => E,
  run: () => Promise<T>,
): Promise<T> {
  const spans = openTelemetryIsOn();
  if (!spans && !channel.hasSubscribers) return run();
  const event = describe();
  const timed = async (): Promise<T> => {
    const start = performance.now();
    const taken = (): number => performance.now() - start;
    try {
      const result = await run();
      Object.assign(event, { ms: taken(), result });
      return result;
    } catch (error) {
      Object.assign(event, { ms: taken(), error });
      throw error;
    }
  };
  // The span is around the channel, so that a subscriber finds it active.
  const traced = (): Promise<T> => channel.tracePromise(timed, event);
  return spans ? withOpenTelemetry(event, traced) : traced();
}

/**
 * Makes every operation of a device's prototype tell of its calls; the one place where that is.
 *
 * @param precisionOf the default precision of a device
 */
export function observeOperations<D extends Device>(
  prototype: D,
  precisionOf: (device: D) => Precision | undefined,
): void {
  for (const operation of operations) {
    const channel: Channel<OperationEvent> = tracingChannel(`attention-bias:${operation}`);
    const property = Object.getOwnPropertyDescriptor(prototype, operation)!;
    const method = property.value as (this: D, ...args: unknown[]) => Promise<unknown>;
    const value = function (this: D, ...args: unknown[]): Promise<unknown> {
      return observed(
        channel,
        () => describeCall(operation, this.info, precisionOf(this), args[0]),
        () => method.apply(this, args),
      );
    };
    Object.defineProperty(value, 'name', { value: operation });
    Object.defineProperty(prototype, operation, { ...property, value });
  }
}

/** What is known of a thing when it starts. */
type Known<E> = Omit<E, 'kind' | 'stage' | 'ms' | 'result' | 'error'>;

/** Runs a stage of an item, and tells of it on `attention-bias:stage`. Resolves and rejects as `run` does. */
export function traceStage<T>(stage: string, info: Known<StageEvent>, run: () => Promise<T>): Promise<T> {
  return observed(stages, () => ({ kind: 'stage', stage, ...info }), run);
}

/** Runs an item through its stages, and tells of it on `attention-bias:item`. Resolves and rejects as `run` does. */
export function traceItem<T>(info: Known<ItemEvent>, run: () => Promise<T>): Promise<T> {
  return observed(items, () => ({ kind: 'item', ...info }), run);
}

/** Computes and writes a shard, and tells of it on `attention-bias:shard`. Resolves and rejects as `run` does. */
export function traceShard<T>(info: Known<ShardEvent>, run: () => Promise<T>): Promise<T> {
  return observed(shards, () => ({ kind: 'shard', ...info }), run);
}
