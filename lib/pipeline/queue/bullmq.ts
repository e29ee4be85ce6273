/** The queue on Redis: one BullMQ job a shard, and beside them the ledger of runs. */
import { setTimeout } from 'node:timers/promises';
import { z } from 'zod';
import type { Job, JobsOptions, Queue, Worker } from 'bullmq';
import type { Redis } from 'ioredis';

import { expected } from '../../errors.js';
import { hasBit, openLedger, type Ledger } from './ledger.js';
import {
  MAX_FAILURES_SHOWN,
  DEFAULT_ATTEMPTS,
  DEFAULT_BACKOFF_MS,
  UnfitError,
  abandoned,
  asError,
  endsWorker,
  statusOf,
  type EnqueueOptions,
  type Failure,
  type QueuedRun,
  type QueueStatus,
  type RunStatus,
  type RunTask,
  type ShardQueue,
  type ShardTask,
  type WorkOptions,
} from './queue.js';
import { connectRedis, disconnectRedis, loadBullmq, type ConnectionEvents } from './redis.js';

export const DEFAULT_QUEUE = 'attention-bias';

export interface RedisQueueOptions extends ConnectionEvents {
  /** as `connectRedis` takes it */
  readonly url: string;
  /** letters, digits, `_`, `.` and `-`; default `attention-bias` */
  readonly queue?: string | undefined;
  /**
   * Milliseconds, at least 100, after which the shard of a worker that has died is given to another, and at most twice as long; a
   * living worker renews its claim all the time. Default 30,000.
   */
  readonly lockMs?: number | undefined;
}

/** How often a shard may lose its worker before it is failed, as one that takes its workers with it. */
const MAX_LOST_WORKERS = 5;
/** Jobs added in one transaction. */
const CHUNK = 500;
/** How long a worker that ends waits for a Redis that is away to be told so. */
const FAREWELL_MS = 5000;
/** How often a drained worker looks whether others are done, and progress is told. */
const LOOK_MS = 1000;

/** What a job holds: enough to plan the run on another machine. */
const jobData = z.object({
  run: z.object({ id: z.string(), version: z.string(), options: z.record(z.string(), z.unknown()) }),
  shard: z.int().min(0),
  retryFailed: z.boolean(),
});
type JobData = z.infer<typeof jobData>;

const jobId = (run: string, shard: number): string => `${run}-${shard}`;

function parseJobId(id: string): { run: string; shard: number } {
  const dash = id.lastIndexOf('-');
  return { run: id.slice(0, dash), shard: Number(id.slice(dash + 1)) };
}

/** Does not keep the process. */
const timeout = (ms: number): Promise<void> => setTimeout(ms, undefined, { ref: false });

/** Calls `done` when `signal` is aborted, also where it already is. */
function whenAborted(signal: AbortSignal | undefined, done: () => void): void {
  if (signal?.aborted) done();
  else signal?.addEventListener('abort', done, { once: true });
}

function taskOf(job: Job<JobData>): ShardTask {
  const data = jobData.parse(job.data);
  return { ...data, attempt: job.attemptsMade + 1, attempts: job.opts.attempts ?? 1 };
}

/** Connects; errors are those of `connectRedis`, and ERR_VALUE for options out of range. */
export async function redisQueue(options: RedisQueueOptions): Promise<ShardQueue> {
  const { url, queue: name = DEFAULT_QUEUE, lockMs = 30_000, ...events } = options;
  if (!/^[\w.-]{1,100}$/.test(name)) {
    throw expected('ERR_VALUE', '1 to 100 letters, digits, "_", "." and "-"', '--queue', name);
  }
  if (!(lockMs >= 100 && lockMs <= 86_400_000)) {
    throw expected('ERR_VALUE', '100 to 86,400,000 ms', 'lockMs', String(lockMs));
  }
  const bullmq = loadBullmq();
  const redis = await connectRedis(url, events);
  const queue = new bullmq.Queue<JobData>(name, { connection: redis });
  queue.on('error', () => undefined); // of the connection, which tells them itself
  const ledger = openLedger(redis, name);
  return {
    enqueue: (run, how) => enqueue(queue, ledger, run, how),
    work: (runTask, how = {}) => work({ bullmq, redis, queue, ledger, lockMs }, runTask, how),
    status: (id) => status(queue, ledger, id),
    async close() {
      await queue.close().catch(() => undefined);
      await disconnectRedis(redis);
    },
  };
}

const enqueue = async (
  queue: Queue<JobData>,
  ledger: Ledger,
  run: QueuedRun,
  how: EnqueueOptions = {},
): Promise<number> => {
  const { attempts = DEFAULT_ATTEMPTS, backoffMs = DEFAULT_BACKOFF_MS, retryFailed = false } = how;
  await ledger.add(run);
  const failed = await jobsOf(queue, 'failed', run.id);
  // One that failed is taken out and added anew: its attempts and the workers it has lost are counted from none.
  for (const id of failed) await queue.remove(id);
  if (retryFailed) await ledger.reopen(run.id);
  let bits = (await ledger.get(run.id))?.bits ?? Buffer.alloc(0);
  const all = Array.from({ length: run.shards }, (_, shard) => shard);
  let missing = all.filter((shard) => !hasBit(bits, shard));
  if (missing.length === 0) {
    await ledger.restart(run.id);
    bits = Buffer.alloc(0);
    missing = all;
  }
  const opts: JobsOptions = {
    attempts,
    backoff: { type: 'exponential', delay: backoffMs },
    removeOnComplete: true, // the ledger knows it, in one bit
    removeOnFail: false,
  };
  const data = { id: run.id, version: run.version, options: { ...run.options } };
  for (let at = 0; at < missing.length; at += CHUNK) {
    const chunk = missing.slice(at, at + CHUNK);
    // A job whose id is in the queue already stays as it is.
    await queue.addBulk(
      chunk.map((shard) => ({
        name: 'shard',
        data: { run: data, shard, retryFailed },
        opts: { ...opts, jobId: jobId(run.id, shard) },
      })),
    );
  }
  return missing.length;
};

/** The ids of a run's jobs in a state that few are in. */
async function jobsOf(
  queue: Queue<JobData>,
  state: 'active' | 'delayed' | 'failed',
  run: string,
): Promise<string[]> {
  return (await queue.getRanges([state], 0, -1)).filter((id) => parseJobId(id).run === run);
}

async function jobs(queue: Queue<JobData>, ids: readonly string[]): Promise<Job<JobData>[]> {
  const found = await Promise.all(ids.map((id) => queue.getJob(id)));
  return found.filter((job) => job !== undefined);
}

function failureOf(job: Job<JobData>): Failure {
  const lost = job.failedReason.startsWith('job stalled');
  return {
    shard: parseJobId(job.id ?? '').shard,
    attempts: job.attemptsMade,
    message: lost ? `its worker died or was cut off ${job.stalledCounter} times` : job.failedReason,
  };
}

async function runStatus(queue: Queue<JobData>, ledger: Ledger, id: string): Promise<RunStatus | undefined> {
  // Jobs first: a shard that is finished in between is then counted as done, not as lost.
  const active = await jobs(queue, await jobsOf(queue, 'active', id));
  const delayed = await jobsOf(queue, 'delayed', id);
  const failed = await jobsOf(queue, 'failed', id);
  const failures = (await jobs(queue, failed.slice(0, MAX_FAILURES_SHOWN))).map(failureOf);
  const [entry, now] = await Promise.all([ledger.get(id), ledger.now()]);
  if (!entry) return undefined;
  const { run, bits } = entry;
  const underWay = active.filter((job) => !hasBit(bits, parseJobId(job.id ?? '').shard));
  return statusOf({
    ...entry,
    lastDone: hasBit(bits, run.shards - 1),
    active: underWay.map(({ progress }) => (typeof progress === 'number' ? progress : 0)),
    retrying: delayed.length,
    failed: failed.length,
    failures: failures.sort((a, b) => a.shard - b.shard),
    now,
  });
}

const status = async (queue: Queue<JobData>, ledger: Ledger, id?: string): Promise<QueueStatus> => {
  const ids = id === undefined ? await ledger.list() : [id];
  const runs: RunStatus[] = [];
  for (const each of ids) {
    const found = await runStatus(queue, ledger, each);
    if (found) runs.push(found);
  }
  const [workers, waiting] = await Promise.all([queue.getWorkersCount(), queue.getWaitingCount()]);
  return { workers, waiting, runs };
};

interface Place {
  readonly bullmq: typeof import('bullmq');
  readonly redis: Redis;
  readonly queue: Queue<JobData>;
  readonly ledger: Ledger;
  readonly lockMs: number;
}

async function work(place: Place, runTask: RunTask, options: WorkOptions): Promise<void> {
  const { bullmq, redis, queue, ledger, lockMs } = place;
  const { concurrency = 1, drain = false, stop, abandon, onEvent } = options;
  if (!(Number.isInteger(concurrency) && concurrency >= 1 && concurrency <= 1024)) {
    throw expected('ERR_VALUE', 'an integer from 1 to 1,024', 'concurrency', String(concurrency));
  }
  const abandonSignal = abandon ?? new AbortController().signal;
  const running = new Set<Promise<unknown>>();
  const failedInARow = new Set<string | undefined>();
  let ending = false;
  let unfit: Error | undefined;
  let end = (): void => undefined;
  const ended = new Promise<void>((resolve) => {
    end = () => {
      ending = true;
      resolve();
    };
  });

  /** Gives a shard back; BullMQ learns by the error that it is no longer this worker's. */
  const giveBack = async (job: Job<JobData>, task: ShardTask): Promise<never> => {
    // A Redis that is away is not waited for: the claim runs out.
    await Promise.race([job.moveToWait(job.token), timeout(FAREWELL_MS)]);
    onEvent?.({ type: 'returned', task });
    throw new bullmq.WaitingError();
  };

  const doTask = async (job: Job<JobData>, task: ShardTask): Promise<void> => {
    let told = 0;
    const progress = (items: number): void => {
      if (performance.now() - told < LOOK_MS) return;
      told = performance.now();
      job.updateProgress(items).catch(() => undefined); // only a number to look at
    };
    onEvent?.({ type: 'begin', task });
    const result = runTask(task, { signal: abandonSignal, progress });
    running.add(result);
    try {
      const outcome = await result;
      failedInARow.clear();
      await ledger.finish(task.run.id, task.shard, outcome);
      onEvent?.({ type: 'done', task, outcome });
    } finally {
      running.delete(result);
    }
  };

  const process = async (job: Job<JobData>): Promise<void> => {
    const task = taskOf(job);
    if (ending) await giveBack(job, task); // it came while the worker was told to end
    try {
      await doTask(job, task);
    } catch (thrown) {
      failedInARow.add(job.id);
      if (!abandonSignal.aborted && endsWorker(thrown, failedInARow)) {
        unfit = asError(thrown);
        end();
      }
      if (abandonSignal.aborted || thrown instanceof UnfitError) await giveBack(job, task);
      throw thrown;
    }
  };

  const worker: Worker<JobData> = new bullmq.Worker<JobData>(queue.name, process, {
    connection: redis,
    concurrency,
    lockDuration: lockMs,
    stalledInterval: lockMs,
    maxStalledCount: MAX_LOST_WORKERS,
    runRetryDelay: LOOK_MS,
  });
  worker.on('failed', (job, error) => {
    if (!job) return;
    const last = job.attemptsMade >= (job.opts.attempts ?? 1) || error.name === 'UnrecoverableError';
    onEvent?.({ type: 'failed', task: { ...taskOf(job), attempt: job.attemptsMade }, error, last });
  });
  worker.on('stalled', (id) => {
    const { run, shard } = parseJobId(id);
    onEvent?.({ type: 'redelivered', run, shard });
  });
  worker.on('error', (error) => {
    if (redis.status === 'ready') onEvent?.({ type: 'trouble', error }); // else the connection tells it
  });

  whenAborted(stop, end);
  whenAborted(abandon, end);
  let looking = false;
  const look = (): void => {
    if (looking) return; // a Redis that is away answers later
    looking = true;
    // Shards that others have under way, or that wait for another attempt, may yet come back.
    Promise.all([queue.count(), queue.getActiveCount()])
      .then(
        ([waiting, active]) => {
          if (waiting + active === 0) end();
        },
        () => undefined,
      )
      .finally(() => (looking = false));
  };
  const looks = drain ? setInterval(look, LOOK_MS) : undefined;
  if (drain) {
    worker.on('drained', look);
    look();
  }
  await ended;
  clearInterval(looks);

  const closed = worker.close();
  await Promise.allSettled(running);
  await Promise.race([closed, timeout(FAREWELL_MS)]);
  if (abandon?.aborted) throw abandoned(abandon);
  if (unfit) throw unfit;
}
