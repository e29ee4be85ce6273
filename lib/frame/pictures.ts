/** What the attention of a frame looks at, as PNG: from above, and over each camera's image. */
import sharp from 'sharp';

import {
  BEV_CELLS,
  BEV_SHAPE,
  CAMERA_CELLS,
  FEATURE_SHAPE,
  INPUT_SHAPE,
  POINT_CLOUD_RANGE,
  STRIDE,
  RADIUS,
  WINDOW,
} from './geometry.js';
import { INFERNO } from './inferno.js';
import { boxCorners } from './box.js';
import type { Box, InputImage, Sweep } from './scene.js';

/** Pixels of a BEV cell. */
const CELL = 5;
const [BEV_HEIGHT, BEV_WIDTH] = [BEV_SHAPE[0] * CELL, BEV_SHAPE[1] * CELL];
const [X0, Y0, , X1, Y1] = POINT_CLOUD_RANGE;

export interface PictureInput {
  /** [keys] */
  readonly mass: Float64Array;
  readonly sweep: Sweep;
  readonly images: readonly InputImage[];
  /** of each camera, [4, 4], to pixels of the network's input */
  readonly matrices: readonly Float32Array[];
  readonly boxes: readonly Box[];
  /** queries that stand on boxes: the first ones */
  readonly boxQueries: number;
  readonly bevCenters: Float32Array;
  readonly cameraCenters: Float32Array;
  readonly window: boolean;
}

/** Heat of each cell in [0, 1]: the logarithm of its mass, from the median of the cells that have any to the greatest of 1,000. */
export function heatOf(mass: Float64Array): Float32Array {
  const logs = Float64Array.from(mass, (value) => Math.log(value));
  const some = logs.filter((value) => value > -Infinity).sort();
  if (some.length === 0) return new Float32Array(mass.length);
  const low = some[Math.floor(some.length / 2)]!;
  const high = Math.max(some[Math.min(some.length - 1, Math.floor(some.length * 0.999))]!, low + 1e-6);
  return Float32Array.from(logs, (value) => Math.min(1, Math.max(0, (value - low) / (high - low))));
}

/** Opacity of each of the 256 colours: the hotter the less is seen of what is beneath. */
const OPACITY = Float64Array.from({ length: 256 }, (_, level) => 0.75 * Math.sqrt(level / 255));

/** Blends the colour of a heat into a pixel. */
function blend(rgb: Uint8Array, at: number, heat: number): void {
  const level = (heat * 255 + 0.5) | 0;
  const opacity = OPACITY[level]!;
  for (let c = 0; c < 3; ++c) rgb[at + c] = rgb[at + c]! * (1 - opacity) + INFERNO[level * 3 + c]! * opacity;
}

type Point = readonly [number, number];

const svg = (width: number, height: number, shapes: readonly string[]): Buffer =>
  Buffer.from(
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">${shapes.join('')}</svg>`,
  );

const pathOf = (points: readonly Point[]): string =>
  points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ');

const line = (points: readonly Point[], style: string): string =>
  `<polyline points="${pathOf(points)}" fill="none" ${style}/>`;

const dot = ([x, y]: Point, radius: number, style: string): string =>
  `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="${radius}" ${style}/>`;

const BOX = 'stroke="#5dff8f" stroke-width="2"';
const REGION = 'fill="none" stroke="#59d0ff" stroke-width="1.5" stroke-opacity="0.9"';
const BOX_QUERY = 'fill="#ffffff" stroke="#000000" stroke-width="1"';
const SPREAD_QUERY = 'fill="#ffffff" fill-opacity="0.55"';

/** The region that the bias of a query singles out: its window, or the circle of the spatial term. */
function region(center: Point, pixelsPerCell: number, window: boolean, kind: 'bev' | 'camera'): string {
  if (!window) return dot(center, RADIUS[kind] * pixelsPerCell, REGION);
  const side = WINDOW[kind] * pixelsPerCell;
  const [x, y] = [center[0] - side / 2, center[1] - side / 2];
  return `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${side}" height="${side}" ${REGION}/>`;
}

/** From above, x to the right and y up: LiDAR points grey, attention by colour, boxes green, queries white. */
export async function bevPicture(input: PictureInput): Promise<Buffer> {
  const rgb = new Uint8Array(BEV_HEIGHT * BEV_WIDTH * 3).fill(12);
  const at = (x: number, y: number): Point => [
    ((x - X0) / (X1 - X0)) * BEV_WIDTH,
    BEV_HEIGHT - ((y - Y0) / (Y1 - Y0)) * BEV_HEIGHT,
  ];
  const { points, columns, count } = input.sweep;
  for (let i = 0; i < count; ++i) {
    const [px, py] = at(points[i * columns]!, points[i * columns + 1]!).map(Math.floor) as [number, number];
    if (!(px >= 0 && px < BEV_WIDTH && py >= 0 && py < BEV_HEIGHT)) continue;
    rgb.fill(150, (py * BEV_WIDTH + px) * 3, (py * BEV_WIDTH + px) * 3 + 3);
  }
  const heat = heatOf(input.mass.subarray(0, BEV_CELLS));
  for (let y = 0; y < BEV_HEIGHT; ++y) {
    for (let x = 0; x < BEV_WIDTH; ++x) {
      const row = Math.floor((BEV_HEIGHT - 1 - y) / CELL);
      blend(rgb, (y * BEV_WIDTH + x) * 3, heat[row * BEV_SHAPE[1] + Math.floor(x / CELL)]!);
    }
  }
  const shapes: string[] = [];
  const centers = Array.from({ length: input.bevCenters.length / 2 }, (_, q): Point => {
    const [row, column] = [input.bevCenters[2 * q]!, input.bevCenters[2 * q + 1]!];
    return [(column + 0.5) * CELL, BEV_HEIGHT - (row + 0.5) * CELL];
  });
  centers.slice(input.boxQueries).forEach((center) => shapes.push(dot(center, 1.3, SPREAD_QUERY)));
  const boxCenters = centers.slice(0, input.boxQueries);
  boxCenters.forEach((center) => shapes.push(region(center, CELL, input.window, 'bev')));
  for (const box of input.boxes) {
    const corners = boxCorners(box).map(([x, y]) => at(x, y));
    const [a, b, c, d] = corners as [Point, Point, Point, Point];
    const front: Point = [(a[0] + d[0]) / 2, (a[1] + d[1]) / 2];
    shapes.push(line([a, b, c, d, a], BOX), line([at(box.center[0], box.center[1]), front], BOX));
  }
  boxCenters.forEach((center) => shapes.push(dot(center, 2, BOX_QUERY)));
  const [carX, carY] = at(0, 0);
  shapes.push(`<path d="M${carX},${carY - 9} l6,18 h-12 z" fill="#ff5c5c"/>`);
  return encode(rgb, BEV_WIDTH, BEV_HEIGHT, shapes);
}

async function encode(
  rgb: Uint8Array,
  width: number,
  height: number,
  shapes: readonly string[],
): Promise<Buffer> {
  return sharp(rgb, { raw: { width, height, channels: 3 } })
    .composite([{ input: svg(width, height, shapes) }])
    .png({ compressionLevel: 6 })
    .toBuffer();
}

/** Depth below which a box's edge is cut off, in metres. */
const NEAR_DEPTH = 0.3;

/** Pixels of the part of an edge that is before the camera; undefined where none is. */
function projectEdge(
  matrix: Float32Array,
  from: readonly number[],
  to: readonly number[],
): [Point, Point] | undefined {
  const project = ([x, y, z]: readonly number[]): [number, number, number] =>
    [0, 4, 8].map(
      (row) => matrix[row]! * x! + matrix[row + 1]! * y! + matrix[row + 2]! * z! + matrix[row + 3]!,
    ) as [number, number, number];
  let [a, b] = [project(from), project(to)];
  if (a[2] < NEAR_DEPTH && b[2] < NEAR_DEPTH) return undefined;
  const cut = (hidden: typeof a, seen: typeof a): typeof a => {
    const t = (NEAR_DEPTH - hidden[2]) / (seen[2] - hidden[2]);
    return hidden.map((value, i) => value + (seen[i]! - value) * t) as typeof a;
  };
  if (a[2] < NEAR_DEPTH) a = cut(a, b);
  else if (b[2] < NEAR_DEPTH) b = cut(b, a);
  const pixel = ([u, v, depth]: typeof a): Point => [u / depth, v / depth];
  return [pixel(a), pixel(b)];
}

const EDGES = [0, 1, 2, 3].flatMap((i): Point[] => [
  [i, (i + 1) % 4],
  [4 + i, 4 + ((i + 1) % 4)],
  [i, 4 + i],
]);

/** Of each pixel along an axis: the cell whose centre is at or before it, the next, and its place between them. */
function between(pixels: number, cells: number): { from: Int32Array; to: Int32Array; share: Float64Array } {
  const place = Float64Array.from({ length: pixels }, (_, i) =>
    Math.min(cells - 1, Math.max(0, (i + 0.5) / STRIDE - 0.5)),
  );
  const from = Int32Array.from(place, Math.floor);
  return {
    from,
    to: from.map((cell) => Math.min(cells - 1, cell + 1)),
    share: place.map((value, i) => value - from[i]!),
  };
}

/** Blends the heat of the cells, bilinear between their centres, into an image of the network's input. */
function blendCells(rgb: Uint8Array, heat: Float32Array): void {
  const [height, width] = INPUT_SHAPE;
  const columns = FEATURE_SHAPE[1];
  const down = between(height, FEATURE_SHAPE[0]);
  const along = between(width, columns);
  for (let y = 0; y < height; ++y) {
    const [top, bottom, low] = [down.from[y]! * columns, down.to[y]! * columns, down.share[y]!];
    for (let x = 0; x < width; ++x) {
      const [left, right, share] = [along.from[x]!, along.to[x]!, along.share[x]!];
      const above = heat[top + left]! * (1 - share) + heat[top + right]! * share;
      const below = heat[bottom + left]! * (1 - share) + heat[bottom + right]! * share;
      blend(rgb, (y * width + x) * 3, above * (1 - low) + below * low);
    }
  }
}

/** The pictures of all cameras, in their order, on one scale of heat. */
export async function cameraPictures(input: PictureInput): Promise<Buffer[]> {
  const [height, width] = INPUT_SHAPE;
  const allHeat = heatOf(input.mass.subarray(BEV_CELLS));
  return Promise.all(
    input.images.map(async (image, view) => {
      const heat = allHeat.subarray(view * CAMERA_CELLS, (view + 1) * CAMERA_CELLS);
      const rgb = image.rgb.slice();
      blendCells(rgb, heat);
      const shapes: string[] = [];
      for (const box of input.boxes) {
        const corners = boxCorners(box);
        for (const [i, j] of EDGES) {
          const edge = projectEdge(input.matrices[view]!, corners[i]!, corners[j]!);
          if (edge?.flat().every((value) => Math.abs(value) < 1e5)) shapes.push(line(edge, BOX));
        }
      }
      for (let q = input.cameraCenters.length / 3 - 1; q >= 0; --q) {
        const [of, row, column] = input.cameraCenters.subarray(3 * q, 3 * q + 3) as unknown as [
          number,
          number,
          number,
        ];
        if (of !== view) continue;
        const center: Point = [(column + 0.5) * STRIDE, (row + 0.5) * STRIDE];
        if (q >= input.boxQueries) shapes.push(dot(center, 2.5, SPREAD_QUERY));
        else shapes.push(region(center, STRIDE, input.window, 'camera'), dot(center, 4, BOX_QUERY));
      }
      return encode(rgb, width, height, shapes);
    }),
  );
}
