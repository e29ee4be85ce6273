/** What a frame's attention was, in numbers. */
import type { ComputedFrame } from './compute.js';
import { BEV_CELLS, CAMERA_CELLS, HEAD_DIM, HEADS, POINT_CLOUD_RANGE, RADIUS, WINDOW } from './geometry.js';
import type { PreparedFrame } from './prepare.js';
import type { RouterInput } from './router.js';

/** The summary of a frame that is the same wherever and whenever it is computed, but for rounding. */
export interface AttentionSummary {
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
  /** queries by their weights, 0 to 1 in `bins` equal steps */
  readonly weights: { bins: number; lidar: readonly number[]; camera: readonly number[] };
  /**
   * by the queries' horizontal distance from the LiDAR, in metres from an edge up to the next: how many stand there, and the
   * mean share of their attention; null where there are none that see a key
   */
  readonly distance: {
    edges: readonly number[];
    queries: readonly number[];
    lidar: readonly (number | null)[];
    camera: readonly (number | null)[];
  };
  /** queries that see no key */
  readonly blindQueries: number;
}

const WEIGHT_BINS = 20;
/** The farthest query of the range stands at 76 m. */
const DISTANCE_EDGES = [0, 10, 20, 30, 40, 50, 60, 70, 80];

const mean = (values: ArrayLike<number>): number =>
  Array.from(values).reduce((a, b) => a + b, 0) / values.length;

function weightHistogram(weights: Float32Array): number[] {
  const counts = new Array<number>(WEIGHT_BINS).fill(0);
  for (const weight of weights)
    counts[Math.min(WEIGHT_BINS - 1, Math.max(0, Math.floor(weight * WEIGHT_BINS)))]! += 1;
  return counts;
}

/** Whether each query sees a key, in any head. */
function sight(lse: Float32Array, queries: number): boolean[] {
  return Array.from({ length: queries }, (_, q) => {
    for (let head = 0; head < HEADS; ++head) if (lse[head * queries + q]! > -Infinity) return true;
    return false;
  });
}

/** The share of each query's attention on a sensor, averaged over heads. */
function sensorShare(modality: Float32Array, queries: number, sensor: 0 | 1): Float64Array {
  return Float64Array.from({ length: queries }, (_, q) => {
    let sum = 0;
    for (let head = 0; head < HEADS; ++head) sum += modality[(head * queries + q) * 2 + sensor]!;
    return sum / HEADS;
  });
}

function massByDistance(computed: ComputedFrame, sees: readonly boolean[]): AttentionSummary['distance'] {
  const { data } = computed.referencePoints;
  const [x0, y0, , x1, y1] = POINT_CLOUD_RANGE;
  const bins = DISTANCE_EDGES.length - 1;
  const bin = sees.map((_, q) => {
    const x = x0 + data[3 * q]! * (x1 - x0);
    const y = y0 + data[3 * q + 1]! * (y1 - y0);
    return Math.min(bins - 1, Math.floor(Math.hypot(x, y) / DISTANCE_EDGES[1]!));
  });
  const means = (share: Float64Array): (number | null)[] => {
    const sums = new Float64Array(bins);
    const counts = new Float64Array(bins);
    bin.forEach((at, q) => {
      if (!sees[q]) return;
      sums[at]! += share[q]!;
      counts[at]! += 1;
    });
    return Array.from(sums, (sum, at) => (counts[at]! > 0 ? sum / counts[at]! : null));
  };
  const queries = new Array<number>(bins).fill(0);
  for (const at of bin) queries[at]! += 1;
  return {
    edges: DISTANCE_EDGES,
    queries,
    lidar: means(sensorShare(computed.modality, sees.length, 0)),
    camera: means(sensorShare(computed.modality, sees.length, 1)),
  };
}

export function summarise(
  { frame, lidarPoints, ignore }: PreparedFrame,
  computed: ComputedFrame,
): AttentionSummary {
  const { settings, stack, mass, boxes } = computed;
  const { queries, strength } = settings;
  const perCamera = frame.cameras.map(({ name }, view): [string, number] => {
    const start = BEV_CELLS + view * CAMERA_CELLS;
    return [name, mass.subarray(start, start + CAMERA_CELLS).reduce((a, b) => a + b, 0)];
  });
  const sees = sight(computed.lse.data, queries);
  return {
    shape: { batch: 1, heads: HEADS, queries, keys: ignore.length, headDim: HEAD_DIM },
    cameras: frame.cameras.map(({ name }) => name),
    lidarPoints,
    queries: {
      onBoxes: boxes.length,
      spread: queries - boxes.length,
      seenByACamera: computed.seen.filter(Boolean).length,
      boxesLeftOut: computed.boxesLeftOut,
      seed: settings.seed,
    },
    router: { ...computed.router, mean: { lidar: mean(stack.lidar), camera: mean(stack.camera) } },
    bias: [
      { type: 'modality', strength },
      { type: 'spatial', strength, radius: RADIUS },
      { type: 'padding', cells: ignore.reduce((a, b) => a + b, 0) },
      ...(settings.window ? [{ type: 'window', size: WINDOW }] : []),
    ],
    attentionMass: {
      lidar: mass.subarray(0, BEV_CELLS).reduce((a, b) => a + b, 0),
      camera: perCamera.reduce((sum, [, share]) => sum + share, 0),
      perCamera: Object.fromEntries(perCamera),
    },
    weights: {
      bins: WEIGHT_BINS,
      lidar: weightHistogram(stack.lidar),
      camera: weightHistogram(stack.camera),
    },
    distance: massByDistance(computed, sees),
    blindQueries: sees.filter((sees) => !sees).length,
  };
}
