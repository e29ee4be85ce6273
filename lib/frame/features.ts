/**
 * Features of a frame: [HEADS, keys, HEAD_DIM] for the BEV cells and the image cells, and a content vector a query. Without a
 * trained backbone, a cell is described by plain statistics of what it holds, standardised and lifted to 256 channels by a
 * fixed random projection (Johnson and Lindenstrauss): cells that look alike have features that are alike.
 */
import { expected } from '../errors.js';
import type { HostTensor } from '../formats/host.js';
import { openSafetensors, type SafetensorsFile } from '../formats/safetensors.js';
import { normalFrom, randomSource } from '../random.js';
import {
  BEV_CELLS,
  BEV_SHAPE,
  bevCell,
  CAMERA_CELLS,
  CHANNELS,
  FEATURE_SHAPE,
  HEAD_DIM,
  HEADS,
  INPUT_SHAPE,
  POINT_CLOUD_RANGE,
  STRIDE,
} from './geometry.js';
import type { InputImage, Sweep } from './scene.js';

/** Statistics of a cell; both sensors have as many. */
const STATISTICS = 8;

/** Seeds of the projections. Changing one changes every output. */
const SEEDS = { bev: 101, camera: 202 };

export interface Pillars {
  /** [BEV_CELLS] */
  readonly counts: Uint32Array;
  /** [BEV_CELLS, STATISTICS] */
  readonly statistics: Float32Array;
}

/** Of each BEV cell's points: log(1 + count), mean, lowest, highest and spread of z, mean intensity, mean offset in x and y. */
export function pillarStatistics({ points, columns, count }: Sweep): Pillars {
  const counts = new Uint32Array(BEV_CELLS);
  const sums = new Float64Array(BEV_CELLS * 5); // z, z², intensity, x, y
  const lowest = new Float64Array(BEV_CELLS).fill(Infinity);
  const highest = new Float64Array(BEV_CELLS).fill(-Infinity);
  for (let i = 0; i < count; ++i) {
    const at = i * columns;
    const [x, y, z, intensity] = [points[at]!, points[at + 1]!, points[at + 2]!, points[at + 3]!];
    const cell = bevCell(x, y, z);
    if (cell < 0) continue;
    ++counts[cell]!;
    [z, z * z, Number.isFinite(intensity) ? intensity / 255 : 0, x, y].forEach((value, j) => {
      sums[cell * 5 + j]! += value;
    });
    lowest[cell] = Math.min(lowest[cell]!, z);
    highest[cell] = Math.max(highest[cell]!, z);
  }
  const statistics = new Float32Array(BEV_CELLS * STATISTICS);
  const [rows, width] = BEV_SHAPE;
  const [x0, y0, , x1, y1] = POINT_CLOUD_RANGE;
  for (let cell = 0; cell < BEV_CELLS; ++cell) {
    const n = counts[cell]!;
    if (n === 0) continue;
    const [z, zz, intensity, x, y] = [0, 1, 2, 3, 4].map((j) => sums[cell * 5 + j]! / n) as [
      number,
      number,
      number,
      number,
      number,
    ];
    const centreX = x0 + (((cell % width) + 0.5) * (x1 - x0)) / width;
    const centreY = y0 + ((Math.floor(cell / width) + 0.5) * (y1 - y0)) / rows;
    const spread = Math.sqrt(Math.max(0, zz - z * z));
    statistics.set(
      [Math.log1p(n), z, lowest[cell]!, highest[cell]!, spread, intensity, x - centreX, y - centreY],
      cell * STATISTICS,
    );
  }
  return { counts, statistics };
}

/** Of each image cell's 16×16 pixels: mean and spread of R, G and B, mean step of the brightness along x and y. */
export function patchStatistics({ rgb }: InputImage): Float32Array {
  const statistics = new Float32Array(CAMERA_CELLS * STATISTICS);
  const width = INPUT_SHAPE[1];
  const brightness = (at: number): number => rgb[at]! + rgb[at + 1]! + rgb[at + 2]!;
  for (let cell = 0; cell < CAMERA_CELLS; ++cell) {
    const top = Math.floor(cell / FEATURE_SHAPE[1]) * STRIDE;
    const left = (cell % FEATURE_SHAPE[1]) * STRIDE;
    const sums = [0, 0, 0, 0, 0, 0, 0, 0];
    for (let y = top; y < top + STRIDE; ++y) {
      for (let x = left; x < left + STRIDE; ++x) {
        const at = (y * width + x) * 3;
        for (let c = 0; c < 3; ++c) {
          sums[c]! += rgb[at + c]!;
          sums[3 + c]! += rgb[at + c]! ** 2;
        }
        if (x + 1 < left + STRIDE) sums[6]! += Math.abs(brightness(at + 3) - brightness(at));
        if (y + 1 < top + STRIDE) sums[7]! += Math.abs(brightness(at + width * 3) - brightness(at));
      }
    }
    const mean = sums.map((sum) => sum / STRIDE ** 2);
    for (let c = 0; c < 3; ++c) mean[3 + c] = Math.sqrt(Math.max(0, mean[3 + c]! - mean[c]! ** 2));
    statistics.set(mean, cell * STATISTICS);
  }
  return statistics;
}

/** Mean 0 and variance 1 for each statistic over the cells that hold something; the others become 0. */
function standardise(statistics: Float32Array, holds: (cell: number) => boolean): void {
  const cells = statistics.length / STATISTICS;
  const held = Uint8Array.from({ length: cells }, (_, cell) => Number(holds(cell)));
  const count = Math.max(
    1,
    held.reduce((a, b) => a + b, 0),
  );
  for (let s = 0; s < STATISTICS; ++s) {
    let mean = 0;
    for (let cell = 0; cell < cells; ++cell) {
      if (held[cell]) mean += statistics[cell * STATISTICS + s]! / count;
    }
    let variance = 0;
    for (let cell = 0; cell < cells; ++cell) {
      if (held[cell]) variance += (statistics[cell * STATISTICS + s]! - mean) ** 2 / count;
    }
    const factor = variance > 0 ? 1 / Math.sqrt(variance) : 0;
    for (let cell = 0; cell < cells; ++cell) {
      const at = cell * STATISTICS + s;
      statistics[at] = held[cell] ? (statistics[at]! - mean) * factor : 0;
    }
  }
}

/** Writes statistics times a random [STATISTICS, CHANNELS] matrix to keys from `start` on. */
function lift(
  statistics: Float32Array,
  seed: number,
  features: Float32Array,
  keys: number,
  start: number,
): void {
  const random = randomSource(seed);
  const matrix = Float32Array.from(
    { length: STATISTICS * CHANNELS },
    () => normalFrom(random) / Math.sqrt(STATISTICS),
  );
  const row = new Float64Array(CHANNELS);
  for (let cell = 0; cell < statistics.length / STATISTICS; ++cell) {
    row.fill(0);
    for (let s = 0; s < STATISTICS; ++s) {
      const value = statistics[cell * STATISTICS + s]!;
      for (let channel = 0; channel < CHANNELS; ++channel)
        row[channel]! += value * matrix[s * CHANNELS + channel]!;
    }
    writeKey(row, start + cell, features, keys);
  }
}

/** Writes the channels of a key to its places in [HEADS, keys, HEAD_DIM]. */
function writeKey(channels: ArrayLike<number>, key: number, features: Float32Array, keys: number): void {
  for (let head = 0; head < HEADS; ++head) {
    const at = (head * keys + key) * HEAD_DIM;
    for (let d = 0; d < HEAD_DIM; ++d) features[at + d] = channels[head * HEAD_DIM + d]!;
  }
}

/** Where a channel of a key lies in [HEADS, keys, HEAD_DIM]. */
function featureAt(channel: number, key: number, keys: number): number {
  const head = Math.floor(channel / HEAD_DIM);
  return (head * keys + key) * HEAD_DIM + (channel % HEAD_DIM);
}

/** Fills `features` [HEADS, keys, HEAD_DIM] from a sweep and images; `ignore` [keys] is 1 for cells outside the images. */
export function describeCells(
  pillars: Pillars,
  images: readonly InputImage[],
  ignore: Uint8Array,
  features: Float32Array,
): void {
  const keys = ignore.length;
  const bev = pillars.statistics.slice();
  standardise(bev, (cell) => pillars.counts[cell]! > 0);
  lift(bev, SEEDS.bev, features, keys, 0);
  // All cameras alike: a patch means the same in each.
  const cameras = new Float32Array(images.length * CAMERA_CELLS * STATISTICS);
  images.forEach((image, view) => cameras.set(patchStatistics(image), view * CAMERA_CELLS * STATISTICS));
  standardise(cameras, (cell) => ignore[BEV_CELLS + cell] === 0);
  lift(cameras, SEEDS.camera, features, keys, BEV_CELLS);
}

/** [keys]: 1 for an image cell that holds a row outside its image (an image flatter than the input). */
export function cellsOutside(firstRows: readonly number[]): Uint8Array {
  const ignore = new Uint8Array(BEV_CELLS + firstRows.length * CAMERA_CELLS);
  firstRows.forEach((firstRow, view) => {
    const start = BEV_CELLS + view * CAMERA_CELLS;
    ignore.fill(1, start, start + Math.ceil(firstRow / STRIDE) * FEATURE_SHAPE[1]);
  });
  return ignore;
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}

/** Reads a feature map of `views` grids, channels first or last, with or without leading ones. ERR_FORMAT, ERR_SHAPE, ERR_DTYPE. */
async function readMap(
  file: SafetensorsFile,
  name: string,
  views: number,
  grid: readonly [number, number],
  signal: AbortSignal | undefined,
): Promise<{ map: HostTensor<'float32'>; channelsFirst: boolean }> {
  if (!file.tensors.has(name)) {
    const names = [...file.tensors.keys()].join(', ');
    throw expected('ERR_FORMAT', `a tensor named ${JSON.stringify(name)}`, file.path, names || 'no tensor');
  }
  const map = await file.readFloat32(name, { signal });
  const leading = map.shape.findIndex((size) => size !== 1);
  const shape = map.shape.slice(Math.max(0, leading));
  const prefix = views === 1 ? [] : [views];
  const first = [...prefix, CHANNELS, ...grid];
  const last = [...prefix, ...grid, CHANNELS];
  if (!sameShape(shape, first) && !sameShape(shape, last)) {
    const what = `shape [${first.join(', ')}] or [${last.join(', ')}]`;
    throw expected('ERR_SHAPE', what, `${JSON.stringify(name)} of ${file.path}`, `[${map.shape.join(', ')}]`);
  }
  for (const value of map.data) {
    if (Number.isFinite(value)) continue;
    throw expected('ERR_VALUE', 'finite values', `${JSON.stringify(name)} of ${file.path}`, String(value));
  }
  return { map, channelsFirst: sameShape(shape, first) };
}

/**
 * Fills `features` from a backbone's maps in a safetensors file: `bev` [256, 180, 180] and `camera` [V, 256, 40, 100], or
 * with the channels last; F32, F16, BF16 or F64.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_ABORTED
 */
export async function readFeatures(
  path: string,
  views: number,
  features: Float32Array,
  signal?: AbortSignal,
): Promise<void> {
  await using file = await openSafetensors(path);
  const keys = BEV_CELLS + views * CAMERA_CELLS;
  const parts = [
    { name: 'bev', views: 1, grid: BEV_SHAPE, cells: BEV_CELLS, start: 0 },
    { name: 'camera', views, grid: FEATURE_SHAPE, cells: CAMERA_CELLS, start: BEV_CELLS },
  ];
  const channels = new Float32Array(CHANNELS);
  for (const part of parts) {
    const { map, channelsFirst } = await readMap(file, part.name, part.views, part.grid, signal);
    const [cellStep, channelStep] = channelsFirst ? [1, part.cells] : [CHANNELS, 1];
    for (let view = 0; view < part.views; ++view) {
      const from = view * part.cells * CHANNELS;
      for (let cell = 0; cell < part.cells; ++cell) {
        for (let channel = 0; channel < CHANNELS; ++channel) {
          channels[channel] = map.data[from + cell * cellStep + channel * channelStep]!;
        }
        writeKey(channels, part.start + view * part.cells + cell, features, keys);
      }
    }
  }
}

/**
 * Content of the queries [Q, CHANNELS]: the sum of the features of the cells that a query falls in, of root mean square 1 (0
 * where those cells hold nothing).
 *
 * @param cells keys of each query: its BEV cell and its image cell; −1 for none
 */
export function queryContent(
  features: Float32Array,
  keys: number,
  cells: readonly (readonly [number, number])[],
): Float32Array {
  const content = new Float32Array(cells.length * CHANNELS);
  cells.forEach((pair, q) => {
    const vector = content.subarray(q * CHANNELS, (q + 1) * CHANNELS);
    for (const key of pair) {
      if (key < 0) continue;
      for (let channel = 0; channel < CHANNELS; ++channel)
        vector[channel]! += features[featureAt(channel, key, keys)]!;
    }
    const norm = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0) / CHANNELS);
    if (norm > 0) vector.forEach((value, channel) => (vector[channel] = value / norm));
  });
  return content;
}

/** [Q, CHANNELS] as [HEADS, Q, HEAD_DIM]. */
export function splitHeads(rows: Float32Array, heads: Float32Array): void {
  const count = rows.length / CHANNELS;
  for (let row = 0; row < count; ++row) {
    writeKey(rows.subarray(row * CHANNELS, (row + 1) * CHANNELS), row, heads, count);
  }
}
