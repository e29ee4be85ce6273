/**
 * MoME: K. Park, Y. Kim, D. Kim, J. W. Choi, "Resilient Sensor Fusion under Adverse Sensor Failures via Multi-Modal Expert
 * Fusion", CVPR 2025. A router looks at each query's surroundings in both sensors (local attention mask, LAM) and sends the
 * query to one of three decoders: over both sensors' features, over LiDAR's, or over the cameras'.
 */
import { WINDOW } from '../frame/geometry.js';
import { expected } from '../errors.js';
import type { TensorLike } from '../tensor.js';
import type { BiasTerm, WindowTerm } from '../terms.js';
import {
  floatTensor,
  requireData,
  requireFloats,
  requireInteger,
  requireShape,
  type HostArray,
} from './check.js';
import { sensorKeys, type BySensor, type SensorGrids } from './sensors.js';

/** Arguments of `momeLocalMask`. */
export interface LocalMaskArgs {
  grids?: SensorGrids | undefined;
  /** float32 [B, Q, 2] (y, x) in cells, of `device.project` */
  bevCenters: TensorLike;
  /** float32 [B, Q, 3] (view, y, x) in cells, of `device.project` */
  cameraCenters: TensorLike;
  /** odd sides of the windows in cells; default { camera: 15, bev: 5 } */
  windows?: BySensor | undefined;
  /**
   * what of the cameras a query sees that no camera sees: `nothing` (default), or the window of the `first cell` of the first
   * camera, as in the published code, which takes such a query's projection for (0, 0, 0); its centres must be in host memory
   */
  unseen?: 'nothing' | 'first cell' | undefined;
}

/**
 * The local attention mask of the router's cross-attention: of the bird's-eye view and of the query's camera only the window
 * round its projection is visible.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function momeLocalMask(args: LocalMaskArgs): WindowTerm {
  const { bev, cameras, bevKeys } = sensorKeys(args.grids);
  const size = args.windows ?? WINDOW;
  for (const sensor of ['bev', 'camera'] as const) {
    requireInteger(size[sensor], 1, `windows.${sensor}`);
    if (size[sensor] % 2 === 0)
      throw expected('ERR_VALUE', 'an odd integer', `windows.${sensor}`, String(size[sensor]));
  }
  const [batch, queries] = requireShape(args.bevCenters, ['B', 'Q', 2], 'bevCenters') as [number, number];
  requireShape(args.cameraCenters, [batch, queries, 3], 'cameraCenters');
  const centers = args.unseen === 'first cell' ? seenSomewhere(args.cameraCenters) : args.cameraCenters;
  return {
    type: 'window',
    segments: [
      { start: 0, grid: bev, centers: args.bevCenters, size: size.bev },
      { start: bevKeys, grid: cameras, centers, size: size.camera },
    ],
  };
}

function seenSomewhere(centers: TensorLike): TensorLike {
  const { data, shape } = requireFloats(centers, ['B', 'Q', 3], 'cameraCenters');
  const moved = data.slice();
  for (let i = 0; i < moved.length; i += 3) {
    const projected = data[i]! >= 0 && !Number.isNaN(data[i + 1]!) && !Number.isNaN(data[i + 2]!);
    if (!projected) moved.fill(0, i, i + 3);
  }
  return { data: moved, shape };
}

/** The experts in the order of the router's outputs. */
export const momeExperts = ['fused', 'lidar', 'camera'] as const;

/**
 * The expert of each query, as an index into `momeExperts`: the largest of the router's outputs, the first of equal ones.
 *
 * @param logits float32 [B, Q, 3] in host memory: what the router's linear layer gives, before any softmax
 * @returns int32 [B, Q]
 * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE; ERR_VALUE for a NaN
 */
export function momeRoute(logits: TensorLike): HostArray<Int32Array<ArrayBuffer>> {
  const { data, shape } = requireFloats(logits, ['B', 'Q', 3], 'logits');
  const experts = new Int32Array(data.length / 3);
  for (let q = 0; q < experts.length; ++q) {
    const logitsOf = data.subarray(3 * q, 3 * q + 3);
    experts[q] = logitsOf.indexOf(Math.max(...logitsOf));
    if (experts[q]! < 0) throw expected('ERR_VALUE', 'numbers', 'logits', `NaN for query ${q}`);
  }
  return { data: experts, shape: shape.slice(0, 2) };
}

/** Arguments of `momeExpertTerms`. */
export interface ExpertTermsArgs {
  grids?: SensorGrids | undefined;
  /** int32 [B, Q] in host memory: indices into `momeExperts`, as `momeRoute` gives them */
  experts: HostArray<Int32Array>;
}

/** Terms of a decoder layer's two attentions, where each query has an expert. */
export interface ExpertTerms {
  /** of cross-attention [B, heads, Q, keys of both sensors]: a query sees the features of its expert */
  crossAttention: BiasTerm[];
  /** of self-attention [B, heads, Q, Q]: a query sees those of the same expert */
  selfAttention: BiasTerm[];
}

/**
 * Three experts as masks of one decoder, for all queries in one call. MoME runs a decoder for each expert on its queries and
 * its keys alone; under these masks the attentions are the same. Other terms, such as a denoising mask, stack on them.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE, ERR_DTYPE
 */
export function momeExpertTerms({ grids, experts }: ExpertTermsArgs): ExpertTerms {
  const { bevKeys, cameraKeys } = sensorKeys(grids);
  const { data, shape } = requireData(experts, ['B', 'Q'], 'experts');
  data.forEach((expert, i) => requireInteger(expert, 0, `experts[${i}]`, 2));
  // A `window` over all of a sensor's keys shows a query all of them, or none where it has no centre: a mask of two numbers a
  // query instead of one for each of its 56,400 keys.
  const all = (start: number, length: number, blind: number): WindowTerm['segments'][number] => {
    const centers = floatTensor([...shape, 2]);
    data.forEach((expert, i) => {
      if (expert === blind) centers.data.fill(NaN, 2 * i, 2 * i + 2);
    });
    return { start, grid: [1, length], centers, size: 2 * length + 1 };
  };
  const [lidarOnly, cameraOnly] = [1, 2];
  const ids = { data, shape };
  return {
    crossAttention: [
      { type: 'window', segments: [all(0, bevKeys, cameraOnly), all(bevKeys, cameraKeys, lidarOnly)] },
    ],
    selfAttention: [{ type: 'blockDiagonal', queryIds: ids, keyIds: ids }],
  };
}
