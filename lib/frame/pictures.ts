/** What the attention of a frame looks at: from above, and over each camera's image. */
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
/** Of previews: drawn small, not shrunk. */
const PREVIEW_CELL = 2;
/** [height, width] of a camera's preview: a fifth. */
export const PREVIEW_SHAPE = [INPUT_SHAPE[0] / 5, INPUT_SHAPE[1] / 5] as const;
/** How much bolder lines and dots are in previews, so that they are seen. */
const PREVIEW_PENS = { bev: 1.6, camera: 2.5 };
const [X0, Y0, , X1, Y1] = POINT_CLOUD_RANGE;

export interface PictureInput {
  /** [keys] */
  readonly mass: Float64Array;
  readonly sweep: Sweep;
  /** of INPUT_SHAPE; for previews of PREVIEW_SHAPE */
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

/** Shapes of a picture of `size` [height, width], drawn on `pixels` of it. */
const svg = (
  size: readonly [number, number],
  pixels: readonly [number, number],
  shapes: readonly string[],
): Buffer =>
  Buffer.from(
    `<svg xmlns="http://www.w3.org/2000/svg" width="${pixels[1]}" height="${pixels[0]}" ` +
      `viewBox="0 0 ${size[1]} ${size[0]}">${shapes.join('')}</svg>`,
  );

const pathOf = (points: readonly Point[]): string =>
  points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ');

const line = (points: readonly Point[], style: string): string =>
  `<polyline points="${pathOf(points)}" fill="none" ${style}/>`;

const dot = ([x, y]: Point, radius: number, style: string): string =>
  `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="${radius}" ${style}/>`;

interface Styles {
  /** of lines and dots */
  readonly pen: number;
  readonly box: string;
  readonly region: string;
  readonly boxQuery: string;
  readonly spreadQuery: string;
}

const styles = (pen: number): Styles => ({
  pen,
  box: `stroke="#5dff8f" stroke-width="${2 * pen}"`,
  region: `fill="none" stroke="#59d0ff" stroke-width="${1.5 * pen}" stroke-opacity="0.9"`,
  boxQuery: `fill="#ffffff" stroke="#000000" stroke-width="${pen}"`,
  spreadQuery: 'fill="#ffffff" fill-opacity="0.55"',
});

/** The region that the bias of a query singles out: its window, or the circle of the spatial term. */
function region(
  center: Point,
  pixelsPerCell: number,
  window: boolean,
  kind: 'bev' | 'camera',
  style: string,
): string {
  if (!window) return dot(center, RADIUS[kind] * pixelsPerCell, style);
  const side = WINDOW[kind] * pixelsPerCell;
  const [x, y] = [center[0] - side / 2, center[1] - side / 2];
  return `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${side}" height="${side}" ${style}/>`;
}

type Format = 'png' | 'webp';

async function encode(
  rgb: Uint8Array,
  pixels: readonly [number, number],
  shapes: Buffer,
  format: Format,
): Promise<Buffer> {
  const [height, width] = pixels;
  const picture = sharp(rgb, { raw: { width, height, channels: 3 } }).composite([{ input: shapes }]);
  return (format === 'png' ? picture.png({ compressionLevel: 6 }) : picture.webp({ quality: 70 })).toBuffer();
}

/** From above, x to the right and y up: LiDAR points grey, attention by colour, boxes green, queries white. */
async function drawBev(input: PictureInput, cell: number, pen: number, format: Format): Promise<Buffer> {
  const [height, width] = [BEV_SHAPE[0] * cell, BEV_SHAPE[1] * cell];
  const rgb = new Uint8Array(height * width * 3).fill(12);
  const { points, columns, count } = input.sweep;
  for (let i = 0; i < count; ++i) {
    const px = Math.floor(((points[i * columns]! - X0) / (X1 - X0)) * width);
    const py = Math.floor(height - ((points[i * columns + 1]! - Y0) / (Y1 - Y0)) * height);
    if (!(px >= 0 && px < width && py >= 0 && py < height)) continue;
    rgb.fill(150, (py * width + px) * 3, (py * width + px) * 3 + 3);
  }
  const heat = heatOf(input.mass.subarray(0, BEV_CELLS));
  for (let y = 0; y < height; ++y) {
    const row = Math.floor((height - 1 - y) / cell) * BEV_SHAPE[1];
    for (let x = 0; x < width; ++x) blend(rgb, (y * width + x) * 3, heat[row + Math.floor(x / cell)]!);
  }
  const at = (x: number, y: number): Point => [
    ((x - X0) / (X1 - X0)) * BEV_WIDTH,
    BEV_HEIGHT - ((y - Y0) / (Y1 - Y0)) * BEV_HEIGHT,
  ];
  const { box: boxStyle, region: regionStyle, boxQuery, spreadQuery } = styles(pen);
  const shapes: string[] = [];
  const centers = Array.from({ length: input.bevCenters.length / 2 }, (_, q): Point => {
    const [row, column] = [input.bevCenters[2 * q]!, input.bevCenters[2 * q + 1]!];
    return [(column + 0.5) * CELL, BEV_HEIGHT - (row + 0.5) * CELL];
  });
  centers.slice(input.boxQueries).forEach((center) => shapes.push(dot(center, 1.3 * pen, spreadQuery)));
  const boxCenters = centers.slice(0, input.boxQueries);
  boxCenters.forEach((center) => shapes.push(region(center, CELL, input.window, 'bev', regionStyle)));
  for (const box of input.boxes) {
    const corners = boxCorners(box).map(([x, y]) => at(x, y));
    const [a, b, c, d] = corners as [Point, Point, Point, Point];
    const front: Point = [(a[0] + d[0]) / 2, (a[1] + d[1]) / 2];
    shapes.push(line([a, b, c, d, a], boxStyle), line([at(box.center[0], box.center[1]), front], boxStyle));
  }
  boxCenters.forEach((center) => shapes.push(dot(center, 2 * pen, boxQuery)));
  const [carX, carY] = at(0, 0);
  shapes.push(`<path d="M${carX},${carY - 9} l6,18 h-12 z" fill="#ff5c5c"/>`);
  return encode(rgb, [height, width], svg([BEV_HEIGHT, BEV_WIDTH], [height, width], shapes), format);
}

/** 900×900, PNG. */
export const bevPicture = (input: PictureInput): Promise<Buffer> => drawBev(input, CELL, 1, 'png');

/** 360×360, WebP. */
export const bevPreview = (input: PictureInput): Promise<Buffer> =>
  drawBev(input, PREVIEW_CELL, PREVIEW_PENS.bev, 'webp');

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
    Math.min(cells - 1, Math.max(0, (i + 0.5) / (pixels / cells) - 0.5)),
  );
  const from = Int32Array.from(place, Math.floor);
  return {
    from,
    to: from.map((cell) => Math.min(cells - 1, cell + 1)),
    share: place.map((value, i) => value - from[i]!),
  };
}

/** Blends the heat of the cells, bilinear between their centres, into an image of the network's input. */
function blendCells(rgb: Uint8Array, [height, width]: readonly [number, number], heat: Float32Array): void {
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

/** What is drawn over a camera's image, in pixels of the network's input. */
function cameraShapes(input: PictureInput, view: number, { pen, ...style }: Styles): string[] {
  const shapes: string[] = [];
  for (const box of input.boxes) {
    const corners = boxCorners(box);
    for (const [i, j] of EDGES) {
      const edge = projectEdge(input.matrices[view]!, corners[i]!, corners[j]!);
      if (edge?.flat().every((value) => Math.abs(value) < 1e5)) shapes.push(line(edge, style.box));
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
    if (q >= input.boxQueries) shapes.push(dot(center, 2.5 * pen, style.spreadQuery));
    else
      shapes.push(
        region(center, STRIDE, input.window, 'camera', style.region),
        dot(center, 4 * pen, style.boxQuery),
      );
  }
  return shapes;
}

/** The images of all cameras with the heat of their cells, on one scale. */
function heatedImages(input: PictureInput, shape: readonly [number, number]): Uint8Array[] {
  const heat = heatOf(input.mass.subarray(BEV_CELLS));
  return input.images.map(({ rgb }, view) => {
    const heated = new Uint8Array(rgb);
    blendCells(heated, shape, heat.subarray(view * CAMERA_CELLS, (view + 1) * CAMERA_CELLS));
    return heated;
  });
}

/** The pictures of all cameras, in their order, on one scale of heat. PNG of INPUT_SHAPE. */
export async function cameraPictures(input: PictureInput): Promise<Buffer[]> {
  return Promise.all(
    heatedImages(input, INPUT_SHAPE).map(async (rgb, view) => {
      const shapes = cameraShapes(input, view, styles(1));
      return encode(rgb, INPUT_SHAPE, svg(INPUT_SHAPE, INPUT_SHAPE, shapes), 'png');
    }),
  );
}

/** All cameras side by side, in their order: WebP, PREVIEW_SHAPE each. */
export async function camerasPreview(input: PictureInput): Promise<Buffer> {
  const [height, width] = PREVIEW_SHAPE;
  const views = input.images.length;
  const strip = new Uint8Array(height * width * views * 3);
  heatedImages(input, PREVIEW_SHAPE).forEach((rgb, view) => {
    for (let y = 0; y < height; ++y)
      strip.set(rgb.subarray(y * width * 3, (y + 1) * width * 3), (y * views + view) * width * 3);
  });
  // An <svg> within another cuts off what leaves its camera's image.
  const shapes = input.images.map((_, view) => {
    const inside = cameraShapes(input, view, styles(PREVIEW_PENS.camera)).join('');
    const place = `x="${view * INPUT_SHAPE[1]}" width="${INPUT_SHAPE[1]}" height="${INPUT_SHAPE[0]}"`;
    return `<svg ${place}>${inside}</svg>`;
  });
  const size = [INPUT_SHAPE[0], INPUT_SHAPE[1] * views] as const;
  return encode(strip, [height, width * views], svg(size, [height, width * views], shapes), 'webp');
}

/** Images of the network's input as previews take them. */
export async function shrinkImages(images: readonly InputImage[]): Promise<InputImage[]> {
  const [height, width] = INPUT_SHAPE;
  const [small, narrow] = PREVIEW_SHAPE;
  return Promise.all(
    images.map(async ({ rgb, firstRow }) => {
      const image = sharp(rgb, { raw: { width, height, channels: 3 } }).resize(narrow, small, {
        fit: 'fill',
      });
      return { rgb: new Uint8Array(await image.raw().toBuffer()), firstRow };
    }),
  );
}
