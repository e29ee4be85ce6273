/** Worker threads that prepare frames. */
import { availableParallelism } from 'node:os';
import { extname, join } from 'node:path';
import { Piscina } from 'piscina';

import type { PrepareReply, PrepareTask } from './prepare-worker.js';

/** Threads load JavaScript: where the sources themselves run, as in tests, the compiled file. */
const WORKER =
  extname(__filename) === '.ts'
    ? join(__dirname, '../../dist/pipeline/prepare-worker.js')
    : join(__dirname, 'prepare-worker.js');

/** A thread that has had nothing to do for so long ends; the next shard of a run finds it still there. */
const IDLE_MS = 5000;
const MAX_THREADS = 16;

/** Pools by their number of threads; runs side by side share them. */
const pools = new Map<number, Piscina<PrepareTask, PrepareReply>>();

/**
 * How many threads prepare frames beside a device: preparing a frame takes about as long as a CPU's attention over it, so a
 * CPU device needs one for two cores and more; a GPU many.
 *
 * @param concurrency the most items under way
 */
export function poolSize(concurrency: number): number {
  return Math.max(1, Math.min(Math.ceil(availableParallelism() / 2), concurrency - 1, MAX_THREADS));
}

/** Prepares a frame in a thread. Rejects where the thread itself fails; what is wrong with the frame is in the reply. */
export async function prepareInThread(task: PrepareTask, threads: number): Promise<PrepareReply> {
  let pool = pools.get(threads);
  if (!pool) {
    pool = new Piscina<PrepareTask, PrepareReply>({
      filename: WORKER,
      minThreads: 0,
      maxThreads: threads,
      idleTimeout: IDLE_MS,
    });
    pools.set(threads, pool);
  }
  return pool.run(task);
}
