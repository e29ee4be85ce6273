/** The main job: a LiDAR-camera frame through the whole AQR bias stack. */
import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

import type { Device, DeviceInfo } from '../device.js';
import { expected } from '../errors.js';
import { writeAtomically } from '../formats/atomic.js';
import { ioError, throwIfAborted } from '../formats/io.js';
import type { WritableTensor } from '../formats/host.js';
import { writeSafetensors } from '../formats/safetensors.js';
import { biasStack, keyMass, modalityMass, type StackInput } from './attention.js';
import {
  cellsOutside,
  describeCells,
  pillarStatistics,
  queryContent,
  readFeatures,
  splitHeads,
} from './features.js';
import {
  BEV_CELLS,
  BEV_SHAPE,
  CAMERA_CELLS,
  FEATURE_SHAPE,
  HEAD_DIM,
  HEADS,
  inputMatrix,
  INPUT_SHAPE,
  POINT_CLOUD_RANGE,
  RADIUS,
  WINDOW,
} from './geometry.js';
import { bevPicture, cameraPictures, type PictureInput } from './pictures.js';
import { placeQueries } from './queries.js';
import { evidenceRouter, fileRouter, route, type RouterInput } from './router.js';
import { readFrame, readImage, readSweep } from './scene.js';

export interface FrameOptions {
  /** FRAME.json */
  readonly frame: string;
  /** folder of the outputs, made where it does not exist */
  readonly out: string;
  readonly queries: number;
  /** of the spread of the queries that stand on no box */
  readonly seed: number;
  /** α of the modality and the spatial term */
  readonly strength: number;
  /** a backbone's feature maps instead of statistics */
  readonly features?: string | undefined;
  /** a trained router's weight and bias instead of sensor evidence */
  readonly router?: string | undefined;
  /** whether a query sees nothing but its windows */
  readonly window: boolean;
  /** whether the fused bias is written too */
  readonly dense: boolean;
  readonly pictures: boolean;
}

/** What summary.json holds. */
export interface FrameSummary {
  readonly frame: string;
  /** the device that computed */
  readonly device: DeviceInfo;
  readonly shape: { batch: 1; heads: number; queries: number; keys: number; headDim: number };
  readonly cameras: readonly string[];
  readonly lidarPoints: number;
  readonly queries: {
    onBoxes: number;
    spread: number;
    seenByACamera: number;
    boxesLeftOut: number;
    seed: number;
  };
  readonly router: RouterInput['description'] & { mean: { lidar: number; camera: number } };
  /** the terms of the bias, without their tensors */
  readonly bias: readonly { type: string; [field: string]: unknown }[];
  /** share of the attention, averaged over heads and queries */
  readonly attentionMass: { lidar: number; camera: number; perCamera: Readonly<Record<string, number>> };
  /** queries that see no key */
  readonly blindQueries: number;
  /** milliseconds of each stage; `attention` is the one call over all keys */
  readonly ms: Readonly<Record<string, number>>;
  readonly files: readonly string[];
}

/** Called when a stage begins. */
export type Progress = (stage: string, index: number, count: number) => void;

const mean = (values: ArrayLike<number>): number =>
  Array.from(values).reduce((a, b) => a + b, 0) / values.length;

async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true });
    if (!(await stat(path)).isDirectory()) throw expected('ERR_IO', 'a folder', path, 'something else');
  } catch (cause) {
    throw ioError('a folder that can be made', path, cause);
  }
}

function requireInteger(value: number, least: number, most: number, name: string): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw expected('ERR_VALUE', `an integer from ${least} to ${most}`, name, String(value));
}

/**
 * Runs a frame on a device and writes frame.safetensors, summary.json, bev.png and a picture a camera to the folder `out`,
 * each whole or not at all, and none before everything is computed.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT (FRAME.json, the sweep, an image, a tensors file), ERR_SHAPE, ERR_DTYPE,
 *   ERR_VALUE, ERR_MEMORY, ERR_ABORTED
 */
export async function runFrame(
  options: FrameOptions,
  device: Device,
  context: { signal?: AbortSignal | undefined; progress?: Progress | undefined } = {},
): Promise<FrameSummary> {
  const { signal } = context;
  requireInteger(options.queries, 1, 1_000_000, 'queries');
  requireInteger(options.seed, 0, 2 ** 32 - 1, 'seed');
  const stages = ['read', 'features', 'project', 'router', 'attention', 'mass', 'pictures', 'write'] as const;
  const ms: Record<string, number> = {};
  const started = performance.now();
  const stage = async <T>(name: (typeof stages)[number], work: () => Promise<T> | T): Promise<T> => {
    throwIfAborted(signal, options.frame);
    context.progress?.(name, stages.indexOf(name), stages.length);
    const begin = performance.now();
    const result = await work();
    ms[name] = performance.now() - begin;
    return result;
  };

  const { frame, sweep, images } = await stage('read', async () => {
    const frame = await readFrame(options.frame, signal);
    const [sweep, ...images] = await Promise.all([
      readSweep(frame, signal),
      ...frame.cameras.map((camera) => readImage(frame, camera, signal)),
    ]);
    await makeFolder(options.out);
    return { frame, sweep, images };
  });

  const views = frame.cameras.length;
  const keys = BEV_CELLS + views * CAMERA_CELLS;
  const pillars = pillarStatistics(sweep);
  const ignore = cellsOutside(images.map(({ firstRow }) => firstRow));
  // Keys serve as values too.
  using key = device.tensor([1, HEADS, keys, HEAD_DIM]);
  await stage('features', async () => {
    if (options.features === undefined) describeCells(pillars, images, ignore, key.data);
    else await readFeatures(options.features, views, key.data, signal);
  });

  const { referencePoints, boxes, boxesLeftOut } = placeQueries(frame.boxes, options.queries, options.seed);
  const matrices = frame.cameras.map(({ lidar2img }) => inputMatrix(lidar2img, frame.imageShape));
  const { bevCenters, cameraCenters } = await stage('project', () =>
    device.project({
      referencePoints,
      pointCloudRange: POINT_CLOUD_RANGE,
      lidar2img: {
        data: Float32Array.from(matrices.flatMap((matrix) => [...matrix])),
        shape: [1, views, 4, 4],
      },
      imageShape: INPUT_SHAPE,
      featureShape: FEATURE_SHAPE,
      bevShape: BEV_SHAPE,
      signal,
    }),
  );
  const cells = Array.from({ length: options.queries }, (_, q): [number, number] => {
    const [row, column] = bevCenters.data.subarray(2 * q);
    const [view, y, x] = cameraCenters.data.subarray(3 * q);
    const inside = row! < BEV_SHAPE[0] && column! < BEV_SHAPE[1];
    const image = view! < 0 ? -1 : BEV_CELLS + (view! * FEATURE_SHAPE[0] + y!) * FEATURE_SHAPE[1] + x!;
    // A cell above a flat image is projected to, but shows nothing.
    return [inside ? row! * BEV_SHAPE[1] + column! : -1, image < 0 || ignore[image] ? -1 : image];
  });
  const content = queryContent(key.data, keys, cells);
  using query = device.tensor([1, HEADS, options.queries, HEAD_DIM]);
  splitHeads(content, query.data);

  const router =
    options.router === undefined
      ? evidenceRouter(
          pillars.counts,
          bevCenters.data,
          cells.map(([, image]) => image >= 0),
        )
      : await fileRouter(options.router, content, signal);
  const weights = await stage('router', () => route(device, router, signal));
  const column = (i: number): Float32Array =>
    Float32Array.from({ length: options.queries }, (_, q) => weights.data[2 * q + i]!);
  const stack: StackInput = {
    lidar: column(0),
    camera: column(1),
    bevCenters: bevCenters.data,
    cameraCenters: cameraCenters.data,
    ignore,
    strength: options.strength,
    window: options.window,
  };
  const bias = biasStack(stack);
  // On a GPU the keys are copied once; they are the largest by far, and every attention below takes them.
  using copied = device.info.backend === 'cuda' ? await device.toDevice(key, { signal }) : undefined;
  const placed = copied ?? key;
  const { out, lse } = await stage('attention', () =>
    device.attention({ query, key: placed, value: placed, bias, signal }),
  );
  const { modality, mass } = await stage('mass', async () => ({
    modality: await modalityMass(device, { query, key: placed, bias, signal }),
    mass: await keyMass(device, { query: query.data, key: placed, lse: lse.data, stack, signal }),
  }));

  const pictures = await stage('pictures', async () => {
    if (!options.pictures) return {};
    const input: PictureInput = {
      mass,
      sweep,
      images,
      matrices,
      boxes: frame.boxes,
      boxQueries: boxes.length,
      bevCenters: bevCenters.data,
      cameraCenters: cameraCenters.data,
      window: options.window,
    };
    const cameras = await cameraPictures(input);
    return Object.fromEntries([
      ['bev.png', await bevPicture(input)],
      ...cameras.map((picture, view): [string, Buffer] => [`${frame.cameras[view]!.name}.png`, picture]),
    ]);
  });

  const perCamera = frame.cameras.map(({ name }, view): [string, number] => {
    const start = BEV_CELLS + view * CAMERA_CELLS;
    return [name, mass.subarray(start, start + CAMERA_CELLS).reduce((a, b) => a + b, 0)];
  });
  const files = ['frame.safetensors', ...Object.keys(pictures), 'summary.json'];
  const summarise = (): FrameSummary => ({
    frame: options.frame,
    device: device.info,
    shape: { batch: 1, heads: HEADS, queries: options.queries, keys, headDim: HEAD_DIM },
    cameras: frame.cameras.map(({ name }) => name),
    lidarPoints: sweep.count,
    queries: {
      onBoxes: boxes.length,
      spread: options.queries - boxes.length,
      seenByACamera: cells.filter(([, image]) => image >= 0).length,
      boxesLeftOut,
      seed: options.seed,
    },
    router: { ...router.description, mean: { lidar: mean(stack.lidar), camera: mean(stack.camera) } },
    bias: [
      { type: 'modality', strength: options.strength },
      { type: 'spatial', strength: options.strength, radius: RADIUS },
      { type: 'padding', cells: ignore.reduce((a, b) => a + b, 0) },
      ...(options.window ? [{ type: 'window', size: WINDOW }] : []),
    ],
    attentionMass: {
      lidar: mass.subarray(0, BEV_CELLS).reduce((a, b) => a + b, 0),
      camera: perCamera.reduce((sum, [, share]) => sum + share, 0),
      perCamera: Object.fromEntries(perCamera),
    },
    blindQueries: blindQueries(lse.data, options.queries),
    ms: { ...ms, total: performance.now() - started },
    files,
  });
  await stage('write', async () => {
    const tensors: Record<string, WritableTensor> = {
      referencePoints,
      bevCenters,
      cameraCenters,
      weights,
      out,
      lse,
      modalityMass: { data: modality, shape: [1, HEADS, options.queries, 2] },
      keyMass: { data: new Float32Array(mass), shape: [keys] },
    };
    if (options.dense)
      tensors.bias = await device.bias({ shape: [1, 1, options.queries, keys], bias, signal });
    await writeSafetensors(join(options.out, 'frame.safetensors'), tensors, { signal });
    for (const [name, picture] of Object.entries(pictures))
      await writeAtomically(join(options.out, name), [picture], { signal });
  });
  const summary = summarise();
  const text = new TextEncoder().encode(`${JSON.stringify(summary, null, 2)}\n`);
  await writeAtomically(join(options.out, 'summary.json'), [text], { signal });
  for (const tensor of [bevCenters, cameraCenters, weights, out, lse]) tensor.dispose();
  return summary;
}

/** Queries whose lse is −∞ in every head. */
function blindQueries(lse: Float32Array, queries: number): number {
  let blind = 0;
  for (let q = 0; q < queries; ++q) {
    let sees = false;
    for (let head = 0; head < HEADS; ++head) sees ||= lse[head * queries + q]! > -Infinity;
    if (!sees) ++blind;
  }
  return blind;
}
