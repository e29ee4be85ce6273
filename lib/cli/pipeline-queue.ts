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
  redis: { type: 'string', requiresArg: true, describe: `let workers do it: ${redisDescription}` },
  queue: queueOption,
  detach: { type: 'boolean', default: false, describe: 'with --redis: enqueue and end, without waiting' },
  attempts: {
    type: 'number',
    default: DEFAULT_ATTEMPTS,
    requiresArg: true,
    describe: 'how often a shard that fails as a whole is tried',
  },
} as const satisfies Record<string, Options>;

const count = (n: number): string => n.toLocaleString('en-US');

const several = (n: number, noun: string): string => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;

/** 90 → `1 min 30 s`; two units at most. */
export function duration(seconds: number): string {
  const whole = Math.ceil(seconds);
  const units = [
    ['d', Math.floor(whole / 86_400)],
    ['h', Math.floor(whole / 3600) % 24],
    ['min', Math.floor(whole / 60) % 60],
    ['s', whole % 60],
  ] as const;
  const first = units.findIndex(([, n]) => n > 0);
  if (first < 0) return '0 s';
  return units
    .slice(first, first + 2)
    .filter(([, n]) => n > 0)
    .map(([unit, n]) => `${n} ${unit}`)
    .join(' ');
}

const perSecond = (rate: number): string => `${rate >= 100 ? rate.toFixed(0) : rate.toPrecision(3)} items/s`;

function describeEnd({ itemsPerSecond, secondsLeft }: RunStatus, now: Date): string {
  const rate = itemsPerSecond === null ? 'no rate yet' : perSecond(itemsPerSecond);
  if (secondsLeft === null || secondsLeft === 0) return rate;
  const end = new Date(now.getTime() + secondsLeft * 1000).toISOString().slice(0, 16).replace('T', ' ');
  return `${rate}, ${duration(secondsLeft)} left, until about ${end} UTC`;
}

function describeFailures({ failures, shards }: RunStatus): string[] {
  const lines = failures.map(
    ({ shard, attempts, message }) =>
      `  shard ${shard} failed after ${several(attempts, 'attempt')}: ${message}`,
  );
  const more = shards.failed - failures.length;
  return more > 0 ? [...lines, `  and ${several(more, 'other shard')}`] : lines;
}

export function describeRun(run: RunStatus, now = new Date()): string {
  const { shards, items } = run;
  const states = (['waiting', 'active', 'retrying', 'failed'] as const).filter((name) => shards[name] > 0);
  return [
    `run ${run.id}: ${run.manifest} → ${run.out}`,
    `  ${count(shards.done)} of ${several(shards.total, 'shard')} done` +
      states.map((name) => `, ${count(shards[name])} ${name}`).join(''),
    `  ${count(items.done)} of ${several(items.total, 'item')}` +
      `${items.failed > 0 ? `, ${count(items.failed)} failed` : ''}; ${describeEnd(run, now)}`,
    ...describeFailures(run),
    '',
  ].join('\n');
}

function describeQueue({ workers, runs }: QueueStatus, name: string): string {
  const who = workers === null ? '' : `, ${several(workers, 'worker')}`;
  return `queue ${name}: ${several(runs.length, 'run')}${who}\n${runs.map((run) => describeRun(run)).join('')}`;
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
        note = queue.workers === 0 ? 'no worker yet' : several(queue.workers ?? 0, 'worker');
        const failed = shards.failed > 0 ? `, ${several(shards.failed, 'failed shard')}` : '';
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
 * @returns its status; undefined where it was not waited for
 * @throws AttentionBiasError ERR_VALUE, ERR_IO (no Redis; a folder of another run), ERR_ABORTED: the run goes on
 */
export async function enqueueRun(
  run: Run,
  args: QueueArguments,
  signal: AbortSignal,
): Promise<RunStatus | undefined> {
  const { attempts } = args;
  if (!(Number.isInteger(attempts) && attempts >= 1 && attempts <= 1000)) {
    throw expected('ERR_VALUE', 'an integer from 1 to 1,000', '--attempts', String(attempts));
  }
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
    process.stderr.write(`run ${queued.id}: ${several(missing, 'shard')} to do in queue ${args.queue}\n`);
    if (args.detach) return undefined;
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
