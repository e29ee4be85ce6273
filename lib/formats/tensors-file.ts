/** Where a job's tensors are: a safetensors file, a .npz archive, or a .npy file for each. */
import { AttentionBiasError } from '../errors.js';
import type { DType } from '../tensor.js';
import type { HostTensor } from './host.js';
import { openNpz, readNpy } from './npy.js';
import { resolveFrom } from './within.js';
import { openSafetensors, type ReadOptions } from './safetensors.js';

/** The path of a .safetensors or .npz file, or the paths of .npy files by their tensors' names. */
export type TensorsSource = string | Readonly<Record<string, string>>;

export const TENSORS_SOURCE =
  'the path of a .safetensors or .npz file, or an object of .npy files by their tensors,';

/** A source with its paths resolved from a file's folder, within `root` if there is one; ERR_FORMAT. */
export function resolveTensors(file: string, source: TensorsSource, root?: string): TensorsSource {
  const at = (path: string): string => resolveFrom(file, path, root);
  if (typeof source === 'string') return at(source);
  return Object.fromEntries(Object.entries(source).map(([name, path]) => [name, at(path)]));
}

/** The files of a source. */
export const filesOfTensors = (source: TensorsSource): string[] =>
  typeof source === 'string' ? [source] : Object.values(source);

/** A source that is open for reading. */
export interface TensorsFile extends AsyncDisposable {
  /** names it in errors */
  readonly path: string;
  readonly names: readonly string[];
  /** dtype (as safetensors calls it) and shape of a tensor that was wanted; undefined for one that isn't there */
  entry(name: string): { readonly dtype: string; readonly shape: readonly number[] } | undefined;
  /** A tensor that was wanted and is there. */
  read(name: string, options: ReadOptions): Promise<HostTensor>;
}

const formatDtypes: Record<DType, string> = { float32: 'F32', int32: 'I32', uint8: 'U8', bfloat16: 'BF16' };

/** Arrays that are in memory already. */
function fromMemory(
  path: string,
  names: readonly string[],
  arrays: ReadonlyMap<string, HostTensor>,
): TensorsFile {
  return {
    path,
    names,
    entry: (name) => {
      const array = arrays.get(name);
      return array && { dtype: formatDtypes[array.dtype], shape: array.shape };
    },
    read: (name) => Promise.resolve(arrays.get(name)!),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/**
 * Opens a source. Of a .npz archive and of .npy files, only the wanted tensors are read, and they are read here.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT, ERR_DTYPE (a .npy dtype that has no place here), ERR_ABORTED
 */
export async function openTensors(
  source: TensorsSource,
  wanted: ReadonlySet<string>,
  signal?: AbortSignal,
): Promise<TensorsFile> {
  if (typeof source !== 'string') {
    const arrays = new Map<string, HostTensor>();
    for (const [name, path] of Object.entries(source)) {
      if (wanted.has(name)) arrays.set(name, await about(name, readNpy(path, { signal })));
    }
    return fromMemory('the object', Object.keys(source), arrays);
  }
  if (/\.npz$/i.test(source)) {
    const { names, arrays } = await openNpz(source, { only: wanted, signal });
    return fromMemory(source, names, arrays);
  }
  const file = await openSafetensors(source);
  return {
    path: file.path,
    names: [...file.tensors.keys()],
    entry: (name) => file.tensors.get(name),
    read: (name, options) => file.read(name, options),
    [Symbol.asyncDispose]: () => file.close(),
  };
}

/** Errors of a tensor's own file begin with the tensor's name. */
async function about<T>(name: string, work: Promise<T>): Promise<T> {
  return work.catch((error: unknown) => {
    if (!(error instanceof AttentionBiasError)) throw error;
    throw new AttentionBiasError(error.code, `${JSON.stringify(name)}: ${error.message}`, {
      cause: error.cause,
    });
  });
}
