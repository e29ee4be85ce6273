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

/** The names of all channels. */
export const channelNames: readonly string[] = [...operations, 'stage', 'item', 'shard'].map(
  (name) => `attention-bias:${name}`,
);

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

/** An item of a pipeline as its events tell of it. What a source gives may be anything. */
interface Item {
  readonly index: number;
  /** whose `key` and `kind` are told, where it has such */
  readonly item: unknown;
  readonly bytes?: number;
}

function nameItem({ index, item, bytes }: Item): Omit<ItemEvent, 'kind'> {
  const text = (name: string): string | undefined => {
    try {
      const value = (Object(item) as Record<string, unknown>)[name];
      return typeof value === 'string' ? value : undefined;
    } catch {
      return undefined;
    }
  };
  const [key, type] = [text('key'), text('kind')];
  return {
    index,
    ...(key === undefined ? {} : { key }),
    ...(type === undefined ? {} : { type }),
    ...(bytes === undefined ? {} : { bytes }),
  };
}

/** Runs a stage of an item, and tells of it on `attention-bias:stage`. Resolves and rejects as `run` does. */
export function traceStage<T>(stage: string, item: Item, run: () => Promise<T>): Promise<T> {
  return observed(stages, () => ({ kind: 'stage', stage, ...nameItem(item) }), run);
}

/** Runs an item through its stages, and tells of it on `attention-bias:item`. Resolves and rejects as `run` does. */
export function traceItem<T>(item: Item, run: () => Promise<T>): Promise<T> {
  return observed(items, () => ({ kind: 'item', ...nameItem(item) }), run);
}

/** Computes and writes a shard, and tells of it on `attention-bias:shard`. Resolves and rejects as `run` does. */
export function traceShard<T>(
  shard: Pick<ShardEvent, 'shard' | 'items' | 'format'>,
  run: () => Promise<T>,
): Promise<T> {
  return observed(shards, () => ({ kind: 'shard', ...shard }), run);
}
