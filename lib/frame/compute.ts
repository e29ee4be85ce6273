/** The second part of a frame: what a device computes. */
import type { Device } from '../device.js';
import type { HostTensor } from '../formats/host.js';
import type { Tensor } from '../tensor.js';
import type { BiasTerm } from '../terms.js';
import { biasStack, keyMass, modalityMass, type StackInput } from './attention.js';
import { queryContent, splitHeads } from './features.js';
import {
  BEV_CELLS,
  BEV_SHAPE,
  FEATURE_SHAPE,
  HEAD_DIM,
  HEADS,
  inputMatrix,
  INPUT_SHAPE,
  POINT_CLOUD_RANGE,
} from './geometry.js';
import type { PictureInput } from './pictures.js';
import type { FrameInputs, PreparedFrame } from './prepare.js';
import { placeQueries } from './queries.js';
import { evidenceRouter, fileRouter, route, type RouterInput } from './router.js';
import type { Box } from './scene.js';
import type { FrameSettings, Stage } from './settings.js';

export interface ComputedFrame {
  readonly settings: FrameSettings;
  /** float32 [1, Q, 3]: (x, y, z) in [0, 1] of the point cloud range */
  readonly referencePoints: { readonly data: Float32Array; readonly shape: readonly [1, number, 3] };
  /** of the first queries, one each */
  readonly boxes: readonly Box[];
  readonly boxesLeftOut: number;
  /** of each camera, [4, 4], to pixels of the network's input */
  readonly matrices: readonly Float32Array[];
  /** [1, Q, 2] (y, x) */
  readonly bevCenters: Tensor;
  /** [1, Q, 3] (view, y, x) */
  readonly cameraCenters: Tensor;
  /** whether a camera shows each query */
  readonly seen: readonly boolean[];
  readonly router: RouterInput['description'];
  /** [1, Q, 2]: LiDAR, camera */
  readonly weights: Tensor;
  readonly stack: StackInput;
  readonly bias: readonly BiasTerm[];
  /** [1, HEADS, Q, HEAD_DIM] */
  readonly out: Tensor;
  /** [1, HEADS, Q] */
  readonly lse: Tensor;
  /** [HEADS, Q, 2]: the share of each query's attention on LiDAR and on cameras */
  readonly modality: Float32Array;
  /** [keys]: each key's mean probability over heads and queries */
  readonly mass: Float64Array;
}

/** The tensors that a frame gives, in the order of its file. */
export const FRAME_TENSORS = [
  'referencePoints',
  'bevCenters',
  'cameraCenters',
  'weights',
  'out',
  'lse',
  'modalityMass',
  'keyMass',
] as const;

/**
 * Places the queries, and computes their attention under the AQR bias and what it looks at.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT, ERR_SHAPE, ERR_DTYPE (a router's file), ERR_VALUE, ERR_MEMORY, ERR_DEVICE,
 *   ERR_ABORTED
 */
export async function computeFrame(
  prepared: PreparedFrame,
  settings: FrameSettings,
  device: Device,
  context: { readonly signal?: AbortSignal | undefined; readonly stage: Stage },
): Promise<ComputedFrame> {
  const made: Tensor[] = [];
  try {
    return await compute(prepared, settings, device, context, made);
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}

/** @param made gets the tensors that are part of the result */
async function compute(
  { frame, counts, ignore, key }: PreparedFrame,
  settings: FrameSettings,
  device: Device,
  { signal, stage }: { readonly signal?: AbortSignal | undefined; readonly stage: Stage },
  made: Tensor[],
): Promise<ComputedFrame> {
  const views = frame.cameras.length;
  const keys = ignore.length;
  const { referencePoints, boxes, boxesLeftOut } = placeQueries(frame.boxes, settings.queries, settings.seed);
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
  made.push(bevCenters, cameraCenters);
  const cells = Array.from({ length: settings.queries }, (_, q): [number, number] => {
    const [row, column] = bevCenters.data.subarray(2 * q);
    const [view, y, x] = cameraCenters.data.subarray(3 * q);
    const inside = row! < BEV_SHAPE[0] && column! < BEV_SHAPE[1];
    const image = view! < 0 ? -1 : BEV_CELLS + (view! * FEATURE_SHAPE[0] + y!) * FEATURE_SHAPE[1] + x!;
    // A cell above a flat image is projected to, but shows nothing.
    return [inside ? row! * BEV_SHAPE[1] + column! : -1, image < 0 || ignore[image] ? -1 : image];
  });
  const seen = cells.map(([, image]) => image >= 0);
  const content = queryContent(key, keys, cells);
  using query = device.tensor([1, HEADS, settings.queries, HEAD_DIM]);
  splitHeads(content, query.data);

  const router =
    settings.router === undefined
      ? evidenceRouter(counts, bevCenters.data, seen)
      : await fileRouter(settings.router, content, signal);
  const weights = await stage('router', () => route(device, router, signal));
  made.push(weights);
  const column = (i: number): Float32Array =>
    Float32Array.from({ length: settings.queries }, (_, q) => weights.data[2 * q + i]!);
  const stack: StackInput = {
    lidar: column(0),
    camera: column(1),
    bevCenters: bevCenters.data,
    cameraCenters: cameraCenters.data,
    ignore,
    strength: settings.strength,
    window: settings.window,
  };
  const bias = biasStack(stack);
  const host = { data: key, shape: [1, HEADS, keys, HEAD_DIM] };
  // On a GPU the keys are copied once; they are the largest by far, and every attention below takes them.
  using copied = device.info.backend === 'cuda' ? await device.toDevice(host, { signal }) : undefined;
  const placed = copied ?? host;
  const { out, lse } = await stage('attention', () =>
    device.attention({ query, key: placed, value: placed, bias, signal }),
  );
  made.push(out, lse);
  const { modality, mass } = await stage('mass', async () => ({
    modality: await modalityMass(device, { query, key: placed, bias, signal }),
    mass: await keyMass(device, { query, key: placed, lse, bias, signal }),
  }));
  return {
    ...{ settings, referencePoints, boxes, boxesLeftOut, matrices, bevCenters, cameraCenters, seen },
    ...{ router: router.description, weights, stack, bias, out, lse, modality, mass },
  };
}

/** The tensors by the names of `FRAME_TENSORS`; some are over the device's own, which `disposeFrame` frees. */
export function frameTensors(computed: ComputedFrame): Record<(typeof FRAME_TENSORS)[number], HostTensor> {
  const host = ({
    data,
    shape,
  }: {
    data: Float32Array;
    shape: readonly number[];
  }): HostTensor<'float32'> => ({
    data,
    shape,
    dtype: 'float32',
  });
  const { referencePoints, bevCenters, cameraCenters, weights, out, lse, modality, mass } = computed;
  return {
    referencePoints: host(referencePoints),
    bevCenters: host(bevCenters),
    cameraCenters: host(cameraCenters),
    weights: host(weights),
    out: host(out),
    lse: host(lse),
    modalityMass: host({ data: modality, shape: [1, HEADS, modality.length / HEADS / 2, 2] }),
    keyMass: host({ data: new Float32Array(mass), shape: [mass.length] }),
  };
}

/** What the pictures of a frame show. */
export function pictureInput({ frame, sweep, images }: FrameInputs, computed: ComputedFrame): PictureInput {
  return {
    mass: computed.mass,
    sweep,
    images,
    matrices: computed.matrices,
    boxes: frame.boxes,
    boxQueries: computed.boxes.length,
    bevCenters: computed.bevCenters.data,
    cameraCenters: computed.cameraCenters.data,
    window: computed.settings.window,
  };
}

/** The fused bias, float32 [1, 1, Q, keys]: 203 MB at 900 queries and six cameras. */
export async function denseBias(
  { bias, stack }: ComputedFrame,
  device: Device,
  signal?: AbortSignal,
): Promise<Tensor> {
  return device.bias({ shape: [1, 1, stack.lidar.length, stack.ignore.length], bias, signal });
}

/** Frees what the device made. */
export function disposeFrame({ bevCenters, cameraCenters, weights, out, lse }: ComputedFrame): void {
  for (const tensor of [bevCenters, cameraCenters, weights, out, lse]) tensor.dispose();
}
