import { setTimeout } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { CommandModule, Options } from 'yargs';

import { AttentionBiasError } from '../errors.js';
import { logOptions, openLog, type LogLevel } from '../pipeline/log.js';
import { metricsOptions, serveMetrics, type MetricsServer } from '../pipeline/metrics.js';
import { openRunLog, type RunLog } from '../pipeline/run-log.js';
import type { Run } from '../pipeline/run.js';
import { redisQueue } from '../pipeline/queue/bullmq.js';
import type { ShardTask, WorkEvent } from '../pipeline/queue/queue.js';
import { shardRunner } from '../pipeline/queue/runner.js';
import { describeDevice, deviceOptions, openDevice, type DeviceOptions } from './device-options.js';
import { queueOption, redisDescription } from './queue-options.js';

export interface WorkerArguments extends Omit<DeviceOptions, 'precision'> {
  redis: string;
  queue: string;
  concurrency: number;
  once: boolean;
  'lock-seconds': number;
  'max-bytes': number | undefined;
  'metrics-port': number | undefined;
  'metrics-host': string;
  'log-level': LogLevel | undefined;
}

const { device, threads } = deviceOptions;

export const workerOptions = {
  redis: { type: 'string', demandOption: true, requiresArg: true, describe: redisDescription },
  queue: queueOption,
  concurrency: {
    type: 'number',
    default: 1,
    requiresArg: true,
    describe: 'shards at a time; the items of one already overlap',
  },
  once: {
    type: 'boolean',
    default: false,
    describe: 'end when no shard waits, runs anywhere, or is to be tried again',
  },
  'lock-seconds': {
    type: 'number',
    default: 30,
    requiresArg: true,
    describe: 'after which the shard of a worker that died goes to another, and at most twice as long',
  },
  'max-bytes': {
    type: 'number',
    requiresArg: true,
    describe: "the most memory of a shard's items under way",
  },
  device,
  threads,
  ...metricsOptions,
  ...logOptions,
} as const satisfies Record<string, Options>;

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

interface Stops {
  readonly stop: AbortSignal;
  readonly abandon: AbortSignal;
  /** the signal that abandoned the shards */
  received(): NodeJS.Signals | undefined;
  off(): void;
}

/** The first signal stops, the second abandons, the third ends the process at once. */
function listenToSignals(log: Logger): Stops {
  const stop = new AbortController();
  const abandon = new AbortController();
  let received: NodeJS.Signals | undefined;
  const off = (): void => {
    for (const name of SIGNALS) process.off(name, heard);
  };
  const heard = (name: NodeJS.Signals): void => {
    if (!stop.signal.aborted) {
      log.info({ signal: name }, 'ending: shards under way are finished; a second signal gives them back');
      stop.abort(new Error(name));
    } else {
      log.warn({ signal: name }, 'ending: shards under way go back to the queue');
      received = name;
      off();
      abandon.abort(new Error(name));
    }
  };
  for (const name of SIGNALS) process.on(name, heard);
  return { stop: stop.signal, abandon: abandon.signal, received: () => received, off };
}

const place = ({ run, shard, attempt, attempts }: ShardTask) => ({
  run: run.id,
  shard,
  ...(attempt === 1 ? {} : { attempt, attempts }),
});

function logEvent(log: Logger, event: WorkEvent): void {
  switch (event.type) {
    case 'begin':
      log.info(place(event.task), 'shard begun');
      break;
    case 'done': {
      const { items, failed, skipped, ms } = event.outcome;
      const said = { ...place(event.task), items, failed, ms: Math.round(ms) };
      log.info(said, skipped ? 'shard was finished before' : 'shard done');
      break;
    }
    case 'failed': {
      const { error, task, last } = event;
      const code = error instanceof AttentionBiasError ? { code: error.code } : {};
      const said = { ...place(task), error: { ...code, message: error.message } };
      if (last) log.error(said, 'shard failed');
      else log.warn(said, 'shard failed and will be tried again');
      break;
    }
    case 'returned':
      log.info(place(event.task), 'shard given back');
      break;
    case 'redelivered':
      log.warn({ run: event.run, shard: event.shard }, 'shard taken from a worker that died or was cut off');
      break;
    case 'trouble':
      log.warn({ error: event.error.message }, 'trouble with the queue');
  }
}

/** Works on the shards of a queue as the command line does, until it is told to stop or, with `once`, none is left. */
export async function runWorker(args: WorkerArguments): Promise<void> {
  const log = openLog({ level: args['log-level'] });
  const logs = new Map<string, RunLog>();
  const logOf = ({ out }: Run): RunLog => {
    let found = logs.get(out);
    if (!found) logs.set(out, (found = openRunLog(out, 'silent')));
    return found;
  };
  const runner = shardRunner({
    open: (precision) => openDevice({ ...args, precision }),
    maxBytes: args['max-bytes'],
    onItem: (run, shard, outcome) => logOf(run).item(shard, outcome),
    onShard: (run, result) => logOf(run).shard(result),
  });
  let trouble: string | undefined;
  const queue = await redisQueue({
    url: args.redis,
    queue: args.queue,
    lockMs: args['lock-seconds'] * 1000,
    onLost: (error) => {
      trouble = `Redis is gone: ${error?.message ?? 'it has closed the connection'}`;
      log.warn({ error: error?.message }, 'Redis is gone; trying until it is back');
    },
    onBack: () => {
      trouble = undefined;
      log.info('Redis is back');
    },
  });
  const stops = listenToSignals(log);
  let metrics: MetricsServer | undefined;
  try {
    // A device that is not there is said before a shard is taken.
    const device = await runner.device('f32');
    const { 'metrics-port': port, 'metrics-host': host } = args;
    if (port !== undefined) metrics = await serveMetrics({ port, host, trouble: () => trouble });
    const said = {
      queue: args.queue,
      device: describeDevice(device),
      ...(metrics && { metrics: metrics.url }),
    };
    log.info(said, 'worker ready');
    await queue.work(runner.task, {
      concurrency: args.concurrency,
      drain: args.once,
      stop: stops.stop,
      abandon: stops.abandon,
      onEvent: (event) => logEvent(log, event),
    });
    log.info('worker ended');
  } catch (error) {
    const signal = stops.received();
    if (signal && error instanceof AttentionBiasError && error.code === 'ERR_ABORTED') {
      await queue.close();
      process.kill(process.pid, signal); // its parent sees that it did not finish
      await setTimeout(1000);
    }
    throw error;
  } finally {
    stops.off();
    await metrics?.close();
    await queue.close();
    runner.close();
  }
}

export const workerCommand: CommandModule<object, WorkerArguments> = {
  command: 'worker',
  describe: 'compute shards of runs that `pipeline --redis` put into a queue, beside any number of others',
  builder: (yargs) =>
    yargs
      .options(workerOptions)
      .example('$0 worker --redis redis://queue:6379', '')
      .epilogue(
        'On SIGTERM or Ctrl-C shards under way are finished and no other is begun; a second one gives them back. ' +
          'docs/pipelines.md tells what a production Redis needs.',
      ),
  handler: runWorker,
};
