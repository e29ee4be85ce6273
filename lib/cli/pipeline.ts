import { SingleBar } from 'cli-progress';
import type { Logger } from 'pino';
import type { CommandModule, Options } from 'yargs';

import type { Device, DeviceInfo } from '../device.js';
import { expected } from '../errors.js';
import type { ItemFailure } from '../pipeline/items.js';
import { logOptions, openLog } from '../pipeline/log.js';
import { includes, partOf, type Part } from '../pipeline/part.js';
import { embeddedQueue } from '../pipeline/queue/embedded.js';
import type { RunTask } from '../pipeline/queue/queue.js';
import { queuedRun } from '../pipeline/queue/runner.js';
import { openRunLog, type RunLog } from '../pipeline/run-log.js';
import {
  claimFolder,
  DEFAULT_SHARD_SIZE,
  planRun,
  runShard,
  type Run,
  type RunOptions,
} from '../pipeline/run.js';
import { shardDtypes, shardFormats, type ShardDtype, type ShardFormat } from '../pipeline/sidecar.js';
import { readStatus, type FolderStatus } from '../pipeline/status.js';
import { abortable } from './abortable.js';
import { describeDevice, deviceOptions, openDevice } from './device-options.js';
import { frameOptions } from './frame.js';
import {
  checkAttempts,
  describeRun,
  enqueueRun,
  queueOptions,
  showStatus,
  type QueueArguments,
} from './pipeline-queue.js';
import { describePlan, planOptions, planPipeline, type PlanArguments } from './plan.js';
import { counted, duration, grouped, perSecond } from './words.js';

export interface PipelineArguments extends PlanArguments, Omit<QueueArguments, 'redis'> {
  plan: boolean;
  manifest: string | undefined;
  root: string | undefined;
  out: string | undefined;
  format: ShardFormat;
  dtype: ShardDtype;
  tensors: string | undefined;
  'shard-size': number;
  shard: string | undefined;
  previews: boolean;
  strict: boolean;
  queries: number;
  seed: number;
  strength: number;
  features: string | undefined;
  router: string | undefined;
  window: boolean;
  status: boolean;
  redis: string | undefined;
}

const { queries, seed, strength, features, router, window } = frameOptions;

export const pipelineOptions = {
  out: { type: 'string', requiresArg: true, describe: 'folder of the shards' },
  format: {
    choices: shardFormats,
    default: 'tar',
    requiresArg: true,
    describe: 'of the shards: tar as WebDataset reads it, safetensors, or npz',
  },
  dtype: {
    choices: shardDtypes,
    default: 'f32',
    requiresArg: true,
    describe: 'of float tensors in the shards',
  },
  tensors: {
    type: 'string',
    requiresArg: true,
    describe: 'names of the tensors to keep, as in out,lse; default all',
  },
  'shard-size': {
    type: 'number',
    default: DEFAULT_SHARD_SIZE,
    requiresArg: true,
    describe: 'items of a shard',
  },
  shard: {
    type: 'string',
    requiresArg: true,
    describe:
      'i/n: do part i (from 0) of n; default from SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX or RANK, else everything',
  },
  concurrency: {
    type: 'number',
    requiresArg: true,
    describe: 'items under way at once; default by the cores',
  },
  'max-bytes': { type: 'number', requiresArg: true, describe: 'the most memory of the items under way' },
  previews: { type: 'boolean', default: false, describe: 'pictures of each frame beside the shards' },
  'retry-failed': {
    type: 'boolean',
    default: false,
    describe: 'compute finished shards with failed items again',
  },
  strict: {
    type: 'boolean',
    default: false,
    describe: 'exit code 5 when any item failed, not only when all did',
  },
  queries,
  seed,
  strength,
  features,
  router,
  window,
  ...deviceOptions,
  ...queueOptions,
  status: {
    type: 'boolean',
    default: false,
    describe: 'say how far the run in the folder is, or with --redis all runs, and compute nothing',
  },
  ...planOptions,
  json: { type: 'boolean', default: false, describe: 'print a summary as JSON on stdout' },
  ...logOptions,
} as const satisfies Record<string, Options>;

/** Items failed: all of them, or any where that is asked to count. */
const FAILED_ITEMS_EXIT = 5;
/** Shards failed as a whole, each after all its attempts by workers. */
const FAILED_SHARDS_EXIT = 1;
const FAILURES_SHOWN = 5;

/** What a run did, as --json prints it. */
export interface PipelineSummary {
  readonly out: string;
  readonly part: { readonly index: number; readonly count: number };
  /** of this part: all, those computed now, those that were finished before */
  readonly shards: { readonly total: number; readonly computed: number; readonly finishedBefore: number };
  /** of this part's shards, as they stand */
  readonly items: { readonly total: number; readonly failed: number };
  /** the first failures of items that were computed now */
  readonly failures: readonly { key: string; source: string; stage: string; code: string; message: string }[];
  /** null where everything was finished before */
  readonly device: DeviceInfo | null;
  /** of items computed now; null where there were none */
  readonly itemsPerSecond: number | null;
  readonly ms: number;
}

function requireOut({ out }: PipelineArguments): string {
  if (out === undefined || out === '')
    throw expected('ERR_VALUE', 'the folder of the shards', '--out', out === undefined ? 'nothing' : '""');
  return out;
}

function runOptions(args: PipelineArguments, out = requireOut(args)): RunOptions {
  const { manifest } = args;
  if (manifest === undefined)
    throw expected(
      'ERR_VALUE',
      'the path of a manifest',
      'pipeline',
      'nothing (see attention-bias pipeline --help)',
    );
  const { root, format, dtype, tensors, previews, precision, queries, seed, strength, window } = args;
  const { features, router, 'shard-size': shardSize } = args;
  const names = tensors?.split(',').map((name) => name.trim());
  if (names?.some((name) => name === ''))
    throw expected('ERR_VALUE', 'names with commas between them', '--tensors', JSON.stringify(tensors));
  const frame = { queries, seed, strength, window, features, router };
  return { manifest, root, out, format, dtype, tensors: names, shardSize, previews, precision, frame };
}

/** A bar on a terminal; elsewhere nothing, for there the log says it. */
function itemBar(total: number): {
  update: (done: number, failed: number, rate: number | null) => void;
  stop: () => void;
} {
  if (!process.stderr.isTTY) return { update: () => undefined, stop: () => undefined };
  const bar = new SingleBar({
    format: '{bar} {value}/{total} items{failed}{rate}',
    stream: process.stderr,
    clearOnComplete: true,
  });
  bar.start(total, 0, { failed: '', rate: '' });
  return {
    update: (done, failed, rate) => {
      const left = rate === null ? '' : `, ${perSecond(rate)}, ${duration((total - done) / rate)} left`;
      bar.update(done, { failed: failed === 0 ? '' : `, ${grouped(failed)} failed`, rate: left });
    },
    stop: () => {
      bar.stop();
    },
  };
}

function failureOf({
  item,
  stage,
  error: { code, message },
}: ItemFailure): PipelineSummary['failures'][number] {
  return { key: item.key, source: item.kind === 'frame' ? item.frame : item.job, stage, code, message };
}

/** The number of items of a shard. */
const itemsOf = (run: Run, shard: number): number =>
  Math.min(run.shardSize, run.items - shard * run.shardSize);

/** A full disk or a lost folder fails every shard: after so many in a row no other is begun. */
const FAILURES_IN_A_ROW = 3;

/**
 * Has the shards of a part done by `task`. When some have failed for good, and the others are done or as many as it takes to give
 * up have failed one after the other, it rejects with the first error.
 */
async function workThrough(
  run: Run,
  part: Part,
  { attempts, 'retry-failed': retryFailed }: PipelineArguments,
  { task, stderr, signal }: { task: RunTask; stderr: Logger; signal: AbortSignal },
): Promise<void> {
  const queue = embeddedQueue();
  const stop = new AbortController();
  let failure: Error | undefined;
  let inARow = 0;
  try {
    const only = (shard: number): boolean => includes(part, shard);
    await queue.enqueue(queuedRun(run), { attempts: checkAttempts(attempts), retryFailed, only });
    await queue.work(task, {
      drain: true,
      abandon: signal,
      stop: stop.signal,
      onEvent: (event) => {
        if (event.type === 'done') inARow = 0;
        if (event.type !== 'failed') return;
        const { error, last } = event;
        const { shard, attempt } = event.task;
        if (last) failure ??= error;
        if (last && ++inARow === FAILURES_IN_A_ROW) stop.abort();
        const words = last ? 'shard failed' : 'shard failed and will be tried again';
        if (process.stderr.isTTY) process.stderr.write(`${words}: ${shard}: ${error.message}\n`);
        stderr[last ? 'error' : 'warn']({ shard, attempt, error: { message: error.message } }, words);
      },
    });
  } finally {
    await queue.close();
  }
  if (failure) throw failure;
}

/** Computes the shards of a part, one after the other, and logs them into the output folder. */
async function computeShards(
  run: Run,
  part: Part,
  args: PipelineArguments,
  { device, log, stderr, signal }: { device: Device; log: RunLog; stderr: Logger; signal: AbortSignal },
): Promise<PipelineSummary> {
  const begin = performance.now();
  const mine = Array.from({ length: run.shards }, (_, shard) => shard).filter((shard) =>
    includes(part, shard),
  );
  const total = mine.reduce((sum, shard) => sum + itemsOf(run, shard), 0);
  const failures: PipelineSummary['failures'][number][] = [];
  let [items, failed, computed, finishedBefore, computedItems, computeMs] = [0, 0, 0, 0, 0, 0];
  const bar = itemBar(total);
  const rate = (shardItems = 0, shardMs = 0): number | null => {
    const [count, ms] = [computedItems + shardItems, computeMs + shardMs];
    return count > 0 && ms > 0 ? count / (ms / 1000) : null;
  };
  const one = async (
    shard: number,
  ): Promise<{ items: number; failed: number; skipped: boolean; ms: number }> => {
    const started = performance.now();
    let [done, bad] = [0, 0];
    const result = await runShard(run, shard, {
      ...{ device, signal, retryFailed: args['retry-failed'] },
      ...{ concurrency: args.concurrency, maxBytes: args['max-bytes'] },
      onItem: (outcome) => {
        log.item(shard, outcome);
        done += 1;
        if (!outcome.ok) {
          bad += 1;
          const failure = failureOf(outcome);
          if (failures.length < FAILURES_SHOWN) failures.push(failure);
          stderr.warn(failure, 'item failed');
        }
        bar.update(items + done, failed + bad, rate(done, performance.now() - started));
      },
    });
    log.shard(result);
    items += result.items;
    failed += result.failed;
    if (result.skipped) finishedBefore += 1;
    else {
      computed += 1;
      computedItems += result.items;
      computeMs += result.ms;
    }
    bar.update(items, failed, rate());
    stderr.info(
      {
        shard,
        items: result.items,
        failed: result.failed,
        ms: Math.round(result.ms),
        done: items,
        of: total,
      },
      result.skipped ? 'shard was finished before' : 'shard',
    );
    return result;
  };
  try {
    await workThrough(run, part, args, { task: ({ shard }) => one(shard), stderr, signal });
  } finally {
    bar.stop();
  }
  return {
    out: run.out,
    part: { index: part.index, count: part.count },
    shards: { total: mine.length, computed, finishedBefore },
    items: { total, failed },
    failures,
    device: computed > 0 ? device.info : null,
    itemsPerSecond: rate(),
    ms: performance.now() - begin,
  };
}

function describe({ shards, items, out, itemsPerSecond, failures, ms, device }: PipelineSummary): string {
  const lines = [
    `${counted(shards.total, 'shard')} of ${counted(items.total, 'item')} in ${out}: ${grouped(shards.computed)} computed, ` +
      `${grouped(shards.finishedBefore)} finished before`,
  ];
  if (device && itemsPerSecond !== null)
    lines.push(
      `${describeDevice({ info: device })}: ${perSecond(itemsPerSecond)}, ${duration(ms / 1000)} in all`,
    );
  if (items.failed > 0) {
    lines.push(`${counted(items.failed, 'item')} failed:`);
    for (const { key, stage, message } of failures) lines.push(`  ${key}: ${stage}: ${message}`);
    const more = items.failed - failures.length;
    if (more > 0)
      lines.push(
        `  ${more === items.failed ? '' : `and ${grouped(more)} more `}in the .jsonl files beside the shards`,
      );
  }
  return `${lines.join('\n')}\n`;
}

function describeStatus({ out, shards, items, itemsPerSecond, secondsLeft, lastLog }: FolderStatus): string {
  const lines = [
    `${out}: ${grouped(shards.finished)} of ${counted(shards.total, 'shard')}, ` +
      `${grouped(items.finished)} of ${counted(items.total, 'item')}, ${grouped(items.failed)} failed`,
  ];
  if (itemsPerSecond !== null && lastLog !== null) {
    const ago = duration(Math.max(0, Date.now() - lastLog) / 1000);
    const left =
      secondsLeft === null || secondsLeft === 0 ? '' : `, ${duration(secondsLeft)} left at that rate`;
    lines.push(`${perSecond(itemsPerSecond)} up to ${ago} ago${left}`);
  }
  return `${lines.join('\n')}\n`;
}

/** Runs a manifest as the command line does. */
export async function runPipeline(args: PipelineArguments, signal: AbortSignal): Promise<PipelineSummary> {
  const part = partOf(args.shard);
  const stderr = openLog({ level: args['log-level'] ?? (process.stderr.isTTY ? 'silent' : 'info') });
  const run = await planRun(runOptions(args), signal);
  using device = await openDevice(args);
  await claimFolder(run); // before its log is opened there: the folder may be another run's
  if (part.source !== undefined) {
    const { index, count, source } = part;
    if (process.stderr.isTTY) process.stderr.write(`part ${index}/${count}, by ${source}\n`);
    stderr.info({ part: `${index}/${count}`, source }, 'part of the run');
  }
  stderr.info(
    {
      manifest: run.options.manifest,
      out: run.out,
      items: run.items,
      shards: run.shards,
      device: describeDevice(device),
    },
    'run',
  );
  const log = openRunLog(run.out, 'silent');
  const summary = await computeShards(run, part, args, { device, log, stderr, signal });
  const { items, shards, itemsPerSecond, ms } = summary;
  stderr.info(
    {
      items: items.total,
      failed: items.failed,
      shards: shards.total,
      itemsPerSecond,
      ms: Math.round(ms),
      out: run.out,
    },
    'done',
  );
  if (process.stderr.isTTY) process.stderr.write(describe(summary));
  return summary;
}

/** Says what a run would take. */
async function runPlan(args: PipelineArguments, signal: AbortSignal): Promise<void> {
  // Nothing is written to the output folder, which need not be said yet.
  const run = await planRun(runOptions(args, args.out ?? '.'), signal);
  const plan = await planPipeline(run, args, signal);
  process.stderr.write(describePlan(plan));
  if (args.json) process.stdout.write(`${JSON.stringify(plan)}\n`);
}

function setExitCode({ total, failed }: { total: number; failed: number }, args: PipelineArguments): void {
  if (failed > 0 && (args.strict || failed === total)) process.exitCode = FAILED_ITEMS_EXIT;
}

/** Has workers do the run, and waits for them unless detached. */
async function runOnQueue(args: PipelineArguments & QueueArguments, signal: AbortSignal): Promise<void> {
  const run = await planRun(runOptions(args), signal);
  const status = await enqueueRun(run, args, signal);
  process.stderr.write(describeRun(status));
  if (args.json) process.stdout.write(`${JSON.stringify(status)}\n`);
  if (status.shards.failed > 0) process.exitCode = FAILED_SHARDS_EXIT;
  else setExitCode(status.items, args);
}

/** Shows all runs of a queue, or that of a manifest and a folder. */
async function queueStatus(args: PipelineArguments & QueueArguments): Promise<void> {
  await showStatus(args, args.manifest === undefined ? undefined : await planRun(runOptions(args)));
}

export const pipelineCommand: CommandModule<object, PipelineArguments> = {
  command: 'pipeline [manifest]',
  describe: 'many frames or jobs: the items of a manifest, computed into shards',
  builder: (yargs) =>
    yargs
      .positional('manifest', { type: 'string', describe: 'JSON lines: a frame or a job each' })
      .option('root', {
        type: 'string',
        requiresArg: true,
        describe: "the folder that all files named there must lie in; default: the manifest's own",
      })
      .options(pipelineOptions)
      .example('$0 pipeline frames.jsonl --out shards --window', '')
      .example('$0 pipeline frames.jsonl --out shards --shard 3/16', 'the fourth of sixteen machines')
      .example('$0 pipeline frames.jsonl --window --plan --hours 8', 'what it would take')
      .example('$0 pipeline --out shards --status', 'how far it is')
      .example('$0 pipeline frames.jsonl --out shards --redis redis://queue', 'by workers on any machine')
      .example('$0 pipeline --status --redis redis://queue', 'how far they are')
      .epilogue(
        'Finished shards are never computed again: stopped or killed, the same command goes on where it was. docs/pipelines.md ' +
          'describes the manifest and the files. Exit codes: 5 when all items failed, or with --strict any; 1 when workers gave up shards; 2 for a wrong ' +
          'manifest or option, 3 for a device that is not there, 4 for a file that cannot be opened, read or written.',
      ),
  handler: async (args) => {
    const { redis } = args;
    if (args.plan) return abortable((signal) => runPlan(args, signal));
    if (redis !== undefined) {
      const queueArgs = { ...args, redis };
      await (args.status ? queueStatus(queueArgs) : abortable((signal) => runOnQueue(queueArgs, signal)));
      return;
    }
    if (args.status) {
      const status = await readStatus(requireOut(args));
      process.stderr.write(describeStatus(status));
      if (args.json) process.stdout.write(`${JSON.stringify(status)}\n`);
      return;
    }
    const summary = await abortable((signal) => runPipeline(args, signal));
    if (args.json) process.stdout.write(`${JSON.stringify(summary)}\n`);
    setExitCode(summary.items, args);
  },
};
