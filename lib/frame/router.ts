/** The AQR weights of a frame's queries: how much each trusts LiDAR and cameras. */
import type { Device } from '../device.js';
import { openSafetensors } from '../formats/safetensors.js';
import { expected } from '../errors.js';
import type { Tensor } from '../tensor.js';
import { BEV_SHAPE, CHANNELS } from './geometry.js';

/** LiDAR points are counted in this many cells each way round a query's own: 1.5 m. */
const NEAR_CELLS = 2;

/**
 * The router over stated evidence, in place of a trained one: [log(1 + LiDAR points near), seen by a camera].
 * LiDAR: 0.27 with no point near, 0.5 with 1.7 points, 0.9 with 30. Camera: 0.12 unseen, 0.88 seen.
 */
const EVIDENCE = {
  features: ['log(1 + LiDAR points within 1.5 m)', 'seen by a camera'],
  weight: [
    [1, 0],
    [0, 4],
  ],
  bias: [-1, -2],
};

export interface RouterInput {
  /** what the summary says of the weights */
  readonly description: {
    readonly source: string;
    readonly features: readonly string[];
    readonly weight?: number[][];
    readonly bias?: number[];
  };
  /** [Q, E] */
  readonly features: Float32Array;
  readonly weight: { readonly data: Float32Array; readonly shape: readonly number[] };
  readonly bias: { readonly data: Float32Array; readonly shape: readonly number[] };
}

/**
 * @param counts points in each BEV cell
 * @param bevCenters [Q, 2] (y, x)
 * @param seen whether a camera sees each query
 */
export function evidenceRouter(
  counts: Uint32Array,
  bevCenters: Float32Array,
  seen: readonly boolean[],
): RouterInput {
  const features = new Float32Array(seen.length * 2);
  const [rows, columns] = BEV_SHAPE;
  seen.forEach((visible, q) => {
    const [y, x] = [bevCenters[2 * q]!, bevCenters[2 * q + 1]!];
    let points = 0;
    for (let row = Math.max(0, y - NEAR_CELLS); row <= Math.min(rows - 1, y + NEAR_CELLS); ++row) {
      for (
        let column = Math.max(0, x - NEAR_CELLS);
        column <= Math.min(columns - 1, x + NEAR_CELLS);
        ++column
      ) {
        points += counts[row * columns + column]!;
      }
    }
    features[2 * q] = Math.log1p(points);
    features[2 * q + 1] = visible ? 1 : 0;
  });
  return {
    description: { source: 'sensor evidence', ...EVIDENCE },
    features,
    weight: { data: Float32Array.from(EVIDENCE.weight.flat()), shape: [2, 2] },
    bias: { data: Float32Array.from(EVIDENCE.bias), shape: [2] },
  };
}

/** A trained router: `weight` [2, 256] and `bias` [2] of a safetensors file, over the queries' content. ERR_IO, ERR_FORMAT, ERR_DTYPE. */
export async function fileRouter(
  path: string,
  content: Float32Array,
  signal?: AbortSignal,
): Promise<RouterInput> {
  await using file = await openSafetensors(path);
  const read = async (name: string, shape: readonly number[]): Promise<RouterInput['weight']> => {
    const entry = file.tensors.get(name);
    const what = `a tensor ${JSON.stringify(name)} [${shape.join(', ')}]`;
    if (!entry) throw expected('ERR_FORMAT', what, path, [...file.tensors.keys()].join(', ') || 'no tensor');
    if (entry.shape.join() !== shape.join())
      throw expected('ERR_SHAPE', what, path, `[${entry.shape.join(', ')}]`);
    return file.readFloat32(name, { signal });
  };
  return {
    description: { source: path, features: [`the query's content, ${CHANNELS} channels`] },
    features: content,
    weight: await read('weight', [2, CHANNELS]),
    bias: await read('bias', [2]),
  };
}

/** Runs the router: [1, Q, 2], LiDAR and camera. */
export async function route(
  device: Device,
  { features, weight, bias }: RouterInput,
  signal?: AbortSignal,
): Promise<Tensor> {
  const size = weight.shape[1]!;
  return device.router({
    features: { data: features, shape: [1, features.length / size, size] },
    weight,
    bias,
    signal,
  });
}
