/** Manifest items, computed: frames through the AQR bias stack, jobs through their operation. */
import { basename } from 'node:path';

import type { Device } from '../device.js';
import { AttentionBiasError, expected } from '../errors.js';
import type { HostTensor } from '../formats/host.js';
import { throwIfAborted } from '../formats/io.js';
import { computeFrame, denseBias, disposeFrame, frameTensors } from '../frame/compute.js';
import { describeFrame, readInputs } from '../frame/prepare.js';
import { checkSettings, DEFAULT_SETTINGS, type FrameSettings, type Stage } from '../frame/settings.js';
import { summarise } from '../frame/summary.js';
import { executeJob, loadJob } from '../job.js';
import type { ManifestItem } from './manifest.js';

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
  /** the most items under way at once; default by the cores of this machine */
  readonly concurrency?: number | undefined;
  /** the most bytes that items under way may take together, as far as their files tell; a larger item goes alone */
  readonly maxBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ItemResult {
  readonly item: ManifestItem;
  /** by name: those of frame.safetensors for a frame, those of `runJob` for a job */
  readonly tensors: Readonly<Record<string, HostTensor>>;
  /** JSON: no times, no device, no absolute path; the same for the same input */
  readonly summary: Readonly<Record<string, unknown>>;
  /** `bev.webp` and `cameras.webp` of a frame; empty unless asked for */
  readonly previews: Readonly<Record<string, Uint8Array>>;
  /** a stage's milliseconds */
  readonly ms: Readonly<Record<string, number>>;
}

export interface ItemFailure {
  readonly item: ManifestItem;
  readonly error: AttentionBiasError;
  /** where it happened: `read`, `features`, `attention`, … */
  readonly stage: string;
  readonly ms: Readonly<Record<string, number>>;
}

export type ItemOutcome = ({ readonly ok: true } & ItemResult) | ({ readonly ok: false } & ItemFailure);

/** Only those that are asked for. */
function selected<T>(
  tensors: Readonly<Record<string, T>>,
  names: readonly string[] | undefined,
): Record<string, T> {
  return Object.fromEntries(Object.entries(tensors).filter(([name]) => names?.includes(name) ?? true));
}

async function computeItem(item: ManifestItem, options: ComputeOptions, stage: Stage) {
  const { device, signal, tensors: names } = options;
  if (item.kind === 'job') {
    const loaded = await stage('read', () => loadJob(item.job, { tensors: item.tensors, signal }));
    const outputs = await stage('attention', () => executeJob(loaded, { device, signal }));
    const shapes = Object.entries(outputs).map(([name, { shape }]) => [name, [...shape]]);
    return {
      tensors: selected(outputs, names),
      summary: { op: loaded.op, outputs: Object.fromEntries(shapes) as Record<string, number[]> },
      previews: {},
    };
  }
  const settings: FrameSettings = { ...DEFAULT_SETTINGS, ...options.frame, ...item.options };
  checkSettings(settings);
  const inputs = await stage('read', () => readInputs(item.frame, signal));
  const prepared = await stage('features', () => describeFrame(inputs, settings.features, signal));
  const computed = await computeFrame(prepared, settings, device, { signal, stage });
  const tensors: Record<string, HostTensor> = selected(frameTensors(computed), names);
  if (names?.includes('bias')) {
    const { data, shape } = await stage('bias', () => denseBias(computed, device, signal));
    tensors.bias = { data, shape, dtype: 'float32' };
  }
  // Native memory is the frame's; what leaves it is copied.
  for (const [name, tensor] of Object.entries(tensors))
    if (name !== 'bias') tensors[name] = { ...tensor, data: tensor.data.slice() };
  const summary = summarise(prepared, computed);
  disposeFrame(computed);
  const router = { ...summary.router, source: basename(summary.router.source) };
  return { tensors, summary: { ...summary, router }, previews: {} };
}

/**
 * Computes manifest items one after the other. An item that fails is an outcome like any other, and the next one follows.
 *
 * @returns the items' outcomes, in the items' order
 * @throws AttentionBiasError ERR_ABORTED; ERR_DEVICE for a closed device; what the iteration of `items` throws
 */
export async function* computeItems(
  items: Iterable<ManifestItem> | AsyncIterable<ManifestItem>,
  options: ComputeOptions,
): AsyncGenerator<ItemOutcome, void, undefined> {
  for await (const item of items) {
    throwIfAborted(options.signal, item.key);
    const ms: Record<string, number> = {};
    let at = 'read';
    const stage: Stage = async (name, work) => {
      throwIfAborted(options.signal, item.key);
      at = name;
      const begin = performance.now();
      const result = await work();
      ms[name] = performance.now() - begin;
      return result;
    };
    let outcome: ItemOutcome;
    try {
      outcome = { ok: true, item, ...(await computeItem(item, options, stage)), ms };
    } catch (cause) {
      throwIfAborted(options.signal, item.key);
      outcome = { ok: false, item, error: itemError(cause, item), stage: at, ms };
    }
    yield outcome;
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
