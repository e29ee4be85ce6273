/** The keys of a LiDAR-camera decoder (CMT, MoME): bird's-eye-view cells, then the cells of each camera, row by row. */
import { BEV_SHAPE, FEATURE_SHAPE } from '../frame/geometry.js';
import { requireIntegers, type Size } from './check.js';

/** Sizes of the grids that keys are cells of. */
export interface SensorGrids {
  /** [rows, columns] of the bird's-eye view; default [180, 180] */
  bev?: Size | undefined;
  /** [cameras, rows, columns] of the feature maps; default [6, 40, 100] */
  cameras?: readonly [number, number, number] | undefined;
}

/** Grids with defaults filled in, and how many keys they have: BEV cells first, then those of the cameras. */
export interface SensorKeys {
  readonly bev: [number, number];
  readonly cameras: [number, number, number];
  /** number of keys of each, and of both */
  readonly bevKeys: number;
  readonly cameraKeys: number;
  readonly keys: number;
}

/** What a number for each sensor means is said where it is used. */
export interface BySensor {
  bev: number;
  camera: number;
}

/** The grids with defaults filled in, and their numbers of keys. ERR_VALUE */
export function sensorKeys(grids: SensorGrids = {}): SensorKeys {
  const bev = requireIntegers(grids.bev ?? BEV_SHAPE, 2, 1, 'grids.bev') as [number, number];
  const cameras = requireIntegers(grids.cameras ?? [6, ...FEATURE_SHAPE], 3, 1, 'grids.cameras');
  const bevKeys = bev[0] * bev[1];
  const cameraKeys = cameras.reduce((product, size) => product * size, 1);
  return {
    bev,
    cameras: cameras as [number, number, number],
    bevKeys,
    cameraKeys,
    keys: bevKeys + cameraKeys,
  };
}
