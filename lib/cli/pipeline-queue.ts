/** `pipeline` with a queue on Redis: runs go into it, and what becomes of them is shown. */
import { SingleBar } from 'cli-progress';
import type { Options } from 'yargs';

import { expected } from '../errors.js';
import { openLog, type LogLevel } from '../pipeline/log.js';
import { redisQueue } from '../pipeline/queue/bullmq.js';
import { followRun } from '../pipeline/queue/follow.js';
import {
  DEFAULT_ATTEMPTS,
  type EnqueueOptions,
  type QueueStatus,
  type RunStatus,
} from '../pipeline/queue/queue.js';
import { queuedRun } from '../pipeline/queue/runner.js';
import { claimFolder, type Run } from '../pipeline/run.js';
import { queueOption, redisDescription } from './queue-options.js';
import { counted, duration, grouped, perSecond } from './words.js';

export interface QueueArguments {
  redis: string;
  queue: string;
  detach: boolean;
  attempts: number;
  'retry-failed': boolean;
  'log-level': LogLevel | undefined;
  json: boolean;
}

/** Options of `pipeline` that only a queue takes. */
export const queueOptions = {
  redis: {
    type: 'string',
    requiresArg: true,
    // What is decided by the workers.
    conflicts: ['shard', 'concurrency', 'max-bytes', 'device', 'threads'],
    describe: `let workers do it: ${redisDescription}`,
  },
  queue: queueOption,
  detach: { type: 'boolean', default: false, describe: 'with --redis: enqueue and end, without waiting' },
  attempts: {
    type: 'number',
    default: DEFAULT_ATTEMPTS,
    requiresArg: true,
    describe: 'how often a shard that fails as a whole is tried',
  },
} as const satisfies Record<string, Options>;

function describeEnd({ itemsPerSecond, secondsLeft }: RunStatus, now: Date): string {
  const rate = itemsPerSecond === null ? 'no rate yet' : perSecond(itemsPerSecond);
  if (secondsLeft === null || secondsLeft === 0) return rate;
  const end = new Date(now.getTime() + secondsLeft * 1000).toISOString().slice(0, 16).replace('T', ' ');
  return `${rate}, ${duration(secondsLeft)} left, until about ${end} UTC`;
}

function describeFailures({ failures, shards }: RunStatus): string[] {
  const lines = failures.map(
    ({ shard, attempts, message }) =>
      `  shard ${shard} failed after ${counted(attempts, 'attempt')}: ${message}`,
  );
  const more = shards.failed - failures.length;
  return more > 0 ? [...lines, `  and ${counted(more, 'other shard')}`] : lines;
}

export function describeRun(run: RunStatus, now = new Date()): string {
  const { shards, items } = run;
  const states = (['waiting', 'active', 'retrying', 'failed'] as const).filter((name) => shards[name] > 0);
  return [
    `run ${run.id}: ${run.manifest} → ${run.out}`,
    `  ${grouped(shards.done)} of ${counted(shards.total, 'shard')} done` +
      states.map((name) => `, ${grouped(shards[name])} ${name}`).join(''),
    `  ${grouped(items.done)} of ${counted(items.total, 'item')}` +
      `${items.failed > 0 ? `, ${grouped(items.failed)} failed` : ''}; ${describeEnd(run, now)}`,
    ...describeFailures(run),
    '',
  ].join('\n');
}

function describeQueue({ workers, runs }: QueueStatus, name: string): string {
  const who = workers === null ? '' : `, ${counted(workers, 'worker')}`;
  return `queue ${name}: ${counted(runs.length, 'run')}${who}\n${runs.map((run) => describeRun(run)).join('')}`;
}

/** Prints what is in the queue: words, or with `json` the QueueStatus. */
export async function showStatus(
  args: Pick<QueueArguments, 'redis' | 'queue' | 'json'>,
  /** shows this run alone */
  run?: Run,
): Promise<void> {
  const queue = await redisQueue({ url: args.redis, queue: args.queue });
  try {
    const status = await queue.status(run && queuedRun(run).id);
    process.stdout.write(args.json ? `${JSON.stringify(status)}\n` : describeQueue(status, args.queue));
  } finally {
    await queue.close();
  }
}

export function checkAttempts(attempts: number): number {
  if (Number.isInteger(attempts) && attempts >= 1 && attempts <= 1000) return attempts;
  throw expected('ERR_VALUE', 'an integer from 1 to 1,000', '--attempts', String(attempts));
}

const LOG_EVERY_MS = 10_000;

interface Display {
  show(run: RunStatus, queue: QueueStatus): void;
  /** the server is gone, or back */
  say(words: string): void;
  stop(): void;
}

/** A bar on a terminal, else log lines, at most one in ten seconds. */
function display(level: LogLevel | undefined): Display {
  if (process.stderr.isTTY) {
    const bar = new SingleBar({
      format: '{bar} {value}/{total} items  {words}',
      stream: process.stderr,
      clearOnComplete: true,
      stopOnComplete: false,
    });
    let started = false;
    let note = '';
    return {
      show(run, queue) {
        const { shards, items } = run;
        if (!started) bar.start(items.total, items.done, { words: '' });
        started = true;
        note = queue.workers === 0 ? 'no worker yet' : counted(queue.workers ?? 0, 'worker');
        const failed = shards.failed > 0 ? `, ${counted(shards.failed, 'failed shard')}` : '';
        bar.update(items.done, { words: `${describeEnd(run, new Date())}, ${note}${failed}` });
      },
      say: (words) => {
        if (started) bar.update({ words });
      },
      stop: () => bar.stop(),
    };
  }
  const log = openLog({ level });
  let shown = -Infinity;
  return {
    show({ shards, items, itemsPerSecond, secondsLeft }, { workers }) {
      if (performance.now() - shown < LOG_EVERY_MS) return;
      shown = performance.now();
      log.info({ shards, items, itemsPerSecond, secondsLeft, workers }, 'progress');
    },
    say: (words) => log.warn(words),
    stop: () => undefined,
  };
}

/**
 * Puts a run into the queue and, unless detached, waits for its end.
 *
 * @returns its status
 * @throws AttentionBiasError ERR_VALUE, ERR_IO (no Redis; a folder of another run), ERR_ABORTED: the run goes on
 */
export async function enqueueRun(run: Run, args: QueueArguments, signal: AbortSignal): Promise<RunStatus> {
  const attempts = checkAttempts(args.attempts);
  await claimFolder(run); // another run's folder is refused here and not by every worker
  const queued = queuedRun(run);
  const shown = display(args['log-level']);
  const queue = await redisQueue({
    url: args.redis,
    queue: args.queue,
    onLost: () => shown.say('Redis is gone; trying until it is back'),
    onBack: () => shown.say('Redis is back'),
  });
  try {
    const how: EnqueueOptions = { attempts, retryFailed: args['retry-failed'] };
    const missing = await queue.enqueue(queued, how);
    process.stderr.write(`run ${queued.id}: ${counted(missing, 'shard')} to do in queue ${args.queue}\n`);
    if (args.detach) return (await queue.status(queued.id)).runs[0]!;
    return await followRun(queue, queued, {
      ...how,
      signal,
      onStatus: (status, all) => shown.show(status, all),
      onRefill: () => shown.say('the queue has lost shards of this run: they were added again'),
    });
  } finally {
    shown.stop();
    await queue.close();
  }
}
