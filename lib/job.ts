/** Runs job files: an operation on tensors of a file. */

import { AttentionBiasError, expected, type ErrorCode } from './errors.js';
import type { BackwardResult, Device } from './device.js';
import { gradientsWithPath } from './gradients.js';
import type { HostTensor } from './formats/host.js';
import { readJob, TensorRef, type Job } from './formats/job.js';
import { showJson } from './formats/json.js';
import type { Allocate } from './formats/io.js';
import type { ReadOptions } from './formats/safetensors.js';
import { fieldPath } from './formats/schema.js';
import {
  openTensors,
  resolveTensors,
  TENSORS_SOURCE,
  type TensorsFile,
  type TensorsSource,
} from './formats/tensors-file.js';
import type { Tensor } from './tensor.js';

export type { Job } from './formats/job.js';
export { readJob } from './formats/job.js';

export interface JobOptions {
  device: Device;
  signal?: AbortSignal | undefined;
}

/**
 * The outputs by the names that a job's result file has: `out` and `lse` (attention), `grad_query`, `grad_key`, `grad_value`
 * and `grad_` with each learnable tensor's name (attention-backward), `bias`, `weights` (router), `bevCenters` and
 * `cameraCenters` (project), `out` (deformable, multihead), `grad_value`, `grad_samplingLocations` and `grad_attentionWeights`
 * (deformable-backward). They are the caller's to dispose.
 */
export type JobOutputs = Record<string, Tensor>;

/** A job with tensors in place of their names. */
type Loaded<T> = T extends TensorRef ? HostTensor : T extends object ? { [K in keyof T]: Loaded<T[K]> } : T;

interface Use {
  /** the field, such as bias[0].visible */
  field: string;
  ref: TensorRef;
}

/** All places of a job that name a tensor. */
function usesOf(value: unknown, path: readonly PropertyKey[] = []): Use[] {
  if (value instanceof TensorRef) return [{ field: fieldPath(path, 'the job'), ref: value }];
  if (Array.isArray(value)) return value.flatMap((item, index) => usesOf(item, [...path, index]));
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, item]) => usesOf(item, [...path, key]));
}

/** The tensors that a job names. */
export const tensorNames = (job: Job): ReadonlySet<string> =>
  new Set(usesOf(job).map(({ ref }) => ref.tensor));

function withTensors<T>(value: T, loaded: ReadonlyMap<string, HostTensor>): Loaded<T> {
  const replace = (item: unknown): unknown => {
    if (item instanceof TensorRef) return loaded.get(item.tensor);
    if (Array.isArray(item)) return item.map(replace);
    if (typeof item !== 'object' || item === null) return item;
    return Object.fromEntries(Object.entries(item).map(([key, field]) => [key, replace(field)]));
  };
  return replace(value) as Loaded<T>;
}

const named = ({ field, ref }: Use): string => `${field} (tensor ${showJson(ref.tensor)})`;

/** What a file's header says already. ERR_FORMAT, ERR_DTYPE, ERR_SHAPE. */
function checkUse(use: Use, file: TensorsFile): void {
  const { tensor, dtypes } = use.ref;
  const entry = file.entry(tensor);
  if (!entry) {
    const { names } = file;
    const some =
      names
        .slice(0, 8)
        .map((name) => name.slice(0, 80))
        .join(', ') + (names.length > 8 ? ', …' : '');
    throw expected('ERR_FORMAT', `a tensor of ${file.path} (${some})`, use.field, showJson(tensor));
  }
  const shape = `[${entry.shape.join(', ')}]`;
  if (!dtypes.includes(entry.dtype)) {
    throw expected('ERR_DTYPE', dtypes.join(' or '), named(use), `${entry.dtype} ${shape}`);
  }
  if (entry.shape.length < 1 || entry.shape.length > 8) {
    throw expected('ERR_SHAPE', '1 to 8 dimensions', named(use), `${entry.shape.length}`);
  }
  if (entry.shape.includes(0)) throw expected('ERR_SHAPE', 'dimensions of at least 1', named(use), shape);
}

/** Loads each tensor that the job names, once. */
async function loadTensors(
  uses: readonly Use[],
  source: TensorsSource | undefined,
  options: ReadOptions,
): Promise<Map<string, HostTensor>> {
  const loaded = new Map<string, HostTensor>();
  if (source === undefined) {
    const [first] = uses;
    if (first) throw expected('ERR_FORMAT', `${TENSORS_SOURCE} with ${named(first)},`, 'tensors', 'nothing');
    return loaded;
  }
  let file: TensorsFile;
  try {
    file = await openTensors(source, new Set(uses.map(({ ref }) => ref.tensor)), options.signal);
  } catch (error) {
    throw error instanceof AttentionBiasError ? prefixed('tensors: ', error) : error;
  }
  await using open = file;
  for (const use of uses) checkUse(use, open);
  for (const { ref } of uses) {
    if (!loaded.has(ref.tensor)) loaded.set(ref.tensor, await open.read(ref.tensor, options));
  }
  return loaded;
}

function prefixed(prefix: string, error: AttentionBiasError, message = error.message): AttentionBiasError {
  return new AttentionBiasError(error.code, prefix + message, { cause: error.cause });
}

const aboutArguments: ReadonlySet<ErrorCode> = new Set(['ERR_SHAPE', 'ERR_DTYPE', 'ERR_VALUE', 'ERR_TERM']);

/** The device names a field; a job's author also wants to know which tensor that is. */
function withTensorName(error: unknown, uses: readonly Use[]): unknown {
  if (!(error instanceof AttentionBiasError) || !aboutArguments.has(error.code)) return error;
  const use = uses.find(({ field }) => error.message.includes(` for ${field} but `));
  if (!use) return error;
  return prefixed('', error, error.message.replace(` for ${use.field} but `, ` for ${named(use)} but `));
}

const roles: ReadonlySet<string> = new Set(['query', 'key', 'value']);

/** The gradients by the names of a job's result: one for each tensor, summed over the places that name it. */
function gradientsByTensor(gradients: BackwardResult, uses: readonly Use[]): JobOutputs {
  const outputs: JobOutputs = {};
  for (const [path, gradient] of gradientsWithPath(gradients)) {
    const use = uses.find(({ field }) => field === path);
    const name = `grad_${roles.has(path) ? path : (use?.ref.tensor ?? '')}`;
    const sum = outputs[name];
    if (sum) {
      for (let at = 0; at < sum.data.length; at++) sum.data[at]! += gradient.data[at]!;
      gradient.dispose();
    } else {
      outputs[name] = gradient;
    }
  }
  return outputs;
}

const learnable = /^bias\[\d+\]\.(bias|segments\[\d+\]\.weights|table|queryFactors|keyFactors|slopes)$/;

/** Gradients by role and by tensor would have one name. */
function checkLearnableNames(job: Job, uses: readonly Use[]): void {
  if (job.op !== 'attention-backward') return;
  const taken = uses.find(({ field, ref }) => learnable.test(field) && roles.has(ref.tensor));
  if (!taken) return;
  const what = 'a learnable tensor of another name than query, key or value';
  throw expected('ERR_FORMAT', what, taken.field, showJson(taken.ref.tensor));
}

async function execute(
  job: Loaded<Job>,
  uses: readonly Use[],
  { device, signal }: JobOptions,
): Promise<JobOutputs> {
  switch (job.op) {
    case 'attention': {
      const { query, key, value, scale, bias } = job;
      const { out, lse } = await device.attention({ query, key, value, scale, bias, signal });
      return { out, lse };
    }
    case 'attention-backward': {
      const { query, key, value, gradOut, scale, bias } = job;
      const gradients = await device.attentionBackward({ query, key, value, gradOut, scale, bias, signal });
      return gradientsByTensor(gradients, uses);
    }
    case 'bias':
      return { bias: await device.bias({ shape: job.shape, bias: job.bias, signal }) };
    case 'multihead': {
      const { query, key, value, queryPos, keyPos, heads, bias, identity } = job;
      const { inProjWeight, inProjBias, outProjWeight, outProjBias } = job;
      const weights = { inProjWeight, inProjBias, outProjWeight, outProjBias };
      const args = { query, key, value, queryPos, keyPos, heads, ...weights, bias, identity, signal };
      return { out: await device.multihead(args) };
    }
    case 'router': {
      const { features, weight, bias } = job;
      return { weights: await device.router({ features, weight, bias, signal }) };
    }
    case 'deformable': {
      const { value, spatialShapes, samplingLocations, attentionWeights } = job;
      const args = { value, spatialShapes, samplingLocations, attentionWeights };
      return { out: await device.deformable({ ...args, signal }) };
    }
    case 'deformable-backward': {
      const { value, spatialShapes, samplingLocations, attentionWeights, gradOut, deterministic } = job;
      const args = { value, spatialShapes, samplingLocations, attentionWeights, gradOut, deterministic };
      const grads = await device.deformableBackward({ ...args, signal });
      return Object.fromEntries(Object.entries(grads).map(([name, grad]) => [`grad_${name}`, grad]));
    }
    case 'project': {
      const { referencePoints, pointCloudRange, lidar2img, imageShape, featureShape, bevShape } = job;
      const shapes = { pointCloudRange, imageShape, featureShape, bevShape };
      const { bevCenters, cameraCenters } = await device.project({
        referencePoints,
        lidar2img,
        ...shapes,
        signal,
      });
      return { bevCenters, cameraCenters };
    }
  }
}

/** A job whose tensors are in memory. */
export interface LoadedJob {
  /** of the job file, for messages */
  readonly path: string;
  readonly op: Job['op'];
  readonly job: Loaded<Job>;
  readonly uses: readonly Use[];
  /** those in `job`, each once */
  readonly tensors: readonly HostTensor[];
}

/** Errors of the job at `path` begin with it. */
async function about<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw error instanceof AttentionBiasError ? prefixed(`${path}: `, error) : error;
  }
}

/**
 * Reads the job at `path` and the tensors that it names, each once.
 *
 * @param options `job`: the job at `path`, where `readJob` has read it before; `tensors`: in place of the job's own
 * @throws AttentionBiasError in one line that starts with the path: ERR_FORMAT (the job or the tensors file), ERR_SHAPE,
 *   ERR_DTYPE, ERR_IO, ERR_MEMORY, ERR_ABORTED
 */
export async function loadJob(
  path: string,
  options: {
    readonly job?: Job | undefined;
    readonly tensors?: TensorsSource | undefined;
    readonly signal?: AbortSignal | undefined;
    /** a folder that the tensors which the job itself names must lie in */
    readonly root?: string | undefined;
    /** where the tensors of a safetensors file are read to */
    readonly allocate?: Allocate | undefined;
  } = {},
): Promise<LoadedJob> {
  const { signal, allocate } = options;
  const checked = options.job ?? (await readJob(path, { signal }));
  const uses = usesOf(checked);
  return about(path, async () => {
    const own =
      checked.tensors === undefined ? undefined : resolveTensors(path, checked.tensors, options.root);
    checkLearnableNames(checked, uses);
    const loaded = await loadTensors(uses, options.tensors ?? own, { signal, allocate });
    const tensors = [...loaded.values()];
    return { path, op: checked.op, job: withTensors(checked, loaded), uses, tensors };
  });
}

/**
 * Computes a loaded job. Errors are the device's, with the job's path before and the tensor's name in it: ERR_SHAPE,
 * ERR_DTYPE, ERR_VALUE, ERR_TERM, ERR_MEMORY, ERR_DEVICE, ERR_ABORTED.
 */
export async function executeJob({ path, job, uses }: LoadedJob, options: JobOptions): Promise<JobOutputs> {
  return about(path, () =>
    execute(job, uses, options).catch((error: unknown) => {
      throw withTensorName(error, uses);
    }),
  );
}

/**
 * Runs the job at `path` on a device and returns its outputs. Only the tensors that the job names are read, each once.
 *
 * @param job the job at `path`, where `readJob` has read it before
 * @throws AttentionBiasError as `loadJob` and `executeJob`
 */
export async function runJob(path: string, options: JobOptions, job?: Job): Promise<JobOutputs> {
  return executeJob(await loadJob(path, { job, signal: options.signal }), options);
}
