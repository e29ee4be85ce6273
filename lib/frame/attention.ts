/** The AQR bias of a frame as terms, and what the attention under it looks at. */
import type { Device } from '../device.js';
import type { TensorLike } from '../tensor.js';
import type { BiasTerm } from '../terms.js';
import { BEV_CELLS, BEV_SHAPE, CAMERA_CELLS, FEATURE_SHAPE, HEADS, RADIUS, WINDOW } from './geometry.js';

export interface StackInput {
  /** [Q] each, in [0, 1] */
  readonly lidar: Float32Array;
  readonly camera: Float32Array;
  /** [Q, 2] (y, x) */
  readonly bevCenters: Float32Array;
  /** [Q, 3] (view, y, x) */
  readonly cameraCenters: Float32Array;
  /** [keys] */
  readonly ignore: Uint8Array;
  readonly strength: number;
  /** whether a query sees nothing but its windows */
  readonly window: boolean;
}

/** The bias: modality + spatial (+ window) + padding, without a copy of anything. */
export function biasStack(input: StackInput): BiasTerm[] {
  const count = input.lidar.length;
  const keys = input.ignore.length;
  const views = (keys - BEV_CELLS) / CAMERA_CELLS;
  const lidar = { data: input.lidar, shape: [1, count] };
  const camera = { data: input.camera, shape: [1, count] };
  const bevCells = {
    start: 0,
    grid: [...BEV_SHAPE] as const,
    centers: { data: input.bevCenters, shape: [1, count, 2] },
  };
  const cameraCells = {
    start: BEV_CELLS,
    grid: [views, ...FEATURE_SHAPE] as const,
    centers: { data: input.cameraCenters, shape: [1, count, 3] },
  };
  const { strength } = input;
  const terms: BiasTerm[] = [
    {
      type: 'modality',
      strength,
      segments: [
        { start: 0, length: BEV_CELLS, weights: lidar },
        { start: BEV_CELLS, length: keys - BEV_CELLS, weights: camera },
      ],
    },
    {
      type: 'spatial',
      strength,
      segments: [
        { ...bevCells, radius: RADIUS.bev, weights: lidar },
        { ...cameraCells, radius: RADIUS.camera, weights: camera },
      ],
    },
    { type: 'padding', ignore: { data: input.ignore, shape: [1, keys] } },
  ];
  if (input.window) {
    terms.push({
      type: 'window',
      segments: [
        { ...bevCells, size: WINDOW.bev },
        { ...cameraCells, size: WINDOW.camera },
      ],
    });
  }
  return terms;
}

/**
 * The share of attention that each query gives to LiDAR and to the cameras, [HEADS, Q, 2]: attention whose values say which
 * sensor a key is of.
 */
export async function modalityMass(
  device: Device,
  args: { query: TensorLike; key: TensorLike; bias: readonly BiasTerm[]; signal?: AbortSignal | undefined },
): Promise<Float32Array> {
  const keys = args.key.shape[2]!;
  const perHead = Float32Array.from({ length: keys * 2 }, (_, i) =>
    Number(i % 2 === (i < BEV_CELLS * 2 ? 0 : 1)),
  );
  using value = device.tensor([1, HEADS, keys, 2]);
  for (let head = 0; head < HEADS; ++head) value.data.set(perHead, head * perHead.length);
  const { out, lse } = await device.attention({ ...args, value });
  const mass = out.data.slice();
  out.dispose();
  lse.dispose();
  return mass;
}

/**
 * How much attention each key gets: its probability averaged over heads and queries (those that see a key), [keys]; the sum
 * is 1. The gradient by a key's value of Σ_q out is the sum of its probabilities, which `attentionBackward` adds up without a
 * Q×K matrix.
 *
 * @param args the tensors [1, HEADS, …, HEAD_DIM], and lse of the attention under `bias`
 */
export async function keyMass(
  device: Device,
  args: {
    query: TensorLike;
    key: TensorLike;
    lse: TensorLike & { readonly data: Float32Array };
    bias: readonly BiasTerm[];
    signal?: AbortSignal | undefined;
  },
): Promise<Float64Array> {
  const { lse } = args;
  const keys = args.key.shape[2]!;
  const rows = lse.data.reduce((seen, value) => seen + Number(value > -Infinity), 0);
  const zeros = (tokens: number) => ({
    data: new Float32Array(HEADS * tokens),
    shape: [1, HEADS, tokens, 1],
  });
  const queries = args.query.shape[2]!;
  const gradOut = zeros(queries);
  gradOut.data.fill(1 / Math.max(1, rows));
  const grads = await device.attentionBackward({
    ...args,
    value: zeros(keys),
    gradOut,
    out: zeros(queries),
    termGradients: false,
    memory: 'host',
  });
  const mass = new Float64Array(keys);
  grads.value.data.forEach((value, i) => (mass[i % keys]! += value));
  grads.dispose();
  return mass;
}
