/** What a user says of a pipeline: its stages and options, and what it tells of itself. */
import type { Device } from '../device.js';
import { describe } from '../describe.js';
import { AttentionBiasError, expected } from '../errors.js';
import { requireSignal } from '../signal.js';

/** What a stage is given beside its item. */
export interface StageContext {
  /** the pipeline's; ERR_DEVICE where it was given none */
  readonly device: Device;
  /** aborted when the pipeline ends early: by its own signal, by an error that ends it, by the consumer's break */
  readonly signal: AbortSignal;
  /** place of the item in the source, from 0 */
  readonly index: number;
}

/** One step of an item's way. What it throws makes the item a failure. */
export type StageFunction<In, Out> = (item: In, context: StageContext) => Out | PromiseLike<Out>;

/** A stage with a name and bounds of its own. */
export interface NamedStage<In, Out> {
  /** in statistics and failures; each once in a pipeline */
  readonly name: string;
  readonly run: StageFunction<In, Out>;
  /** the most items in this stage at once; default the pipeline's `concurrency` */
  readonly concurrency?: number | undefined;
}

/** A function, whose name is the stage's, or one with a name and a bound. */
export type Stage<In, Out> = StageFunction<In, Out> | NamedStage<In, Out>;

/** Bounds and stages of a `pipeline`. */
export interface PipelineOptions<In> {
  /** what stages compute on; it stays open */
  readonly device?: Device | undefined;
  /** the most items between source and consumer at once, those that wait for their turn or for the consumer included; default 4 */
  readonly concurrency?: number | undefined;
  /**
   * the most bytes of items between source and consumer; default 1 GiB. A larger item passes alone. One more item may have
   * been taken from the source, since its bytes are not known before, and waits for room.
   */
  readonly maxBytes?: number | undefined;
  /** the bytes of an item, at its largest on its way; default: of the buffers and texts in it */
  readonly bytes?: ((item: In) => number | PromiseLike<number>) | undefined;
  /** whether results come in the source's order; default true. If not, they come as they are done. */
  readonly ordered?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** `collect` (default): an item that fails is left out and noted in `failures`; `throw`: its error ends the pipeline */
  readonly onError?: 'collect' | 'throw' | undefined;
}

/** An item that came to nothing. */
export interface Failure<In = unknown> {
  /** as the source gave it */
  readonly item: In;
  /** its place in the source, from 0 */
  readonly index: number;
  /** the name of the stage that failed; `bytes` where the item's size could not be told */
  readonly stage: string;
  /** as it was thrown */
  readonly error: unknown;
  /** a stage's milliseconds, of those that it passed through */
  readonly ms: Readonly<Record<string, number>>;
}

/** What became of an item. */
export type Outcome<In, Out> =
  | {
      readonly ok: true;
      readonly item: In;
      readonly index: number;
      readonly value: Out;
      /** a stage's milliseconds */
      readonly ms: Readonly<Record<string, number>>;
    }
  | ({ readonly ok: false } & Failure<In>);

/** What a stage has done so far. */
export interface StageStats {
  readonly name: string;
  /** items that passed it */
  readonly items: number;
  readonly failed: number;
  /** milliseconds in which at least one item was in it */
  readonly busyMs: number;
  /** milliseconds of all items in it, added up */
  readonly totalMs: number;
}

/** What a pipeline has done so far, in items, bytes and milliseconds. */
export interface PipelineStats {
  /** milliseconds from the first request for a result until now, or to the end */
  readonly wallMs: number;
  /** items taken from the source */
  readonly taken: number;
  /** results that the consumer got */
  readonly delivered: number;
  readonly failed: number;
  /** milliseconds of waiting for the source */
  readonly sourceMs: number;
  /** the most that there was between source and consumer */
  readonly peak: { readonly items: number; readonly bytes: number };
  readonly stages: readonly StageStats[];
}

const optionNames: readonly string[] = [
  'device',
  'stages',
  'concurrency',
  'maxBytes',
  'bytes',
  'ordered',
  'signal',
  'onError',
] satisfies (keyof PipelineOptions<unknown> | 'stages')[];

/** An integer from 1 up, or the default. ERR_VALUE. */
export function requireCount(value: unknown, name: string, otherwise: number): number {
  if (value === undefined) return otherwise;
  if (typeof value === 'number' && Number.isInteger(value) && value >= 1) return value;
  throw expected('ERR_VALUE', 'an integer of at least 1', name, describe(value));
}

/**
 * The options as they are now: a getter among them is read once. ERR_VALUE for options that a pipeline does not have, or that
 * are not what they should be.
 */
export function checkOptions<T extends object>(given: T): T {
  const options: unknown = given; // JavaScript may pass anything
  if (typeof options !== 'object' || options === null) {
    throw expected('ERR_VALUE', 'an object', 'the options of pipeline', describe(options));
  }
  const unknown = Object.keys(options).find((name) => !optionNames.includes(name));
  if (unknown !== undefined) {
    const what = `no other fields than ${optionNames.join(', ')}`;
    throw expected('ERR_VALUE', what, 'the options of pipeline', describe(unknown));
  }
  const kept = { ...given };
  const { maxBytes, bytes, onError, signal } = kept as Record<string, unknown>;
  requireSignal(signal);
  if (maxBytes !== undefined && !(typeof maxBytes === 'number' && maxBytes > 0)) {
    throw expected('ERR_VALUE', 'a number of bytes above 0', 'maxBytes', describe(maxBytes));
  }
  if (bytes !== undefined && typeof bytes !== 'function') {
    throw expected('ERR_VALUE', 'a function', 'bytes', describe(bytes));
  }
  if (onError !== undefined && onError !== 'collect' && onError !== 'throw') {
    throw expected('ERR_VALUE', '"collect" or "throw"', 'onError', describe(onError));
  }
  return kept;
}

const MAX_STAGES = 1000;

/** The stages with a name and a bound each. ERR_VALUE. */
export function nameStages(stages: unknown, concurrency: number): Required<NamedStage<unknown, unknown>>[] {
  if (!Array.isArray(stages) || stages.length > MAX_STAGES) {
    throw expected('ERR_VALUE', `a list of at most ${MAX_STAGES} stages`, 'stages', describe(stages));
  }
  const names = new Set<string>();
  return Array.from({ length: stages.length }, (_, i) => {
    const stage: unknown = stages[i];
    const { run, name, ...rest } =
      typeof stage === 'function'
        ? { run: stage, name: stage.name, concurrency: undefined }
        : (Object(stage) as Partial<NamedStage<unknown, unknown>>);
    if (typeof run !== 'function') {
      throw expected('ERR_VALUE', 'a function or { name, run }', `stages[${i}]`, describe(stage));
    }
    if (typeof stage !== 'function' && (typeof name !== 'string' || name === '' || names.has(name))) {
      throw expected('ERR_VALUE', 'a name of its own', `stages[${i}].name`, describe(name));
    }
    // Functions may have one name, or none; a list's are called after their place then.
    const plain = name === undefined || name === '' || names.has(name) ? `stage ${i + 1}` : name;
    names.add(plain);
    const most = requireCount(rest.concurrency, `stages[${i}].concurrency`, concurrency);
    return { name: plain, run: run as StageFunction<unknown, unknown>, concurrency: most };
  });
}

/** ERR_ABORTED. */
export function abortedError(reason: unknown): AttentionBiasError {
  return new AttentionBiasError('ERR_ABORTED', 'the pipeline was aborted', { cause: reason });
}
