/**
 * How the shards of a run get done. One interface for a process that does them itself (embedded.ts) and for workers on any
 * number of machines that share the file system (bullmq.ts). A queue only hands shards out: what is finished is said by the
 * files of the output folder, so that a shard that is handed out twice is harmless, and a queue that loses everything is
 * filled again.
 */
import { createHash } from 'node:crypto';

import { AttentionBiasError } from '../../errors.js';
import { isOfFullDisk } from '../../formats/io.js';

/** A run as a queue carries it: plain JSON with which any process that sees the same files plans the same run. */
export interface QueuedRun {
  /** 16 hex digits: of what is computed, and where to (`runId`) */
  readonly id: string;
  /** absolute paths, the same on every machine */
  readonly manifest: string;
  readonly out: string;
  readonly items: number;
  /** items of a shard; the last may have fewer */
  readonly shardSize: number;
  readonly shards: number;
  /** of the package that planned it: another's shards may be others */
  readonly version: string;
  /** what `planRun` takes */
  readonly options: Readonly<Record<string, unknown>>;
}

/** What of a run comes with each of its shards. */
export type QueuedPlan = Pick<QueuedRun, 'id' | 'version' | 'options'>;

/** The id of a run with this key in this folder: enqueueing it twice adds nothing, in another folder it is another run. */
export function runId(key: string, out: string): string {
  return createHash('sha256')
    .update(JSON.stringify([key, out]))
    .digest('hex')
    .slice(0, 16);
}

/** One shard, as it is handed out. */
export interface ShardTask {
  readonly run: QueuedPlan;
  readonly shard: number;
  /** whether it is computed again if some of its items failed */
  readonly retryFailed: boolean;
  /** counted from 1; a shard whose worker died counts no attempt */
  readonly attempt: number;
  readonly attempts: number;
}

export interface ShardOutcome {
  readonly items: number;
  /** items that are noted as failed in the shard's sidecar */
  readonly failed: number;
  /** whether its file was there before */
  readonly skipped: boolean;
  readonly ms: number;
}

export interface TaskContext {
  /** aborted when the shard is given up: reject then */
  readonly signal: AbortSignal;
  /** says that so many of the shard's items are done */
  readonly progress: (items: number) => void;
}

/** Does a shard. Called again for the same shard after a failure, and where a worker died; also twice at the same time. */
export type RunTask = (task: ShardTask, context: TaskContext) => Promise<ShardOutcome>;

export interface EnqueueOptions {
  /** how often a shard that throws is tried before it counts as failed; default 3 */
  readonly attempts?: number | undefined;
  /** milliseconds before the second attempt, twice as many before the third …; default 5,000 */
  readonly backoffMs?: number | undefined;
  /** whether finished shards with failed items are computed again; default false */
  readonly retryFailed?: boolean | undefined;
  /** which shards; default all. Of an embedded queue only */
  readonly only?: ((shard: number) => boolean) | undefined;
}

export type WorkEvent =
  | { readonly type: 'begin'; readonly task: ShardTask }
  | { readonly type: 'done'; readonly task: ShardTask; readonly outcome: ShardOutcome }
  /** an attempt failed; `last`: no other follows */
  | { readonly type: 'failed'; readonly task: ShardTask; readonly error: Error; readonly last: boolean }
  /** went back undone, to be handed out again */
  | { readonly type: 'returned'; readonly task: ShardTask }
  /** a shard whose worker died, or could not reach the queue for too long, waits again */
  | { readonly type: 'redelivered'; readonly run: string; readonly shard: number }
  /** the queue's own trouble, which it lives on with */
  | { readonly type: 'trouble'; readonly error: Error };

export interface WorkOptions {
  /** shards at the same time; default 1 */
  readonly concurrency?: number | undefined;
  /** return once nothing waits, runs anywhere, or will be tried again; default: wait for more */
  readonly drain?: boolean | undefined;
  /** no further shard is taken; those under way are finished */
  readonly stop?: AbortSignal | undefined;
  /** shards under way are given up and go back at once */
  readonly abandon?: AbortSignal | undefined;
  readonly onEvent?: ((event: WorkEvent) => void) | undefined;
}

/** Why a shard failed for good. */
export interface Failure {
  readonly shard: number;
  readonly attempts: number;
  readonly message: string;
}

export interface RunStatus {
  readonly id: string;
  readonly manifest: string;
  readonly out: string;
  /** when it was first enqueued, ISO 8601 */
  readonly enqueued: string;
  readonly shards: {
    readonly total: number;
    readonly waiting: number;
    readonly active: number;
    /** failed and wait for their next attempt */
    readonly retrying: number;
    readonly done: number;
    readonly failed: number;
  };
  readonly items: {
    readonly total: number;
    /** those of shards under way counted, as far as they are known */
    readonly done: number;
    /** noted as failed in sidecars of finished shards */
    readonly failed: number;
  };
  /** of the whole run, over its last shards; null where none was computed yet */
  readonly itemsPerSecond: number | null;
  /** until the last item at that rate; 0 when nothing is left to do, null where there is no rate */
  readonly secondsLeft: number | null;
  /** the first 20 */
  readonly failures: readonly Failure[];
}

export interface QueueStatus {
  /** processes that take shards; null where that can't be known */
  readonly workers: number | null;
  /** shards of all runs that wait to be taken */
  readonly waiting: number;
  /** in the order of their enqueueing */
  readonly runs: readonly RunStatus[];
}

export interface ShardQueue {
  /**
   * Adds the shards of a run that are not in the queue and not known to be finished; those that failed are tried again. Of
   * a run that is finished all are added: workers look whether each is still what its inputs ask for.
   *
   * @returns how many shards are to be done
   */
  enqueue(run: QueuedRun, options?: EnqueueOptions): Promise<number>;
  /**
   * Takes shards and does them. Rejects with ERR_ABORTED when they were abandoned, and with a task's error where that is
   * the machine's: ERR_DEVICE, UnfitError, or any when five shards have failed in a row. Such a machine leaves the
   * others alone.
   */
  work(run: RunTask, options?: WorkOptions): Promise<void>;
  /** of one run, or of all that are known */
  status(id?: string): Promise<QueueStatus>;
  /** Lets go of connections. Shards stay where they are. */
  close(): Promise<void>;
}

export const DEFAULT_ATTEMPTS = 3;
export const DEFAULT_BACKOFF_MS = 5000;

/** Milliseconds after the failure of this attempt. */
export const backoff = (attempt: number, firstMs: number): number => firstMs * 2 ** (attempt - 1);

export const MAX_FAILURES_SHOWN = 20;

/** So many shards that fail one after the other, with none done between them, end their worker: its disk is full, say. */
export const MAX_FAILED_IN_A_ROW = 5;

/** A shard that was computed: when it ended (Unix milliseconds), how long it took. */
export interface Computed {
  readonly items: number;
  readonly ms: number;
  readonly end: number;
}

/** How many of the last shards a rate is measured over. */
export const RATE_WINDOW = 256;

/** Items a second from the begin of the first of `recent` to `now`; null where it is empty. */
export function rate(recent: readonly Computed[], now: number): number | null {
  if (recent.length === 0) return null;
  const start = Math.min(...recent.map(({ end, ms }) => end - ms));
  const items = recent.reduce((sum, shard) => sum + shard.items, 0);
  return items / (Math.max(1, now - start) / 1000);
}

/** What a queue knows of a run. */
export interface Progress {
  readonly run: QueuedRun;
  readonly enqueued: number;
  readonly done: number;
  readonly lastDone: boolean;
  readonly failedItems: number;
  readonly recent: readonly Computed[];
  /** the items that each shard under way has done */
  readonly active: readonly number[];
  readonly retrying: number;
  readonly failed: number;
  readonly failures: readonly Failure[];
  /** of the clock that `recent` was measured with */
  readonly now: number;
}

export function statusOf(progress: Progress): RunStatus {
  const { run, done, active, retrying, failed, recent } = progress;
  const missingInLast = run.shards * run.shardSize - run.items;
  const finished = done * run.shardSize - (progress.lastDone ? missingInLast : 0);
  const items = Math.min(
    run.items,
    active.reduce((sum, n) => sum + n, finished),
  );
  const failedShardItems = failed * run.shardSize;
  const left = done + failed >= run.shards ? 0 : Math.max(0, run.items - items - failedShardItems);
  // A run that has ended is as fast as it was.
  const now = left === 0 && recent.length > 0 ? Math.max(...recent.map(({ end }) => end)) : progress.now;
  const perSecond = rate(recent, now);
  return {
    id: run.id,
    manifest: run.manifest,
    out: run.out,
    enqueued: new Date(progress.enqueued).toISOString(),
    shards: {
      total: run.shards,
      waiting: Math.max(0, run.shards - done - active.length - retrying - failed),
      active: active.length,
      retrying,
      done,
      failed,
    },
    items: { total: run.items, done: items, failed: progress.failedItems },
    itemsPerSecond: perSecond,
    secondsLeft: left === 0 ? 0 : perSecond === null ? null : left / perSecond,
    failures: progress.failures.slice(0, MAX_FAILURES_SHOWN),
  };
}

export const isOver = ({ shards }: RunStatus): boolean => shards.done + shards.failed >= shards.total;

/** This process can't do the run's shards, though others may: the shard goes back as if it had not been taken. */
export class UnfitError extends AttentionBiasError {}

/**
 * Whether a failure ends the worker. A device that does not work would fail one shard after the other, faster than others do
 * them; it counts as an attempt all the same, as the shard may be what breaks devices. A disk that is full or can't be written
 * to is no better a while later.
 *
 * @param failedInARow the shards that failed since one was done, this one among them
 */
export function endsWorker(error: unknown, failedInARow: ReadonlySet<unknown>): boolean {
  if (error instanceof UnfitError || failedInARow.size >= MAX_FAILED_IN_A_ROW) return true;
  return error instanceof AttentionBiasError && (error.code === 'ERR_DEVICE' || isOfFullDisk(error));
}

export const asError = (thrown: unknown): Error =>
  thrown instanceof Error ? thrown : new Error(String(thrown));

export const abandoned = (signal: AbortSignal): AttentionBiasError =>
  new AttentionBiasError('ERR_ABORTED', 'the shards under way were abandoned', { cause: signal.reason });
