// Sensor failures, planted in the data that a frame's sensors give: points are taken out of the sweep, pixels are changed.
// Nothing here is told to the router.

const SECTOR = (120 * Math.PI) / 180;
/** Of 32 beams, one in so many is left. */
const BEAM_STEP = 8;
/** Metres beyond which fog returns no point. */
const FOG_RANGE = 20;
/** What fog leaves of an image's contrast, and the grey that it adds. */
const FOG_CONTRAST = 0.04;
const FOG_GREY = 190;

/** The points that `keeps` says stay. */
function filterPoints({ points, columns, count }, keeps) {
  const kept = new Float32Array(points.length);
  let size = 0;
  for (let at = 0; at < count * columns; at += columns) {
    if (!keeps(at)) continue;
    kept.set(points.subarray(at, at + columns), size);
    size += columns;
  }
  return { points: kept.slice(0, size), columns, count: size / columns };
}

/** The beam of a point: its fifth column, or from its elevation (1.33° a beam) where there is none. */
function beamOf({ points, columns }, at) {
  if (columns > 4) return points[at + 4];
  const elevation = Math.atan2(points[at + 2], Math.hypot(points[at], points[at + 1]));
  return Math.round((elevation * 180) / Math.PI / 1.33);
}

/** Whether (x, y) lies in the sector round a heading, radians from x to y. */
function inSector(x, y, heading) {
  const turn = Math.abs(Math.atan2(y, x) - heading) % (2 * Math.PI);
  return Math.min(turn, 2 * Math.PI - turn) < SECTOR / 2;
}

/**
 * By name. Each takes a scene and a random source and returns { sweep, images, lost }, where `lost` is what a picture marks:
 * of `lidar` a { sector: [heading, width] } or what is { beyond: metres }; of `cameras` the views.
 */
export const FAILURES = {
  none: ({ sweep, images }) => ({ sweep, images, lost: {} }),
  'LiDAR sector': ({ sweep, images }, random) => {
    const heading = (2 * random() - 1) * Math.PI;
    const keeps = (at) => !inSector(sweep.points[at], sweep.points[at + 1], heading);
    return { sweep: filterPoints(sweep, keeps), images, lost: { lidar: { sector: [heading, SECTOR] } } };
  },
  'LiDAR off': ({ sweep, images }) => ({
    sweep: filterPoints(sweep, () => false),
    images,
    lost: { lidar: { beyond: 0 } },
  }),
  'beams 32 to 4': ({ sweep, images }) => ({
    sweep: filterPoints(sweep, (at) => beamOf(sweep, at) % BEAM_STEP === 0),
    images,
    lost: {},
  }),
  'camera off': ({ sweep, images }, random) => {
    const camera = Math.floor(random() * images.length);
    const dark = new Float32Array(images[camera].length);
    return { sweep, images: images.with(camera, dark), lost: { cameras: [camera] } };
  },
  fog: ({ sweep, images }) => ({
    sweep: filterPoints(sweep, (at) => Math.hypot(sweep.points[at], sweep.points[at + 1]) < FOG_RANGE),
    images: images.map((grey) => grey.map((level) => FOG_GREY + FOG_CONTRAST * (level - FOG_GREY))),
    lost: { lidar: { beyond: FOG_RANGE }, cameras: [...images.keys()] },
  }),
};
