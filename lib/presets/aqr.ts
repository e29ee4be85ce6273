/**
 * The attention bias of an adaptive query router (AQR): instead of sending a query to one expert, as MoME (CVPR 2025, mome.ts)
 * does, the router gives it a weight for each sensor, and the weights become additive terms of a CMT decoder's
 * cross-attention. docs/systems.md says what of it is published.
 */
import { RADIUS } from '../frame/geometry.js';
import { expected } from '../errors.js';
import type { TensorLike } from '../tensor.js';
import type { BiasTerm } from '../terms.js';
import { floatTensor, requireInteger, requireOneOf, requireShape, type FloatTensor } from './check.js';
import type { DenoisingPlan } from './denoising.js';
import { momeLocalMask } from './mome.js';
import { sensorKeys, type BySensor, type SensorGrids } from './sensors.js';

/** Arguments of `aqrTerms`. */
export interface AqrArgs {
  grids?: SensorGrids | undefined;
  /**
   * `global`: (w − 0.5)·2·α on all keys of a sensor; `local`: w·α·max(0, 1 − distance/radius) round the query's projection;
   * default `both`
   */
  mode?: 'global' | 'local' | 'both' | undefined;
  /** α; default 5 */
  strength?: number | undefined;
  /** float32 [B, Q] in [0, 1]: the router's weight for LiDAR, of denoising queries too */
  lidar: TensorLike;
  /** float32 [B, Q] in [0, 1]: for the cameras */
  camera: TensorLike;
  /** float32 [B, Q, 2] (y, x) in cells, of `device.project`; needed unless the mode is `global` and there are no windows */
  bevCenters?: TensorLike | undefined;
  /** float32 [B, Q, 3] (view, y, x) in cells, of `device.project`; likewise */
  cameraCenters?: TensorLike | undefined;
  /** in cells, of the local terms; default { camera: 8, bev: 3 }, which touches the cells of MoME's windows */
  radius?: BySensor | undefined;
  /** hides what is outside these windows (MoME's local attention mask); default: hides nothing */
  windows?: BySensor | undefined;
  /** uint8 [B, keys]: keys that nobody sees, such as cells of padded images */
  ignore?: TensorLike | undefined;
  /** of denoising training, whose queries stand in front of the matching ones */
  denoising?: DenoisingPlan | undefined;
}

/** Terms of a decoder layer's two attentions. */
export interface DecoderTerms {
  /** of cross-attention [B, heads, Q, keys of both sensors] */
  crossAttention: BiasTerm[];
  /** of self-attention [B, heads, Q, Q] */
  selfAttention: BiasTerm[];
}

/**
 * The biases of a decoder layer: AQR, local and padding masks of cross-attention, and the denoising mask of self-attention.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE
 */
export function aqrTerms(args: AqrArgs): DecoderTerms {
  const { bev, cameras, bevKeys, cameraKeys, keys } = sensorKeys(args.grids);
  const mode = requireOneOf(args.mode ?? 'both', ['global', 'local', 'both'], 'mode');
  const { lidar, camera, strength = 5, radius = RADIUS, windows, ignore, denoising } = args;
  const [batch, queries] = requireShape(lidar, ['B', 'Q'], 'lidar') as [number, number];
  requireShape(camera, [batch, queries], 'camera');
  if (denoising && (denoising.batch !== batch || denoising.length !== queries)) {
    const received = `[${batch}, ${queries}]`;
    throw expected(
      'ERR_SHAPE',
      `[${denoising.batch}, ${denoising.length}], as denoising has it,`,
      'lidar',
      received,
    );
  }

  const crossAttention: BiasTerm[] = [];
  if (mode !== 'local') {
    const segments = [
      { start: 0, length: bevKeys, weights: lidar },
      { start: bevKeys, length: cameraKeys, weights: camera },
    ];
    crossAttention.push({ type: 'modality', strength, segments });
  }
  if (mode !== 'global' || windows) {
    const { bevCenters, cameraCenters } = args;
    requireShape(bevCenters, [batch, queries, 2], 'bevCenters');
    requireShape(cameraCenters, [batch, queries, 3], 'cameraCenters');
    const centers = { bev: bevCenters!, cameras: cameraCenters! };
    if (mode !== 'global') {
      crossAttention.push({
        type: 'spatial',
        strength,
        segments: [
          { start: 0, grid: bev, centers: centers.bev, radius: radius.bev, weights: lidar },
          { start: bevKeys, grid: cameras, centers: centers.cameras, radius: radius.camera, weights: camera },
        ],
      });
    }
    if (windows) {
      const grids = { bev, cameras };
      const local = { bevCenters: centers.bev, cameraCenters: centers.cameras };
      crossAttention.push(momeLocalMask({ grids, ...local, windows }));
    }
  }
  if (ignore) {
    requireShape(ignore, [batch, keys], 'ignore');
    crossAttention.push({ type: 'padding', ignore });
  }
  return { crossAttention, selfAttention: denoising ? [...denoising.terms] : [] };
}

/** Every weight of a fresh router is sigmoid(1.5) = 0.8176: both sensors are trusted, and trusted alike. */
const FRESH_BIAS = 1.5;

/** Parameters of a router before training. */
export interface FreshRouter {
  /** [2, embed], zeros */
  weight: FloatTensor;
  /** [2], 1.5 */
  bias: FloatTensor;
}

/**
 * The router before training, for `device.router`: two outputs, LiDAR and cameras.
 *
 * @param embed channels of a query, E
 * @throws AttentionBiasError ERR_VALUE
 */
export function freshAqrRouter(embed: number): FreshRouter {
  const bias = floatTensor([2]);
  bias.data.fill(FRESH_BIAS);
  return { weight: floatTensor([2, requireInteger(embed, 1, 'embed')]), bias };
}
