/**
 * The first part of a frame: what needs no device. Reading, decoding and features are JavaScript-heavy and stand alone, so
 * that a worker thread can do them: all that a prepared frame holds is cloneable, and its arrays can be transferred.
 */
import { cellsOutside, describeCells, pillarStatistics, readFeatures } from './features.js';
import { BEV_CELLS, CAMERA_CELLS, HEAD_DIM, HEADS } from './geometry.js';
import { readFrame, readImage, readSweep, type Frame, type InputImage, type Sweep } from './scene.js';

/** A frame's files, decoded. */
export interface FrameInputs {
  readonly frame: Frame;
  readonly sweep: Sweep;
  readonly images: readonly InputImage[];
}

/** What a device takes of a frame. */
export interface PreparedFrame {
  readonly frame: Frame;
  readonly lidarPoints: number;
  /** [BEV_CELLS]: LiDAR points in each cell */
  readonly counts: Uint32Array;
  /** [keys]: 1 for an image cell outside its image */
  readonly ignore: Uint8Array;
  /** [HEADS, keys, HEAD_DIM]; keys serve as values too */
  readonly key: Float32Array<ArrayBuffer>;
}

/** Reads FRAME.json and its files, which lie in `root` if it is given. ERR_IO, ERR_FORMAT, ERR_ABORTED. */
export async function readInputs(path: string, signal?: AbortSignal, root?: string): Promise<FrameInputs> {
  const frame = await readFrame(path, signal, root);
  const [sweep, ...images] = await Promise.all([
    readSweep(frame, signal),
    ...frame.cameras.map((camera) => readImage(frame, camera, signal)),
  ]);
  return { frame, sweep, images };
}

/**
 * Describes every cell of the frame.
 *
 * @param features a backbone's feature maps instead of statistics
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT, ERR_SHAPE, ERR_DTYPE, ERR_VALUE (of that file), ERR_ABORTED
 */
export async function describeFrame(
  inputs: FrameInputs,
  features: string | undefined,
  signal?: AbortSignal,
): Promise<PreparedFrame> {
  const { frame, sweep, images } = inputs;
  const views = images.length;
  const pillars = pillarStatistics(sweep);
  const ignore = cellsOutside(images.map(({ firstRow }) => firstRow));
  const key = new Float32Array(HEADS * (BEV_CELLS + views * CAMERA_CELLS) * HEAD_DIM);
  if (features === undefined) describeCells(pillars, images, ignore, key);
  else await readFeatures(features, views, key, signal);
  return { frame, lidarPoints: sweep.count, counts: pillars.counts, ignore, key };
}
