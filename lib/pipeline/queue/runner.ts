/** Does the shards that a queue hands out: plans their run, once for all its shards, and computes them. */
import type { Device, Precision } from '../../device.js';
import { expected } from '../../errors.js';
import type { ItemOutcome } from '../items.js';
import { planRun, runShard, type Run, type RunOptions, type ShardResult } from '../run.js';
import { packageVersion } from '../../version.js';
import { UnfitError, runId, type QueuedPlan, type QueuedRun, type RunTask } from './queue.js';

/** The run as a queue carries it. */
export function queuedRun(run: Run): QueuedRun {
  const { options, out, items, shardSize, shards, key } = run;
  const { manifest } = options;
  const { version } = run.description;
  return { id: runId(key, out), manifest, out, items, shardSize, shards, version, options: { ...options } };
}

export interface RunnerOptions {
  /** opens the device that shards of this precision are computed on; closed by the runner */
  readonly open: (precision: Precision) => Promise<Device>;
  /** as in `computeItems` */
  readonly concurrency?: number | undefined;
  readonly maxBytes?: number | undefined;
  readonly onItem?: ((run: Run, shard: number, outcome: ItemOutcome) => void) | undefined;
  readonly onShard?: ((run: Run, result: ShardResult) => void) | undefined;
}

export interface Runner {
  readonly task: RunTask;
  /** the device for this precision, opened if it is not */
  readonly device: (precision: Precision) => Promise<Device>;
  /** closes the devices */
  close(): void;
}

/** Manifests whose plans are kept: a worker mostly has one run, and its next. */
const PLANS_KEPT = 4;

export function shardRunner(options: RunnerOptions): Runner {
  const { concurrency, maxBytes, onItem, onShard } = options;
  const devices = new Map<Precision, Promise<Device>>();
  const plans = new Map<string, Promise<Run>>();

  const plan = async ({ id, version, options }: QueuedPlan): Promise<Run> => {
    if (version !== packageVersion())
      throw new UnfitError(
        'ERR_VALUE',
        `expected version ${version} of this package for run ${id} but received ${packageVersion()}`,
      );
    let planned = plans.get(id);
    if (!planned) {
      // They are a planned run's.
      planned = planRun(options as unknown as RunOptions).then((run) => {
        if (runId(run.key, run.out) === id) return run;
        throw expected(
          'ERR_VALUE',
          'the manifest that was enqueued',
          run.options.manifest,
          'another: enqueue the run again',
        );
      });
      planned.catch(() => plans.delete(id)); // the next shard looks again
      for (const oldest of [...plans.keys()].slice(0, Math.max(0, plans.size + 1 - PLANS_KEPT)))
        plans.delete(oldest);
    } else {
      plans.delete(id);
    }
    plans.set(id, planned); // the last used is the last
    return planned;
  };

  const deviceOf = async (precision: Precision): Promise<Device> => {
    let device = devices.get(precision);
    if (!device) {
      device = options.open(precision);
      devices.set(precision, device);
      device.catch(() => devices.delete(precision));
    }
    return device;
  };

  return {
    device: deviceOf,
    async task({ run: queued, shard, retryFailed }, { signal, progress }) {
      const run = await plan(queued);
      const device = await deviceOf(run.options.precision);
      let count = 0;
      const result = await runShard(run, shard, {
        ...{ device, signal, retryFailed, concurrency, maxBytes },
        onItem: (outcome) => {
          progress(++count);
          onItem?.(run, shard, outcome);
        },
      });
      onShard?.(run, result);
      return result;
    },
    close() {
      for (const device of devices.values()) {
        device.then(
          (opened) => opened.close(),
          () => undefined,
        );
      }
      devices.clear();
    },
  };
}
