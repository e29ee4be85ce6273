import { setTimeout } from 'node:timers/promises';

import { AttentionBiasError } from '../../errors.js';
import {
  isOver,
  type EnqueueOptions,
  type QueuedRun,
  type QueueStatus,
  type RunStatus,
  type ShardQueue,
} from './queue.js';

export interface FollowOptions extends EnqueueOptions {
  readonly signal?: AbortSignal | undefined;
  /** called at every look */
  readonly onStatus?: ((run: RunStatus, queue: QueueStatus) => void) | undefined;
  /** shards were missing in the queue and were added once more */
  readonly onRefill?: (() => void) | undefined;
  /** milliseconds between two looks; default 1,000 */
  readonly intervalMs?: number | undefined;
}

/** Looks in a row at which shards are missing before they count as lost: the numbers of one look are not of one moment. */
const LOOKS_UNTIL_LOST = 3;

/** Rejects when `signal` is aborted, however long `work` takes. */
async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  let abort = (): void => undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(new AttentionBiasError('ERR_ABORTED', 'aborted', { cause: signal.reason }));
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort);
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/**
 * Waits until every shard of an enqueued run is done or has failed. A queue that has lost shards, as a Redis without
 * persistence that was restarted, is filled again.
 *
 * @returns the last status
 * @throws AttentionBiasError ERR_ABORTED; the run goes on
 */
export async function followRun(
  queue: ShardQueue,
  run: QueuedRun,
  options: FollowOptions = {},
): Promise<RunStatus> {
  const { signal, onStatus, onRefill, intervalMs = 1000 } = options;
  let missing = 0;
  for (;;) {
    const status = await orAborted(queue.status(run.id), signal);
    const [found] = status.runs;
    if (found) onStatus?.(found, status);
    if (found && isOver(found)) return found;
    missing = !found || (found.shards.waiting > 0 && status.waiting === 0) ? missing + 1 : 0;
    if (missing === LOOKS_UNTIL_LOST) {
      await orAborted(queue.enqueue(run, options), signal);
      onRefill?.();
      missing = 0;
    }
    // Aborted while it waits, it says so at the next look.
    await setTimeout(intervalMs, undefined, { signal }).catch(() => undefined);
  }
}
