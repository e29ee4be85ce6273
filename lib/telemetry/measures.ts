/** What is counted and timed: defined once, for OpenTelemetry and for Prometheus. */
import { errorType, nameOf, type TelemetryEvent } from './events.js';

export type Label = 'operation' | 'backend' | 'stage' | 'outcome' | 'kind' | 'name' | 'code';
export type Labels = Readonly<Partial<Record<Label, string>>>;

export interface Measure {
  readonly type: 'histogram' | 'counter';
  /** as OpenTelemetry names it */
  readonly name: string;
  /** as Prometheus names it */
  readonly prometheus: string;
  readonly unit: string;
  readonly description: string;
  readonly labels: readonly Label[];
}

/** Upper bounds of the histograms' buckets, in seconds: small operations on a GPU to frames on few cores. */
export const BUCKETS: readonly number[] = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
];

export const measures = {
  operation: {
    type: 'histogram',
    name: 'attention_bias.operation.duration',
    prometheus: 'attention_bias_operation_seconds',
    unit: 's',
    description: 'Time of device operations, waiting for the device included',
    labels: ['operation', 'backend', 'code'],
  },
  stage: {
    type: 'histogram',
    name: 'attention_bias.stage.duration',
    prometheus: 'attention_bias_stage_seconds',
    unit: 's',
    description: 'Time of the stages of a pipeline, one item each',
    labels: ['stage', 'code'],
  },
  items: {
    type: 'counter',
    name: 'attention_bias.items',
    prometheus: 'attention_bias_items_total',
    unit: '{item}',
    description: 'Items of pipelines, by outcome: ok, failed or aborted',
    labels: ['outcome'],
  },
  shards: {
    type: 'counter',
    name: 'attention_bias.shards',
    prometheus: 'attention_bias_shards_total',
    unit: '{shard}',
    description: 'Shards of runs, by outcome: ok, skipped (finished before), failed or aborted',
    labels: ['outcome'],
  },
  failures: {
    type: 'counter',
    name: 'attention_bias.failures',
    prometheus: 'attention_bias_failures_total',
    unit: '{failure}',
    description: 'What failed, by kind (operation, stage, item, shard), name and error code',
    labels: ['kind', 'name', 'code'],
  },
  bytes: {
    type: 'counter',
    name: 'attention_bias.io',
    prometheus: 'attention_bias_bytes_total',
    unit: 'By',
    description: 'Bytes copied to and from devices, and of items that went through',
    labels: ['kind', 'name'],
  },
} as const satisfies Record<string, Measure>;

export type MeasureName = keyof typeof measures;

/** Takes a number: an observation of a histogram, or what a counter grows by. */
export type Sink = (measure: MeasureName, value: number, labels: Labels) => void;

/** What an event that has ended adds to the measures. */
export function measure(event: TelemetryEvent, sink: Sink): void {
  const { kind } = event;
  const failed = 'error' in event;
  const code: Labels = failed ? { code: errorType(event.error) } : {};
  const seconds = (event.ms ?? 0) / 1000;
  const name = nameOf(event);
  const outcome = code.code === undefined ? 'ok' : code.code === 'ERR_ABORTED' ? 'aborted' : 'failed';
  if (failed) sink('failures', 1, { kind, name, ...code });
  if (kind === 'operation') {
    sink('operation', seconds, { operation: event.operation, backend: event.backend, ...code });
    if (event.bytes !== undefined && !failed) sink('bytes', event.bytes, { kind, name });
  } else if (kind === 'stage') {
    sink('stage', seconds, { stage: event.stage, ...code });
  } else if (kind === 'item') {
    sink('items', 1, { outcome });
    if (event.bytes !== undefined && !failed) sink('bytes', event.bytes, { kind, name });
  } else {
    const { skipped } = Object(event.result) as { skipped?: unknown };
    sink('shards', 1, { outcome: skipped === true ? 'skipped' : outcome });
  }
}

/** What is so at the moment; `WorkClocks` has their values by the same names. */
export const gauges = {
  busy: {
    name: 'attention_bias.attention.busy',
    prometheus: 'attention_bias_attention_busy_ratio',
    unit: '1',
    description: 'Share of the last minute with an attention operation under way, 0 to 1',
  },
  running: {
    name: 'attention_bias.operations.running',
    prometheus: 'attention_bias_operations_running',
    unit: '{operation}',
    description: 'Device operations under way or waiting for the device',
  },
} as const;
