/** What is told of the things that take time: one object each, the same at its start and at its end. */
import type { Device, DeviceInfo, Precision } from '../device.js';

/** The operations of a device: what it computes or copies, by the name of the method. */
export type Operation = {
  [Name in keyof Device]: Device[Name] extends (...args: never[]) => Promise<unknown> ? Name : never;
}[keyof Device];

/** What an event has once the thing has ended. */
interface Ended {
  /** milliseconds from start to end: of an operation, its time in the device's queue with it */
  ms?: number;
  /** what it resolved with; not to be kept, as it may hold tensors */
  result?: unknown;
  /** what it rejected with */
  error?: unknown;
}

/** A call of a device's operation. */
export interface OperationEvent extends Ended {
  readonly kind: 'operation';
  readonly operation: Operation;
  readonly backend: DeviceInfo['backend'];
  /** `cpu`, or `cuda:N` */
  readonly device: string;
  /**
   * sizes by their letters, as the descriptions of the operation's arguments have them; of a copy, its `elements`. Empty where
   * the arguments are not of their shapes.
   */
  readonly shape: Readonly<Record<string, number>>;
  /** of the arithmetic, for operations that take one */
  readonly precision?: Precision | undefined;
  /** types of the bias terms, such as `modality`, in their order */
  readonly terms: readonly string[];
  /** bytes copied, by `toDevice` and `toHost` */
  readonly bytes?: number | undefined;
}

/** An item of a pipeline in one of its stages. */
export interface StageEvent extends Ended {
  readonly kind: 'stage';
  /** such as `read` */
  readonly stage: string;
  /** the item's place in the source, from 0 */
  readonly index: number;
  /** the item's `key` and `kind`, where it has such, as items of a manifest do */
  readonly key?: string | undefined;
  readonly type?: string | undefined;
}

/** An item of a pipeline, through all of its stages, waiting for them included. */
export interface ItemEvent extends Ended {
  readonly kind: 'item';
  /** its place in the source, from 0 */
  readonly index: number;
  /** its `key` and `kind`, where it has such, as items of a manifest do */
  readonly key?: string | undefined;
  readonly type?: string | undefined;
  /** what it takes on its way, as far as the pipeline knows */
  readonly bytes?: number | undefined;
}

/** A shard of a run, from its first item to the file's name. `result` says whether it was `skipped`: finished before. */
export interface ShardEvent extends Ended {
  readonly kind: 'shard';
  readonly shard: number;
  /** number of its items */
  readonly items: number;
  /** the file's format, such as `tar` */
  readonly format: string;
}

/** What a subscriber of any of the channels is given. */
export type TelemetryEvent = OperationEvent | StageEvent | ItemEvent | ShardEvent;

/** What an event is of, in one word of few: for names of spans and for labels. */
export function nameOf(event: TelemetryEvent): string {
  if (event.kind === 'operation') return event.operation;
  if (event.kind === 'stage') return event.stage;
  return event.kind === 'item' ? (event.type ?? 'item') : event.format;
}

/** The code of an error, else its class: words for labels, of which there are few. */
export function errorType(error: unknown): string {
  const { code, name } = Object(error) as { code?: unknown; name?: unknown };
  if (typeof code === 'string') return code;
  return error instanceof Error && typeof name === 'string' ? name : '_OTHER';
}
