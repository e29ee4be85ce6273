/** Manifest items, computed. */
import type { Device } from '../device.js';
import { AttentionBiasError, expected } from '../errors.js';
import type { HostTensor } from '../formats/host.js';
import { readJob, runJob } from '../job.js';
import type { FrameOverrides, ManifestItem } from './manifest.js';

export interface ComputeOptions {
  readonly device: Device;
  readonly frame?: FrameOverrides | undefined;
  readonly tensors?: readonly string[] | undefined;
  readonly previews?: boolean | undefined;
  readonly concurrency?: number | undefined;
  readonly maxBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ItemResult {
  readonly item: ManifestItem;
  readonly tensors: Readonly<Record<string, HostTensor>>;
  readonly summary: Readonly<Record<string, unknown>>;
  readonly previews: Readonly<Record<string, Uint8Array>>;
  readonly ms: Readonly<Record<string, number>>;
}

export interface ItemFailure {
  readonly item: ManifestItem;
  readonly error: AttentionBiasError;
  readonly stage: string;
  readonly ms: Readonly<Record<string, number>>;
}

export type ItemOutcome = ({ readonly ok: true } & ItemResult) | ({ readonly ok: false } & ItemFailure);

/** Jobs, one after the other; frames are the engine's. */
export async function* computeItems(
  items: Iterable<ManifestItem> | AsyncIterable<ManifestItem>,
  { device, signal, tensors: names }: ComputeOptions,
): AsyncGenerator<ItemOutcome, void, undefined> {
  for await (const item of items) {
    const begin = performance.now();
    try {
      if (item.kind !== 'job' || typeof item.tensors === 'object')
        throw expected('ERR_VALUE', 'a job', item.key, 'another item');
      const read = await readJob(item.job, { signal });
      const job = item.tensors === undefined ? read : { ...read, tensors: item.tensors };
      const outputs = await runJob(item.job, { device, signal }, job);
      const chosen = Object.entries(outputs).filter(([name]) => names?.includes(name) ?? true);
      const shapes = Object.entries(outputs).map(([name, { shape }]) => [name, [...shape]] as const);
      yield {
        ok: true,
        item,
        tensors: Object.fromEntries(chosen),
        summary: { op: job.op, outputs: Object.fromEntries(shapes) },
        previews: {},
        ms: { attention: performance.now() - begin },
      };
    } catch (error) {
      if (!(error instanceof AttentionBiasError) || error.code === 'ERR_ABORTED') throw error;
      yield { ok: false, item, error, stage: 'read', ms: { read: performance.now() - begin } };
    }
  }
}
