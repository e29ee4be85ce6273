import {
  MAX_FAILURES_SHOWN,
  DEFAULT_ATTEMPTS,
  DEFAULT_BACKOFF_MS,
  RATE_WINDOW,
  UnfitError,
  abandoned,
  asError,
  backoff,
  endsWorker,
  statusOf,
  type Computed,
  type Failure,
  type QueuedRun,
  type RunStatus,
  type RunTask,
  type ShardQueue,
  type WorkOptions,
} from './queue.js';

interface Entry {
  readonly run: QueuedRun;
  readonly enqueued: number;
  readonly attempts: number;
  readonly backoffMs: number;
  readonly retryFailed: boolean;
  /** shard → failed items */
  readonly done: Map<number, number>;
  /** shard → items so far */
  readonly active: Map<number, number>;
  readonly retrying: Map<number, NodeJS.Timeout>;
  readonly failed: Map<number, Failure>;
  recent: readonly Computed[];
}

interface Waiting {
  readonly entry: Entry;
  readonly shard: number;
  readonly attempt: number;
}

function statusOfEntry(entry: Entry): RunStatus {
  const { run, enqueued, done, active, retrying, failed, recent } = entry;
  return statusOf({
    run,
    enqueued,
    done: done.size,
    lastDone: done.has(run.shards - 1),
    failedItems: [...done.values()].reduce((a, b) => a + b, 0),
    recent,
    active: [...active.values()],
    retrying: retrying.size,
    failed: failed.size,
    failures: [...failed.values()].slice(0, MAX_FAILURES_SHOWN),
    now: Date.now(),
  });
}

/** The queue of one process: no service, nothing kept. The shards of a run are handed out in their order. */
export function embeddedQueue(): ShardQueue {
  const entries = new Map<string, Entry>();
  const waiting: Waiting[] = [];
  const listeners = new Set<() => void>();
  const changed = (): void => {
    for (const listener of [...listeners]) listener();
  };

  const nothingLeft = (): boolean =>
    waiting.length === 0 &&
    [...entries.values()].every(({ active, retrying }) => active.size + retrying.size === 0);

  /** Resolves at the next change, or when `signal` is aborted. */
  const change = (signal: AbortSignal | undefined): Promise<void> =>
    new Promise((resolve) => {
      const done = (): void => {
        listeners.delete(done);
        signal?.removeEventListener('abort', done);
        resolve();
      };
      listeners.add(done);
      signal?.addEventListener('abort', done);
    });

  const attempt = async (
    { entry, shard, attempt: number }: Waiting,
    runTask: RunTask,
    { abandon, onEvent }: WorkOptions,
    failedInARow: Set<number>,
  ): Promise<void> => {
    const { run, attempts, retryFailed } = entry;
    const task = { run, shard, retryFailed, attempt: number, attempts };
    entry.active.set(shard, 0);
    onEvent?.({ type: 'begin', task });
    try {
      const signal = abandon ?? new AbortController().signal;
      const progress = (items: number): unknown => entry.active.set(shard, items);
      const outcome = await runTask(task, { signal, progress });
      entry.active.delete(shard);
      entry.done.set(shard, outcome.failed);
      const { items, ms, skipped } = outcome;
      if (!skipped) entry.recent = [{ items, ms, end: Date.now() }, ...entry.recent].slice(0, RATE_WINDOW);
      failedInARow.clear();
      onEvent?.({ type: 'done', task, outcome });
    } catch (thrown) {
      entry.active.delete(shard);
      if (abandon?.aborted || thrown instanceof UnfitError) {
        waiting.unshift({ entry, shard, attempt: number });
        onEvent?.({ type: 'returned', task });
        throw abandon?.aborted ? abandoned(abandon) : thrown;
      }
      const error = asError(thrown);
      const last = number >= attempts;
      if (last) {
        entry.failed.set(shard, { shard, attempts: number, message: error.message });
      } else {
        const again = (): void => {
          entry.retrying.delete(shard);
          waiting.push({ entry, shard, attempt: number + 1 });
          changed();
        };
        entry.retrying.set(shard, setTimeout(again, backoff(number, entry.backoffMs)));
      }
      onEvent?.({ type: 'failed', task, error, last });
      failedInARow.add(shard);
      if (endsWorker(thrown, failedInARow)) throw error;
    } finally {
      changed();
    }
  };

  return {
    enqueue(run, how = {}) {
      const { attempts = DEFAULT_ATTEMPTS, backoffMs = DEFAULT_BACKOFF_MS, retryFailed = false } = how;
      let entry = entries.get(run.id);
      if (!entry || entry.done.size === run.shards) {
        const none = { done: new Map(), active: new Map(), retrying: new Map(), failed: new Map() };
        entry = { run, enqueued: Date.now(), attempts, backoffMs, retryFailed, recent: [], ...none };
        entries.set(run.id, entry);
        for (let shard = 0; shard < run.shards; ++shard)
          if (how.only?.(shard) ?? true) waiting.push({ entry, shard, attempt: 1 });
      } else {
        for (const shard of entry.failed.keys()) waiting.push({ entry, shard, attempt: 1 });
        entry.failed.clear();
      }
      changed();
      return Promise.resolve(run.shards - entry.done.size);
    },

    async work(runTask, options = {}) {
      const { concurrency = 1, drain = false, stop, abandon } = options;
      const ended = new AbortController();
      const signal = AbortSignal.any([ended.signal, ...[stop, abandon].filter((s) => s !== undefined)]);
      const failedInARow = new Set<number>();
      const loop = async (): Promise<void> => {
        while (!signal.aborted) {
          const next = waiting.shift();
          if (next) await attempt(next, runTask, options, failedInARow);
          else if (drain && nothingLeft()) return;
          else await change(signal);
        }
      };
      // The first error stops all; each finishes or gives up what it has under way.
      const loops = Array.from({ length: concurrency }, () =>
        loop().catch((error: unknown) => {
          ended.abort();
          throw error;
        }),
      );
      const results = await Promise.allSettled(loops);
      if (abandon?.aborted) throw abandoned(abandon);
      const failure = results.find((result) => result.status === 'rejected');
      if (failure) throw asError(failure.reason);
    },

    status(id) {
      const runs = [...entries.values()].filter(({ run }) => id === undefined || run.id === id);
      return Promise.resolve({ workers: null, waiting: waiting.length, runs: runs.map(statusOfEntry) });
    },

    close() {
      for (const { retrying } of entries.values()) {
        for (const timer of retrying.values()) clearTimeout(timer);
        retrying.clear();
      }
      return Promise.resolve();
    },
  };
}
