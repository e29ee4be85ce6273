/** The items of a run: frames and jobs. */

/** What a line of a manifest may say of its frame; what is absent is the run's. */
export interface FrameOverrides {
  readonly queries?: number | undefined;
  readonly seed?: number | undefined;
  readonly strength?: number | undefined;
  readonly window?: boolean | undefined;
  /** absolute path of a backbone's feature maps */
  readonly features?: string | undefined;
  /** absolute path of a trained router */
  readonly router?: string | undefined;
}

interface Rooted {
  /** absolute path of a folder that the files which FRAME.json or the job names must lie in; absent: anywhere */
  readonly root?: string | undefined;
}

/** A line of a manifest that names a frame. */
export interface FrameItem extends Rooted {
  readonly kind: 'frame';
  /** place in the manifest, from 0 */
  readonly index: number;
  /** [A-Za-z0-9_-]{1,100}, unique without regard to case */
  readonly key: string;
  /** absolute path of FRAME.json */
  readonly frame: string;
  readonly options: FrameOverrides;
}

/** A line of a manifest that names a job. */
export interface JobItem extends Rooted {
  readonly kind: 'job';
  /** place in the manifest, from 0 */
  readonly index: number;
  /** [A-Za-z0-9_-]{1,100}, unique without regard to case */
  readonly key: string;
  /** absolute path of the job file */
  readonly job: string;
  /** in place of the job's tensors file: an absolute path of a .safetensors or .npz file, or of a .npy file a tensor */
  readonly tensors?: string | Readonly<Record<string, string>> | undefined;
}

/** A line of a manifest, with its paths resolved; `kind` tells which. */
export type ManifestItem = FrameItem | JobItem;
