/** Where a frame's object queries stand: on the annotated boxes, then spread over the range. */
import { randomSource } from '../random.js';
import { POINT_CLOUD_RANGE } from './geometry.js';
import type { Box } from './scene.js';

export interface Queries {
  /** float32 [1, Q, 3]: (x, y, z) in [0, 1] of the point cloud range */
  readonly referencePoints: { readonly data: Float32Array; readonly shape: [1, number, 3] };
  /** the boxes of the first queries, one each */
  readonly boxes: readonly Box[];
  /** boxes that got no query: their centre is outside the range, or there are more boxes than queries */
  readonly boxesLeftOut: number;
}

/** Places `count` queries: box centres first, then points uniform over the range, the same for the same seed. */
export function placeQueries(boxes: readonly Box[], count: number, seed: number): Queries {
  const [x0, y0, z0, x1, y1, z1] = POINT_CLOUD_RANGE;
  const low = [x0, y0, z0];
  const size = [x1 - x0, y1 - y0, z1 - z0];
  const relative = (center: readonly number[]): number[] =>
    center.map((value, i) => (value - low[i]!) / size[i]!);
  const inside = boxes.filter(({ center }) => relative(center).every((value) => value >= 0 && value < 1));
  const chosen = inside.slice(0, count);
  const data = new Float32Array(count * 3);
  chosen.forEach(({ center }, q) => data.set(relative(center), q * 3));
  const random = randomSource(seed);
  for (let i = chosen.length * 3; i < data.length; ++i) data[i] = random();
  return {
    referencePoints: { data, shape: [1, count, 3] },
    boxes: chosen,
    boxesLeftOut: boxes.length - chosen.length,
  };
}
