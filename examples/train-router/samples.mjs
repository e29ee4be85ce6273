// What one frame under one failure is for the attention: keys, values, targets, and the evidence that the router is given.
import { normalFrom, randomSource } from '../../dist/random.js';
import { INPUT_SHAPE, POINT_CLOUD_RANGE } from '../../dist/frame/geometry.js';
import { FAILURES } from './failures.mjs';
import { GREY_SHAPE } from './scenes.mjs';

/** Cells of 1.8 m, and of 32×32 pixels: CMT's layout, coarser. */
export const BEV_SHAPE = [60, 60];
export const FEATURE_SHAPE = [20, 50];
export const BEV_KEYS = BEV_SHAPE[0] * BEV_SHAPE[1];
export const HEAD_DIM = 16;
/** Channels of a code: what stands at a place. */
export const VALUE_DIM = 16;

export const FEATURES = [
  'log(1 + LiDAR points within 1.5 m)',
  'log(1 + contrast)',
  'brightness',
  'log range',
];

const NEAR = 1.5; // metres
/** A place is read whole by a LiDAR with this many points within 1.5 m, and by a camera with this much contrast. */
const WHOLE = { points: 10, contrast: 8 };
/** Below half, a sensor counts as lost for a query. */
export const LOST = 0.5;

/** LiDAR points within 1.5 m of (x, y). */
function pointsNear({ points, columns, count }, x, y) {
  let near = 0;
  for (let at = 0; at < count * columns; at += columns) {
    const [dx, dy] = [points[at] - x, points[at + 1] - y];
    near += dx * dx + dy * dy < NEAR * NEAR;
  }
  return near;
}

/** Mean and standard deviation of the grey levels in 3×3 cells round a camera cell (view, y, x). */
function patch(images, [view, row, column]) {
  const [height, width] = GREY_SHAPE;
  const side = width / FEATURE_SHAPE[1];
  const [top, bottom] = [Math.max(0, (row - 1) * side), Math.min(height, (row + 2) * side)];
  const [left, right] = [Math.max(0, (column - 1) * side), Math.min(width, (column + 2) * side)];
  let [sum, squares] = [0, 0];
  for (let y = top; y < bottom; ++y) {
    for (let x = left; x < right; ++x) {
      const level = images[view][y * width + x];
      sum += level;
      squares += level * level;
    }
  }
  const count = (bottom - top) * (right - left);
  const mean = sum / count;
  return { brightness: mean, contrast: Math.sqrt(Math.max(0, squares / count - mean * mean)) };
}

/** What the two sensors measure at each proposal, from the data that they give. */
function measure({ sweep, images }, proposals) {
  return proposals.map(({ point, camera }) => ({
    points: pointsNear(sweep, point[0], point[1]),
    ...patch(images, camera),
  }));
}

/** A fixed random vector of a text. */
function vectorOf(text, size) {
  let seed = 7;
  for (const letter of text) seed = (Math.imul(seed, 31) + letter.codePointAt(0)) >>> 0;
  const random = randomSource(seed);
  return Array.from({ length: size }, () => normalFrom(random));
}

/** The code of a place: class, size, heading and position through one fixed random matrix, of root mean square 1. */
function codeOf({ label, size, yaw, point }) {
  const facts = [
    ...vectorOf(label, 8),
    ...size.map(Math.log1p),
    Math.sin(yaw),
    Math.cos(yaw),
    ...point.map((value) => value / 20),
  ];
  const matrix = vectorOf('code', VALUE_DIM * facts.length);
  const code = Array.from({ length: VALUE_DIM }, (_, d) =>
    facts.reduce((sum, fact, i) => sum + fact * matrix[d * facts.length + i], 0),
  );
  const scale = Math.sqrt(code.reduce((sum, value) => sum + value * value, 0) / VALUE_DIM);
  return code.map((value) => value / scale);
}

/** Cells of points in metres, by device.project. */
async function project(device, { matrices }, points) {
  const [x0, y0, z0, x1, y1, z1] = POINT_CLOUD_RANGE;
  const [low, high] = [
    [x0, y0, z0],
    [x1, y1, z1],
  ];
  const relative = points.flatMap((point) => point.map((value, i) => (value - low[i]) / (high[i] - low[i])));
  const { bevCenters, cameraCenters } = await device.project({
    referencePoints: { data: Float32Array.from(relative), shape: [1, points.length, 3] },
    pointCloudRange: POINT_CLOUD_RANGE,
    lidar2img: {
      data: Float32Array.from(matrices.flatMap((matrix) => [...matrix])),
      shape: [1, matrices.length, 4, 4],
    },
    imageShape: INPUT_SHAPE,
    featureShape: FEATURE_SHAPE,
    bevShape: BEV_SHAPE,
  });
  return points.map((_, q) => ({
    bev: [...bevCenters.data.subarray(2 * q, 2 * q + 2)],
    camera: [...cameraCenters.data.subarray(3 * q, 3 * q + 3)],
  }));
}

/**
 * The queries of a scene: proposals on its boxes, then on LiDAR points drawn at random, where both sensors of the whole
 * frame read something, one a cell.
 */
export async function placeProposals(device, scene, count, seed) {
  const random = randomSource(seed);
  const { points, columns, count: pointCount } = scene.sweep;
  const drawn = Array.from({ length: 6 * count }, () => {
    const at = Math.floor(random() * pointCount) * columns;
    return { label: 'background', size: [0, 0, 0], yaw: 0, point: [...points.subarray(at, at + 3)] };
  });
  const inside = ({ point: [x, y, z] }) => {
    const [x0, y0, z0, x1, y1, z1] = POINT_CLOUD_RANGE;
    return x >= x0 && x < x1 && y >= y0 && y < y1 && z >= z0 && z < z1 && Math.hypot(x, y) > 3;
  };
  const candidates = [
    ...scene.boxes.map(({ label, size, yaw, center }) => ({ label, size, yaw, point: [...center] })),
    ...drawn,
  ].filter(inside);
  const cells = await project(
    device,
    scene,
    candidates.map(({ point }) => point),
  );
  const taken = new Set();
  const proposals = [];
  for (const [i, candidate] of candidates.entries()) {
    const { bev, camera } = cells[i];
    if (proposals.length === count || camera[0] < 0) continue;
    if (taken.has(`bev ${bev}`) || taken.has(`camera ${camera}`)) continue;
    const proposal = { ...candidate, bev, camera };
    const [{ points: near, contrast }] = measure(scene, [proposal]);
    if (near < WHOLE.points || contrast < WHOLE.contrast) continue;
    taken.add(`bev ${bev}`).add(`camera ${camera}`);
    proposals.push({ ...proposal, code: codeOf(candidate) });
  }
  return proposals;
}

/**
 * Position embeddings as CMT has them, but exact: query·key is −|distance in cells|²/2σ² within a sensor, the distance being
 * that of the key's cell to the query's projection.
 */
const SIGMA = 0.4;

/** −|p − c|²/2 = p·c − |p|²/2 − |c|²/2: both sides as vectors. */
const querySide = (p) => [...p, 1, -p.reduce((sum, value) => sum + value * value, 0) / 2];
const keySide = (c) => [...c, -c.reduce((sum, value) => sum + value * value, 0) / 2, 1];
/** Cells of different cameras are far from each other. */
const cameraPosition = ([view, row, column]) => [40 * view, row, column];
const CAMERA_CHANNEL = 4; // the BEV part has four channels, the camera part five

/** [K, HEAD_DIM] */
export function positionKeys(views) {
  const [rows, columns] = FEATURE_SHAPE;
  const keys = new Float32Array((BEV_KEYS + views * rows * columns) * HEAD_DIM);
  for (let cell = 0; cell < BEV_KEYS; ++cell) {
    const center = [Math.floor(cell / BEV_SHAPE[1]), cell % BEV_SHAPE[1]];
    keys.set(keySide(center), cell * HEAD_DIM);
  }
  for (let cell = 0; cell < views * rows * columns; ++cell) {
    const center = [Math.floor(cell / (rows * columns)), Math.floor(cell / columns) % rows, cell % columns];
    keys.set(keySide(cameraPosition(center)), (BEV_KEYS + cell) * HEAD_DIM + CAMERA_CHANNEL);
  }
  return keys;
}

/** 1 for a query that counts, 0 for one that neither sensor reads, or that only fills a batch up. */
const isScored = ({ lidar, camera }) => Number(Math.max(lidar, camera) >= LOST);

/**
 * A frame under a failure. A sensor's cell on a proposal holds share·code + (1 − share)·noise, where `share` is how much of it
 * the sensor can read from the points or the contrast that the failure left; all other cells hold clutter. The target is the
 * code, which only a sensor that still reads it can give.
 */
export function makeSample(scene, proposals, failure, queries, seed) {
  const random = randomSource(seed);
  const { sweep, images, lost } = FAILURES[failure](scene, random);
  const measured = measure({ sweep, images }, proposals);
  const [rows, columns] = FEATURE_SHAPE;
  const keys = BEV_KEYS + scene.images.length * rows * columns;
  const value = Float32Array.from({ length: keys * VALUE_DIM }, () => normalFrom(random));
  const sample = {
    scene,
    failure,
    sweep,
    lost,
    proposals,
    value,
    query: new Float32Array(queries * HEAD_DIM),
    bevCenters: new Float32Array(queries * 2),
    cameraCenters: new Float32Array(queries * 3).fill(-1),
    features: new Float32Array(queries * FEATURES.length),
    target: new Float32Array(queries * VALUE_DIM),
    scored: new Float32Array(queries),
    shares: [],
  };
  proposals.forEach(({ point, bev, camera, code }, q) => {
    const { points, contrast, brightness } = measured[q];
    const share = {
      lidar: Math.min(1, points / WHOLE.points),
      camera: Math.min(1, contrast / WHOLE.contrast),
    };
    const put = (key, read) => {
      for (let d = 0; d < VALUE_DIM; ++d) {
        const at = key * VALUE_DIM + d;
        value[at] = read * code[d] + (1 - read) * value[at];
      }
    };
    put(bev[0] * BEV_SHAPE[1] + bev[1], share.lidar);
    put(BEV_KEYS + (camera[0] * rows + camera[1]) * columns + camera[2], share.camera);
    const scale = Math.sqrt(HEAD_DIM) / SIGMA ** 2; // attention divides by √D
    sample.query.set(
      [...querySide(bev), ...querySide(cameraPosition(camera))].map((x) => x * scale),
      q * HEAD_DIM,
    );
    sample.bevCenters.set(bev, 2 * q);
    sample.cameraCenters.set(camera, 3 * q);
    sample.features.set(
      [Math.log1p(points), Math.log1p(contrast), brightness / 255, Math.log(Math.hypot(point[0], point[1]))],
      q * FEATURES.length,
    );
    sample.target.set(code, q * VALUE_DIM);
    sample.scored[q] = isScored(share);
    sample.shares.push(share);
  });
  return sample;
}

/** Mean and deviation of each feature over the queries of samples. */
export function featureScale(samples) {
  const size = FEATURES.length;
  const columns = FEATURES.map((_, e) =>
    samples.flatMap(({ features, proposals }) => proposals.map((_, q) => features[q * size + e])),
  );
  return columns.map((values) => {
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    return { mean, deviation: Math.sqrt(variance) || 1 };
  });
}

/** Features of mean 0 and deviation 1, in place. */
export function standardise({ features, proposals }, scale) {
  proposals.forEach((_, q) =>
    scale.forEach(({ mean, deviation }, e) => {
      const at = q * scale.length + e;
      features[at] = (features[at] - mean) / deviation;
    }),
  );
}
