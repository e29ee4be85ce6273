/** The AQR bias of a frame as terms, and what the attention under it looks at. */
import type { Device } from '../device.js';
import type { TensorLike } from '../tensor.js';
import type { BiasTerm } from '../terms.js';
import {
  BEV_CELLS,
  BEV_SHAPE,
  CAMERA_CELLS,
  FEATURE_SHAPE,
  HEAD_DIM,
  HEADS,
  RADIUS,
  WINDOW,
} from './geometry.js';

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

/** The bias of queries [begin, end): modality + spatial (+ window) + padding, without a copy of anything. */
export function biasStack(input: StackInput, begin = 0, end = input.lidar.length): BiasTerm[] {
  const count = end - begin;
  const part = (data: Float32Array, size: number): Float32Array => data.subarray(begin * size, end * size);
  const keys = input.ignore.length;
  const views = (keys - BEV_CELLS) / CAMERA_CELLS;
  const lidar = { data: part(input.lidar, 1), shape: [1, count] };
  const camera = { data: part(input.camera, 1), shape: [1, count] };
  const bevCells = {
    start: 0,
    grid: [...BEV_SHAPE] as const,
    centers: { data: part(input.bevCenters, 2), shape: [1, count, 2] },
  };
  const cameraCells = {
    start: BEV_CELLS,
    grid: [views, ...FEATURE_SHAPE] as const,
    centers: { data: part(input.cameraCenters, 3), shape: [1, count, 3] },
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

/** Queries whose probabilities are turned round at a time: a dense bias of 14 MB at 56,400 keys. */
const MASS_QUERIES = 64;

/** Columns that are turned round at a time: a cache line of each, and all that is written stays in the first cache. */
const BLOCK = 16;

/** [columns, rows] of [rows, columns]. */
export function transposed(matrix: Float32Array, rows: number, columns: number): Float32Array<ArrayBuffer> {
  const turned = new Float32Array(rows * columns);
  for (let begin = 0; begin < columns; begin += BLOCK) {
    const end = Math.min(columns, begin + BLOCK);
    for (let row = 0; row < rows; ++row) {
      const from = row * columns;
      for (let column = begin; column < end; ++column) turned[column * rows + row] = matrix[from + column]!;
    }
  }
  return turned;
}

/**
 * How much attention each key gets: its probability averaged over heads and queries (those that see a key), [keys]; the sum
 * is 1. With the roles turned round, and each query's lse taken off its scores, the lse of a key's row is the logarithm of
 * the probabilities' sum over queries; so no Q×K matrix of probabilities exists here either.
 *
 * @param args the tensors [1, HEADS, …, HEAD_DIM] and results of the attention under `stack`
 */
export async function keyMass(
  device: Device,
  args: {
    query: Float32Array;
    key: TensorLike;
    lse: Float32Array;
    stack: StackInput;
    signal?: AbortSignal | undefined;
  },
): Promise<Float64Array> {
  const { query, key, lse, stack, signal } = args;
  const keys = stack.ignore.length;
  const queries = stack.lidar.length;
  const mass = new Float64Array(keys);
  let rows = 0;
  for (const value of lse) rows += Number(value > -Infinity);
  for (let begin = 0; begin < queries; begin += MASS_QUERIES) {
    const end = Math.min(queries, begin + MASS_QUERIES);
    const count = end - begin;
    const dense = await device.bias({
      shape: [1, 1, count, keys],
      bias: biasStack(stack, begin, end),
      signal,
    });
    const turned = transposed(dense.data, count, keys);
    dense.dispose();
    const part = new Float32Array(HEADS * count * HEAD_DIM);
    const shift = new Float32Array(HEADS * count);
    for (let head = 0; head < HEADS; ++head) {
      const at = head * queries + begin;
      part.set(query.subarray(at * HEAD_DIM, (at + count) * HEAD_DIM), head * count * HEAD_DIM);
      // A query that sees nothing gives nothing.
      for (let q = 0; q < count; ++q)
        shift[head * count + q] = lse[at + q]! > -Infinity ? -lse[at + q]! : -Infinity;
    }
    const result = await device.attention({
      memory: 'host',
      query: key,
      key: { data: part, shape: [1, HEADS, count, HEAD_DIM] },
      value: { data: new Float32Array(HEADS * count), shape: [1, HEADS, count, 1] },
      bias: [
        { type: 'dense', bias: { data: turned, shape: [1, 1, keys, count] } },
        { type: 'dense', bias: { data: shift, shape: [1, HEADS, 1, count] } },
      ],
      signal,
    });
    result.lse.data.forEach((value, i) => (mass[i % keys]! += Math.exp(value) / rows));
    result.out.dispose();
    result.lse.dispose();
  }
  return mass;
}
