/** Where items come from, as one kind of iterator. */
import { expected } from '../errors.js';

/** A list, a generator, a Node.js stream (such as a Readable), a web ReadableStream. */
export type Source<T> = Iterable<T | PromiseLike<T>> | AsyncIterable<T> | ReadableStreamLike<T>;

/** A ReadableStream of a platform whose streams are no AsyncIterables. */
export interface ReadableStreamLike<T> {
  getReader(): {
    read(): Promise<{ done: boolean; value?: T | undefined }>;
    cancel(reason?: unknown): Promise<void>;
    releaseLock(): void;
  };
}

export interface ItemIterator<T> {
  next(): Promise<IteratorResult<T, unknown>>;
  /** ends it early */
  return(): Promise<void>;
}

type Given<T> = Partial<AsyncIterable<T> & Iterable<T> & ReadableStreamLike<T>> & {
  destroy?: unknown;
  pipe?: unknown;
};

/** ERR_VALUE for what is no source. A text is one of characters, but hardly what was meant. */
export function requireSource(source: unknown): void {
  const given = Object(source) as Given<unknown>;
  const methods = [given.getReader, given[Symbol.asyncIterator], given[Symbol.iterator]];
  if (typeof source !== 'string' && methods.some((method) => typeof method === 'function')) return;
  throw expected('ERR_VALUE', 'an iterable, an async iterable or a stream', 'source', typeof source);
}

/** The source's iterator. Streams end at once, even while they are asked for an item. */
export function iterate<T>(source: Source<T>): ItemIterator<T> {
  const given = source as Given<T>;
  if (given.getReader) {
    const reader = given.getReader();
    return {
      next: async () => {
        const { done, value } = await reader.read();
        return done ? { done, value } : { done, value: value as T };
      },
      return: async () => {
        // Whatever a reader of somebody else's does, a pipeline ends with it.
        await reader.cancel();
      },
    };
  }
  if (given[Symbol.asyncIterator]) {
    const iterator = given[Symbol.asyncIterator]!();
    const stream = given as { destroy(): void };
    const isStream = typeof given.destroy === 'function' && typeof given.pipe === 'function';
    return {
      next: async () => iterator.next(),
      return: async () => {
        if (isStream) stream.destroy();
        await iterator.return?.();
      },
    };
  }
  const iterator = (source as Iterable<T | PromiseLike<T>>)[Symbol.iterator]();
  return {
    next: async () => {
      const result = iterator.next();
      return result.done ? { done: true, value: undefined } : { done: false, value: await result.value };
    },
    return: async () => {
      await Promise.resolve();
      iterator.return?.();
    },
  };
}
