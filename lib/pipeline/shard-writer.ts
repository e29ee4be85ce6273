import type { HostTensor } from '../formats/host.js';
import type { StagedFile } from './staged.js';
import type { ShardDtype } from './sidecar.js';

/** One item of a shard. */
export interface ShardEntry {
  readonly key: string;
  readonly tensors: Readonly<Record<string, HostTensor>>;
  readonly summary: Readonly<Record<string, unknown>>;
}

/** Writes a shard item by item; the same items give the same bytes. */
export interface ShardWriter {
  add(entry: ShardEntry): Promise<void>;
  /** Writes what comes after the last item. */
  finish(): Promise<void>;
  /** Lets go of everything but the shard's own file. Never rejects. */
  dispose(): Promise<void>;
}

export interface ShardTarget {
  /** the shard's file */
  readonly file: StagedFile;
  readonly dtype: ShardDtype;
  /** begins another file beside the shard's, which is the writer's own */
  readonly scratch: (suffix: string) => Promise<StagedFile>;
}

export type OpenShardWriter = (target: ShardTarget) => ShardWriter;
