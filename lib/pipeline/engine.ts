/**
 * Items through stages: taken from a source no faster than a consumer takes results, several at once, within bounds.
 *
 * An item's life: taken from the source (while there is a place, and bytes to spare), its stages one after the other, waiting
 * for its turn, delivered. Its place and its bytes are free again when the consumer has the result.
 */
import { setMaxListeners } from 'node:events';
import { Readable } from 'node:stream';

import type { Device } from '../device.js';
import { expected } from '../errors.js';
import { traceItem, traceStage } from '../telemetry.js';
import { BusyClock } from '../telemetry/busy.js';
import { iterate, requireSource, type ItemIterator, type Source } from './source.js';
import {
  abortedError,
  checkOptions,
  nameStages,
  requireCount,
  type Failure,
  type Outcome,
  type PipelineOptions,
  type PipelineStats,
  type Stage,
  type StageContext,
  type StageFunction,
} from './stages.js';
import { byteSize, disposeValue, noting } from './values.js';

export type { Source } from './source.js';
export type {
  Failure,
  NamedStage,
  Outcome,
  PipelineOptions,
  PipelineStats,
  Stage,
  StageContext,
  StageFunction,
  StageStats,
} from './stages.js';

const DEFAULT_CONCURRENCY = 4;
const DEFAULT_MAX_BYTES = 2 ** 30;

/** Results of a pipeline, to be iterated once. */
export interface Pipeline<In, Out> extends AsyncIterable<Out, undefined> {
  /** items that failed, by their place in the source; grows while the pipeline runs */
  readonly failures: readonly Failure<In>[];
  /** what it did until now */
  readonly stats: PipelineStats;
  /** results and failures, each item once; in place of iterating the pipeline itself */
  outcomes(): AsyncIterable<Outcome<In, Out>, undefined>;
  /** the results as a Node.js stream of objects, which can't hold null; in place of iterating */
  readable(): Readable;
}

/** A bounded number of items at once; of those that wait, the first of the source goes first. */
class Gate {
  #inside = 0;
  readonly #waiting: { index: number; enter: () => void }[] = [];

  constructor(readonly limit: number) {}

  async enter(index: number): Promise<void> {
    if (this.#inside < this.limit) {
      this.#inside += 1;
      return;
    }
    await new Promise<void>((enter) => this.#waiting.push({ index, enter }));
  }

  leave(): void {
    const first = this.#waiting.reduce(
      (best, { index }, i, all) => (best < 0 || index < all[best]!.index ? i : best),
      -1,
    );
    if (first < 0) this.#inside -= 1;
    else this.#waiting.splice(first, 1)[0]!.enter();
  }
}

interface RunningStage {
  readonly name: string;
  readonly run: StageFunction<unknown, unknown>;
  readonly gate: Gate;
  readonly clock: BusyClock;
  items: number;
  failed: number;
  totalMs: number;
}

/** An item on its way. */
interface Flight {
  readonly item: unknown;
  readonly index: number;
  readonly bytes: number;
  readonly ms: Record<string, number>;
  /** Tensors that its stages made */
  readonly made: WeakSet<object>;
  /** once it is through */
  outcome?: Outcome<unknown, unknown>;
}

interface Request {
  resolve(result: IteratorResult<unknown, undefined>): void;
  reject(error: unknown): void;
}

/** The one iteration of a pipeline. */
class Run implements AsyncIterator<unknown, undefined> {
  readonly failures: Failure[] = [];
  readonly #source: Source<unknown>;
  readonly #device: Device | undefined;
  readonly #stages: readonly RunningStage[];
  readonly #concurrency: number;
  readonly #maxBytes: number;
  readonly #bytesOf: NonNullable<PipelineOptions<unknown>['bytes']>;
  readonly #ordered: boolean;
  readonly #throws: boolean;
  readonly #signal: AbortSignal | undefined;
  /** of the stages */
  readonly #controller = new AbortController();

  /** whether failures are delivered too */
  #wantsFailures = false;
  #iterator: ItemIterator<unknown> | undefined;
  #pulling = false;
  /** nothing more is taken: the source has ended or failed, or an item has, and its error ends the pipeline */
  #drained = false;
  /** comes after the results of what was taken before */
  #sourceError: { error: unknown } | undefined;
  /** items between source and consumer, in the source's order */
  readonly #flights = new Map<number, Flight>();
  /** those of them that are through, in the order in which they got there */
  readonly #through = new Set<Flight>();
  readonly #work = new Set<Promise<void>>();
  readonly #requests: Request[] = [];
  #stopped = false;
  #ending: Promise<{ error: unknown } | undefined> | undefined;
  /** what the next request is told */
  #lastError: { error: unknown } | undefined;
  #bytes = 0;
  #wakeFeeder: (() => void) | undefined;

  #started: number | undefined;
  #wallMs: number | undefined;
  #taken = 0;
  #delivered = 0;
  readonly #sourceClock = new BusyClock();
  #peakItems = 0;
  #peakBytes = 0;

  constructor(
    source: Source<unknown>,
    given: PipelineOptions<unknown> & { readonly stages: readonly unknown[] },
  ) {
    requireSource(source);
    const options = checkOptions(given);
    this.#source = source;
    this.#device = options.device;
    this.#concurrency = requireCount(options.concurrency, 'concurrency', DEFAULT_CONCURRENCY);
    this.#maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
    this.#bytesOf = options.bytes ?? byteSize;
    this.#ordered = options.ordered ?? true;
    this.#throws = options.onError === 'throw';
    this.#signal = options.signal;
    this.#stages = nameStages(options.stages, this.#concurrency).map(({ name, run, concurrency }) => ({
      ...{ name, run, gate: new Gate(concurrency), clock: new BusyClock() },
      ...{ items: 0, failed: 0, totalMs: 0 },
    }));
    setMaxListeners(0, this.#controller.signal); // each item may have its own
  }

  get stats(): PipelineStats {
    return {
      wallMs: this.#wallMs ?? (this.#started === undefined ? 0 : performance.now() - this.#started),
      taken: this.#taken,
      delivered: this.#delivered,
      failed: this.failures.length,
      sourceMs: this.#sourceClock.ms,
      peak: { items: this.#peakItems, bytes: this.#peakBytes },
      stages: this.#stages.map(({ name, items, failed, clock, totalMs }) => ({
        ...{ name, items, failed, busyMs: clock.ms, totalMs },
      })),
    };
  }

  /** @param wantsFailures whether results are outcomes, of all items */
  iterate(wantsFailures: boolean): this {
    if (this.#started === undefined) this.#wantsFailures = wantsFailures;
    return this;
  }

  async next(): Promise<IteratorResult<unknown, undefined>> {
    if (this.#ending) {
      await this.#ending;
      const last = this.#lastError;
      this.#lastError = undefined;
      if (last) throw last.error;
      return { done: true, value: undefined };
    }
    return new Promise((resolve, reject) => {
      this.#requests.push({ resolve, reject });
      this.#start();
      this.#deliver();
    });
  }

  async return(): Promise<IteratorReturnResult<undefined>> {
    const failed = await this.#end(undefined);
    this.#lastError = undefined;
    if (failed) throw failed.error;
    return { done: true, value: undefined };
  }

  #start(): void {
    if (this.#started !== undefined) return;
    this.#started = performance.now();
    if (this.#signal?.aborted) {
      this.#abort();
      return;
    }
    this.#signal?.addEventListener('abort', this.#abort, { once: true });
    void this.#feed()
      .catch((error: unknown) => (this.#sourceError = { error }))
      .then(() => {
        this.#drained = true;
        this.#deliver();
      });
  }

  readonly #abort = (): void => {
    void this.#end({ error: abortedError(this.#signal?.reason) });
  };

  /** Takes items while there is room for them. */
  async #feed(): Promise<void> {
    this.#iterator = iterate(this.#source);
    for (;;) {
      await this.#until(
        () =>
          this.#flights.size === 0 ||
          (this.#flights.size < this.#concurrency && this.#bytes < this.#maxBytes),
      );
      if (this.#over()) return;
      const { done, value: item } = await this.#pull(this.#iterator);
      if (done || this.#over()) return;
      const index = this.#taken++;
      const size = await this.#measure(item);
      const bytes = typeof size === 'number' ? size : 0;
      await this.#until(() => this.#flights.size === 0 || this.#bytes + bytes <= this.#maxBytes);
      if (this.#over()) return;
      const flight: Flight = { item, index, bytes, ms: {}, made: new WeakSet() };
      this.#flights.set(index, flight);
      this.#bytes += bytes;
      this.#peakItems = Math.max(this.#peakItems, this.#flights.size);
      this.#peakBytes = Math.max(this.#peakBytes, this.#bytes);
      if (typeof size === 'number') {
        const work: Promise<void> = this.#fly(flight).finally(() => this.#work.delete(work));
        this.#work.add(work);
      } else this.#fail(flight, 'bytes', size.error);
    }
  }

  /** A function, so that it is asked again after each wait. */
  #over(): boolean {
    return this.#stopped || this.#drained;
  }

  async #until(room: () => boolean): Promise<void> {
    while (!this.#over() && !room()) await new Promise<void>((wake) => (this.#wakeFeeder = wake));
  }

  #wake(): void {
    this.#wakeFeeder?.();
    this.#wakeFeeder = undefined;
  }

  async #pull(iterator: ItemIterator<unknown>): Promise<IteratorResult<unknown, unknown>> {
    this.#pulling = true;
    this.#sourceClock.enter();
    try {
      const result = await iterator.next();
      if (result.done) this.#iterator = undefined;
      return result;
    } catch (error) {
      this.#iterator = undefined; // it has ended by itself
      throw error;
    } finally {
      this.#sourceClock.leave();
      this.#pulling = false;
    }
  }

  async #measure(item: unknown): Promise<number | { error: unknown }> {
    try {
      const bytes = await this.#bytesOf(item);
      if (typeof bytes === 'number' && bytes >= 0) return bytes;
      return {
        error: expected('ERR_VALUE', 'a number of at least 0', 'the bytes of an item', String(bytes)),
      };
    } catch (error) {
      return { error };
    }
  }

  /** An item through the stages. Never rejects. */
  async #fly(flight: Flight): Promise<void> {
    const { item, index, bytes, ms } = flight;
    const at = { value: item, stage: '' };
    try {
      await traceItem({ index, item, bytes }, () => this.#pass(flight, at));
    } catch (error) {
      await this.#abandon(flight, at.value);
      if (!this.#stopped) this.#fail(flight, at.stage, error);
      return;
    }
    if (this.#stopped) await this.#abandon(flight, at.value);
    else this.#settle(flight, { ok: true, item, index, value: at.value, ms });
  }

  /** Takes an item from stage to stage; `at` says where it is, and what has become of it. */
  async #pass({ item, index, ms, made }: Flight, at: { value: unknown; stage: string }): Promise<void> {
    const context = this.#context(index);
    for (const stage of this.#stages) {
      await stage.gate.enter(index);
      const begin = performance.now();
      stage.clock.enter();
      try {
        if (this.#stopped) throw abortedError(this.#controller.signal.reason);
        at.stage = stage.name;
        const { value } = at;
        const work = async (): Promise<unknown> => await noting(made, () => stage.run(value, context));
        at.value = await traceStage(stage.name, { index, item }, work).catch((error: unknown) => {
          stage.failed += 1;
          throw error;
        });
        stage.items += 1;
      } finally {
        stage.clock.leave();
        stage.gate.leave();
        ms[stage.name] = performance.now() - begin;
        stage.totalMs += ms[stage.name]!;
      }
    }
  }

  #context(index: number): StageContext {
    const device = this.#device;
    return {
      get device() {
        if (device) return device;
        throw expected('ERR_DEVICE', 'a device', 'the options of pipeline', 'none');
      },
      signal: this.#controller.signal,
      index,
    };
  }

  /** Frees what nobody will get. The source's items are not the pipeline's: a failure still names them. */
  async #abandon({ item, made }: Flight, value: unknown): Promise<void> {
    if (value === item) return;
    // Nobody waits for this value, so there is nobody to tell that it can't be freed.
    await disposeValue(value, made).catch(() => undefined);
  }

  #fail(flight: Flight, stage: string, error: unknown): void {
    const { item, index, ms } = flight;
    const failure = { item, index, stage, error, ms };
    const after = this.failures.findIndex((other) => other.index > index);
    this.failures.splice(after < 0 ? this.failures.length : after, 0, failure);
    if (this.#throws) {
      this.#drained = true;
      this.#wake();
    }
    this.#settle(flight, { ok: false, ...failure });
  }

  #settle(flight: Flight, outcome: Outcome<unknown, unknown>): void {
    flight.outcome = outcome;
    this.#through.add(flight);
    this.#deliver();
  }

  /** The flight whose result is next, where there is one. */
  #first(): Flight | undefined {
    const [first] = this.#ordered ? this.#flights.values() : this.#through;
    return first?.outcome && first;
  }

  /** Gives the consumer what it has asked for and what is there. */
  #deliver(): void {
    while (this.#requests.length > 0 && !this.#stopped) {
      const flight = this.#first();
      if (!flight) {
        if (this.#drained && this.#flights.size === 0) void this.#end(this.#sourceError);
        return;
      }
      this.#flights.delete(flight.index);
      this.#through.delete(flight);
      this.#bytes -= flight.bytes;
      this.#wake();
      const outcome = flight.outcome!;
      if (!outcome.ok && this.#throws) void this.#end({ error: outcome.error });
      else if (this.#wantsFailures || outcome.ok) {
        this.#delivered += 1;
        const value = this.#wantsFailures ? outcome : (outcome as { value: unknown }).value;
        this.#requests.shift()!.resolve({ done: false, value });
      }
    }
  }

  /** Ends the run once; resolves, when nothing is under way any more, to an error of the source's own end. */
  #end(failure: { error: unknown } | undefined): Promise<{ error: unknown } | undefined> {
    return (this.#ending ??= this.#tearDown(failure));
  }

  async #tearDown(failure: { error: unknown } | undefined): Promise<{ error: unknown } | undefined> {
    this.#stopped = true;
    this.#started ??= performance.now();
    this.#signal?.removeEventListener('abort', this.#abort);
    if (this.#iterator || this.#flights.size > 0) {
      this.#controller.abort(failure?.error ?? abortedError('the consumer wants no more'));
    }
    this.#wake();
    const failed = await this.#closeSource();
    await Promise.all(this.#work);
    for (const flight of this.#flights.values()) {
      if (flight.outcome?.ok) await this.#abandon(flight, flight.outcome.value);
    }
    this.#flights.clear();
    this.#through.clear();
    this.#bytes = 0;
    this.#wallMs = performance.now() - this.#started;
    const requests = this.#requests.splice(0);
    if (failure) {
      const first = requests.shift();
      if (first) first.reject(failure.error);
      else this.#lastError = failure;
    }
    for (const request of requests) request.resolve({ done: true, value: undefined });
    return failure ? undefined : failed;
  }

  /** Ends a source that has not ended by itself; resolves to its error where it can't. */
  async #closeSource(): Promise<{ error: unknown } | undefined> {
    const iterator = this.#iterator;
    this.#iterator = undefined;
    const closed = iterator?.return().then(
      () => undefined,
      (error: unknown) => ({ error }),
    );
    // A source that is being asked for an item sees its end only after that, which may be never.
    return this.#pulling ? undefined : closed;
  }
}

type Stages1<A, B> = readonly [Stage<A, B>];
type Stages2<A, B, C> = readonly [Stage<A, B>, Stage<B, C>];
type Stages3<A, B, C, D> = readonly [...Stages2<A, B, C>, Stage<C, D>];
type Stages4<A, B, C, D, E> = readonly [...Stages3<A, B, C, D>, Stage<D, E>];
type Stages5<A, B, C, D, E, F> = readonly [...Stages4<A, B, C, D, E>, Stage<E, F>];
type Stages6<A, B, C, D, E, F, G> = readonly [...Stages5<A, B, C, D, E, F>, Stage<F, G>];

/** The options of a pipeline with its stages. */
export type WithStages<In, Stages> = PipelineOptions<In> & { readonly stages: Stages };

/**
 * Takes items from a source through stages, several at once: while item n is in stage 2, item n + 1 is in stage 1. Nothing is
 * taken before the first result is asked for, and never more than `concurrency` items or `maxBytes` bytes are between the
 * source and the consumer, so that a slow consumer makes a slow source.
 *
 * An item whose stage throws is a failure: it is noted in `failures`, and the others go on. A source that throws ends the
 * pipeline with that error, after the results of what it gave before. When the pipeline ends early (by its signal, by an error
 * with `onError: 'throw'`, or since the consumer breaks off) the stages' signal is aborted, the source's iterator is
 * ended by `return`, and the consumer goes on when no stage runs any more. Tensors that stages made for items that come to
 * nothing are disposed, where they are in the value on its way: itself, or entries of plain objects and arrays. So are such
 * values that are themselves disposable. Results that the consumer got are its own.
 *
 *     const run = pipeline(paths, { device, concurrency: 4, stages: [load, ({ query, key, value }, { device, signal }) =>
 *       device.attention({ query, key, value, signal })] })
 *     for await (const { out, lse } of run) …
 *     for (const { item, error } of run.failures) …
 *
 * @param source an iterable, async iterable, Node.js Readable or web ReadableStream
 * @param options `stages`: functions (item, context) => result, or { name, run, concurrency }; see `PipelineOptions`
 * @returns results, to be iterated once. Iterating throws ERR_ABORTED, the source's error, or with `onError: 'throw'` an
 *   item's.
 * @throws AttentionBiasError ERR_VALUE for a source or options that are none
 */
export function pipeline<A>(source: Source<A>, options: WithStages<A, readonly []>): Pipeline<A, A>;
export function pipeline<A, B>(source: Source<A>, options: WithStages<A, Stages1<A, B>>): Pipeline<A, B>;
export function pipeline<A, B, C>(
  source: Source<A>,
  options: WithStages<A, Stages2<A, B, C>>,
): Pipeline<A, C>;
export function pipeline<A, B, C, D>(
  source: Source<A>,
  options: WithStages<A, Stages3<A, B, C, D>>,
): Pipeline<A, D>;
export function pipeline<A, B, C, D, E>(
  source: Source<A>,
  options: WithStages<A, Stages4<A, B, C, D, E>>,
): Pipeline<A, E>;
export function pipeline<A, B, C, D, E, F>(
  source: Source<A>,
  options: WithStages<A, Stages5<A, B, C, D, E, F>>,
): Pipeline<A, F>;
export function pipeline<A, B, C, D, E, F, G>(
  source: Source<A>,
  options: WithStages<A, Stages6<A, B, C, D, E, F, G>>,
): Pipeline<A, G>;
/** Stages whose number is not known: their types are the caller's to know. */
export function pipeline<A>(
  source: Source<A>,
  options: WithStages<A, readonly Stage<never, unknown>[]>,
): Pipeline<A, unknown>;
export function pipeline<A>(
  source: Source<A>,
  options: WithStages<A, readonly Stage<never, unknown>[]>,
): Pipeline<A, unknown> {
  const run = new Run(source, options as WithStages<unknown, readonly unknown[]>);
  const results = {
    get failures() {
      return run.failures as Failure<A>[];
    },
    get stats() {
      return run.stats;
    },
    outcomes: () => ({
      [Symbol.asyncIterator]: () => run.iterate(true) as AsyncIterator<Outcome<A, unknown>, undefined>,
    }),
    readable: () => Readable.from(results, { objectMode: true, highWaterMark: 1 }),
    [Symbol.asyncIterator]: () => run.iterate(false) as AsyncIterator<unknown, undefined>,
  };
  return results;
}
