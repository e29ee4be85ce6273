/**
 * Manifest items, computed: frames through the AQR bias stack, jobs through their operation. While some are on the device,
 * the next ones are read and prepared, frames in threads of their own.
 */
import { totalmem } from 'node:os';
import { basename } from 'node:path';

import type { Device } from '../device.js';
import { AttentionBiasError, expected } from '../errors.js';
import type { HostTensor } from '../formats/host.js';
import { throwIfAborted } from '../formats/io.js';
import { computeFrame, denseBias, disposeFrame, frameTensors, pictureInput } from '../frame/compute.js';
import { bevPreview, camerasPreview } from '../frame/pictures.js';
import type { FrameInputs, PreparedFrame } from '../frame/prepare.js';
import { checkSettings, DEFAULT_SETTINGS, type FrameSettings, type Stage } from '../frame/settings.js';
import { summarise } from '../frame/summary.js';
import { executeJob, loadJob, type LoadedJob } from '../job.js';
import { traceStage } from '../telemetry.js';
import { pipeline, type Outcome, type PipelineStats } from './engine.js';
import { itemBytes } from './item-bytes.js';
import type { FrameItem, JobItem, ManifestItem } from './manifest.js';
import { poolSize, prepareInThread } from './prepare-pool.js';
import { ReusedMemory } from './reused-memory.js';
import { requireCount } from './stages.js';

/** On what and within which bounds items are computed, and what of them is given. */
export interface ComputeOptions {
  readonly device: Device;
  /** of frames, where the item says nothing else; default: 900 queries, seed 1, strength 5, no window */
  readonly frame?: Partial<FrameSettings> | undefined;
  /**
   * names of the tensors to give; default: all that an item has but a frame's fused `bias` (203 MB), which is computed where
   * it is named. A name that an item does not have is passed over.
   */
  readonly tensors?: readonly string[] | undefined;
  /** whether frames come with `bev.webp` and `cameras.webp`; default false */
  readonly previews?: boolean | undefined;
  /** the most items under way at once; default by this machine's cores: those that are prepared, two on the device, one between */
  readonly concurrency?: number | undefined;
  /**
   * the most bytes that items under way may take together, as far as their files tell; a larger item goes alone. Default 4 GiB,
   * or a quarter of the memory where that is less. A quarter as much again may be kept for the next items to be read into.
   */
  readonly maxBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** An item computed. */
export interface ItemResult {
  readonly item: ManifestItem;
  /** by name: those of frame.safetensors for a frame, those of `runJob` for a job */
  readonly tensors: Readonly<Record<string, HostTensor>>;
  /** JSON: no times, no device, no absolute path; the same for the same input */
  readonly summary: Readonly<Record<string, unknown>>;
  /** `bev.webp` and `cameras.webp` of a frame; empty unless asked for */
  readonly previews: Readonly<Record<string, Uint8Array>>;
  /** a stage's milliseconds, such as `read`, `features`, `attention` */
  readonly ms: Readonly<Record<string, number>>;
}

/** An item that failed, and where. */
export interface ItemFailure {
  readonly item: ManifestItem;
  readonly error: AttentionBiasError;
  /** where it happened, by the names in `ms` */
  readonly stage: string;
  readonly ms: Readonly<Record<string, number>>;
}

/** An item computed, or failed; `ok` tells which. */
export type ItemOutcome = ({ readonly ok: true } & ItemResult) | ({ readonly ok: false } & ItemFailure);

/** Outcomes of items, to be iterated once. */
export interface ItemRun extends AsyncIterable<ItemOutcome, undefined> {
  /** of the two steps: `prepare` (reading, features) and `compute` (the device) */
  readonly stats: PipelineStats;
}

/** Items on the device at once: while one's results are looked at, the other's attention runs. */
const ON_DEVICE = 2;
const DEFAULT_MAX_BYTES = Math.min(2 ** 32, totalmem() / 4);

/** An item under way. */
class Work {
  readonly ms: Record<string, number> = {};
  /** the stage that it is in */
  at = 'read';
  /** for those who are told of items and stages */
  readonly key: string;
  readonly kind: ManifestItem['kind'];

  constructor(readonly item: ManifestItem) {
    this.key = item.key;
    this.kind = item.kind;
  }

  readonly stage: Stage = async (name, run) => {
    this.at = name;
    const begin = performance.now();
    try {
      const told = { index: this.item.index, item: this };
      return await traceStage(name, told, async () => run());
    } finally {
      this.ms[name] = performance.now() - begin;
    }
  };
}

type Prepared =
  | { readonly kind: 'job'; readonly loaded: LoadedJob }
  | {
      readonly kind: 'frame';
      readonly settings: FrameSettings;
      readonly prepared: PreparedFrame;
      readonly pictures: FrameInputs | undefined;
    };

type Computed = Pick<ItemResult, 'tensors' | 'summary' | 'previews'>;

/** The item's settings, else the run's, else the package's. */
function settingsOf(item: FrameItem, { frame = {} }: ComputeOptions): FrameSettings {
  const said = Object.entries<unknown>({ ...item.options }).filter(([, value]) => value !== undefined);
  const general = Object.entries<unknown>({ ...frame }).filter(([, value]) => value !== undefined);
  return { ...DEFAULT_SETTINGS, ...Object.fromEntries([...general, ...said]) };
}

async function prepareFrame(
  work: Work,
  item: FrameItem,
  options: ComputeOptions,
  threads: number,
): Promise<Prepared> {
  const settings = settingsOf(item, options);
  checkSettings(settings);
  const { features } = settings;
  const task = { frame: item.frame, root: item.root, features, previews: options.previews ?? false };
  const reply = await prepareInThread(task, threads);
  Object.assign(work.ms, reply.ms);
  if ('error' in reply) {
    work.at = reply.stage;
    throw new AttentionBiasError(reply.error.code, reply.error.message);
  }
  return { kind: 'frame', settings, prepared: reply.prepared, pictures: reply.pictures };
}

async function prepareJob(
  work: Work,
  item: JobItem,
  memory: ReusedMemory,
  signal: AbortSignal,
): Promise<Prepared> {
  const options = { tensors: item.tensors, root: item.root, allocate: memory.take, signal };
  const loaded = await work.stage('read', () => loadJob(item.job, options));
  return { kind: 'job', loaded };
}

const isWanted = (names: readonly string[] | undefined, name: string): boolean =>
  names?.includes(name) ?? true;

async function computeJob(
  work: Work,
  loaded: LoadedJob,
  { device, tensors: names }: ComputeOptions,
  memory: ReusedMemory,
  signal: AbortSignal,
): Promise<Computed> {
  const outputs = await work.stage(loaded.op, () => executeJob(loaded, { device, signal }));
  // Only here: what was aborted or has failed may still be read.
  for (const { data } of loaded.tensors) memory.give(data.buffer as ArrayBuffer);
  const tensors: Record<string, HostTensor> = {};
  const shapes: Record<string, readonly number[]> = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    shapes[name] = [...tensor.shape];
    // What is over native memory is freed with the last that holds its data.
    if (isWanted(names, name))
      tensors[name] = { data: tensor.data, shape: tensor.shape, dtype: tensor.dtype };
    else tensor.dispose();
  }
  return { tensors, summary: { op: loaded.op, outputs: shapes }, previews: {} };
}

async function computePreparedFrame(
  work: Work,
  { settings, prepared, pictures }: Extract<Prepared, { kind: 'frame' }>,
  { device, tensors: names }: ComputeOptions,
  signal: AbortSignal,
): Promise<Computed> {
  const computed = await computeFrame(prepared, settings, device, { signal, stage: work.stage });
  try {
    const tensors: Record<string, HostTensor> = {};
    // Native memory is the frame's; what leaves it is a copy, and small.
    for (const [name, tensor] of Object.entries(frameTensors(computed)))
      if (isWanted(names, name)) tensors[name] = { ...tensor, data: tensor.data.slice() };
    if (names?.includes('bias')) {
      const { data, shape } = await work.stage('bias', () => denseBias(computed, device, signal));
      tensors.bias = { data, shape, dtype: 'float32' };
    }
    const input = pictures && pictureInput(pictures, computed);
    const previews = input
      ? await work.stage('previews', async () => ({
          'bev.webp': await bevPreview(input),
          'cameras.webp': await camerasPreview(input),
        }))
      : {};
    const summary = summarise(prepared, computed);
    const router = { ...summary.router, source: basename(summary.router.source) };
    return { tensors, summary: { ...summary, router }, previews };
  } finally {
    disposeFrame(computed);
  }
}

/** Every failure of an item in the package's own class. */
function itemError(cause: unknown, item: ManifestItem): AttentionBiasError {
  if (cause instanceof AttentionBiasError) return cause;
  const words = cause instanceof Error ? cause.message : String(cause);
  const error = expected('ERR_VALUE', 'an item that can be computed', item.key, words);
  error.cause = cause;
  return error;
}

function outcomeOf(outcome: Outcome<Work, Computed>): ItemOutcome {
  const { item, ms, at } = outcome.item;
  if (outcome.ok) return { ok: true, item, ...outcome.value, ms };
  return { ok: false, item, error: itemError(outcome.error, item), stage: at, ms };
}

async function* worksOf(
  items: Iterable<ManifestItem> | AsyncIterable<ManifestItem>,
): AsyncGenerator<Work, void, undefined> {
  for await (const item of items) yield new Work(item);
}

/**
 * Computes manifest items. Reading and preparing the next ones goes on while the device computes; frames are prepared in worker
 * threads. An item that fails is an outcome like any other, and the others go on.
 *
 * @returns the items' outcomes, in the items' order. Iterating throws ERR_ABORTED, and what the iteration of `items` throws
 * @throws AttentionBiasError ERR_VALUE for a concurrency or a number of bytes that is none
 */
export function computeItems(
  items: Iterable<ManifestItem> | AsyncIterable<ManifestItem>,
  options: ComputeOptions,
): ItemRun {
  const { device, signal, frame } = options;
  const most = poolSize(Infinity) + ON_DEVICE + 1;
  const concurrency = requireCount(options.concurrency, 'concurrency', most);
  const threads = poolSize(concurrency);
  const maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
  const memory = new ReusedMemory(maxBytes / 4);
  const run = pipeline(worksOf(items), {
    device,
    signal,
    concurrency,
    maxBytes,
    bytes: ({ item }: Work) => {
      const features = item.kind === 'frame' && (item.options.features ?? frame?.features) !== undefined;
      return itemBytes(item, features, signal);
    },
    stages: [
      {
        name: 'prepare',
        concurrency: Math.max(threads, ON_DEVICE),
        run: async (work: Work, context) => {
          const { item } = work;
          const prepared =
            item.kind === 'job'
              ? await prepareJob(work, item, memory, context.signal)
              : await prepareFrame(work, item, options, threads);
          return { work, prepared };
        },
      },
      {
        name: 'compute',
        concurrency: ON_DEVICE,
        run: async ({ work, prepared }, context): Promise<Computed> => {
          throwIfAborted(context.signal, work.item.key);
          return prepared.kind === 'job'
            ? computeJob(work, prepared.loaded, options, memory, context.signal)
            : computePreparedFrame(work, prepared, options, context.signal);
        },
      },
    ],
  });
  const outcomes = run.outcomes()[Symbol.asyncIterator]();
  const iterator: AsyncIterator<ItemOutcome, undefined> = {
    next: async () => {
      const { done, value } = await outcomes.next();
      return done ? { done, value: undefined } : { done: false, value: outcomeOf(value) };
    },
    return: async () => {
      await outcomes.return!();
      return { done: true, value: undefined };
    },
  };
  return {
    get stats() {
      return run.stats;
    },
    [Symbol.asyncIterator]: () => iterator,
  };
}
