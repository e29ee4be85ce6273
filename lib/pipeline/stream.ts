/** A pipeline as a Node.js stream: for `stream.pipeline(source, pipelineStream(…), sink)`. */
import { Duplex } from 'node:stream';

import { pipeline, type WithStages } from './engine.js';
import type { Failure, PipelineOptions, PipelineStats, Stage } from './stages.js';

/** A stream of objects: items are written to it, results are read from it. */
export interface PipelineStream<In = unknown> extends Duplex {
  readonly failures: readonly Failure<In>[];
  readonly stats: PipelineStats;
}

/** Items that are written one at a time, to be taken one at a time. */
class Written implements AsyncIterator<unknown, undefined> {
  #item: { value: unknown; taken: () => void } | undefined;
  #wanted: ((result: IteratorResult<unknown, undefined>) => void) | undefined;
  #ended = false;

  write(value: unknown, taken: () => void): void {
    if (this.#wanted) {
      this.#wanted({ done: false, value });
      this.#wanted = undefined;
      taken();
    } else this.#item = { value, taken };
  }

  end(): void {
    this.#ended = true;
    this.#wanted?.({ done: true, value: undefined });
    this.#wanted = undefined;
  }

  next(): Promise<IteratorResult<unknown, undefined>> {
    return new Promise((resolve) => {
      const item = this.#item;
      this.#item = undefined;
      if (item) {
        resolve({ done: false, value: item.value });
        item.taken();
      } else if (this.#ended) resolve({ done: true, value: undefined });
      else this.#wanted = resolve;
    });
  }

  return(): Promise<IteratorReturnResult<undefined>> {
    this.end();
    return Promise.resolve({ done: true, value: undefined });
  }
}

/**
 * A pipeline whose source is what is written to it. Options are those of `pipeline`; nothing is taken before somebody reads.
 * An abort, and with `onError: 'throw'` an item's error, destroys the stream; destroying it ends the pipeline.
 *
 * @throws AttentionBiasError ERR_VALUE for options that are none
 */
export function pipelineStream<In>(
  options: PipelineOptions<In> & { readonly stages: readonly Stage<never, unknown>[] },
): PipelineStream<In> {
  const written = new Written();
  const source = { [Symbol.asyncIterator]: () => written as AsyncIterator<In, undefined> };
  const run = pipeline<In>(source, options as WithStages<In, readonly Stage<never, unknown>[]>);
  const results = run[Symbol.asyncIterator]();
  const stream = new Duplex({
    objectMode: true,
    readableHighWaterMark: 1,
    writableHighWaterMark: 1,
    write: (item, _encoding, taken) => written.write(item, taken),
    final: (done) => {
      written.end();
      done();
    },
    read() {
      results.next().then(
        ({ done, value }) => this.push(done ? null : value),
        (error: unknown) => this.destroy(error as Error),
      );
    },
    destroy: (error, done) => {
      written.end();
      results.return!().then(
        () => done(error),
        (failed: unknown) => done(error ?? (failed as Error)),
      );
    },
  });
  Object.defineProperties(stream, {
    failures: { get: () => run.failures },
    stats: { get: () => run.stats },
  });
  return stream as PipelineStream<In>;
}
