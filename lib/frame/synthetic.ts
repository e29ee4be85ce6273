/**
 * A made-up scene in the format of a real frame: a car with six cameras and a LiDAR on its roof, other road users as boxes.
 * The same seed gives the same files.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';

import { writeAtomically } from '../formats/atomic.js';
import { ioError } from '../formats/io.js';
import { normalFrom, randomSource } from '../random.js';
import { boxCorners } from './box.js';
import type { Box } from './scene.js';

type Vector = readonly [number, number, number];

const IMAGE_SHAPE = [900, 1600] as const;
/** Metres below the LiDAR. */
const GROUND = -1.84;
const LIDAR_RANGE = 70;
const BEAMS = 32;
const TURNS = 1085;

/** As nuScenes has them: name, heading in radians from x (right) to y (forward), focal length in pixels. */
const CAMERAS = [
  { name: 'CAM_FRONT', heading: 90, focal: 1266 },
  { name: 'CAM_FRONT_RIGHT', heading: 34, focal: 1260 },
  { name: 'CAM_FRONT_LEFT', heading: 146, focal: 1260 },
  { name: 'CAM_BACK', heading: 270, focal: 800 },
  { name: 'CAM_BACK_LEFT', heading: 200, focal: 1256 },
  { name: 'CAM_BACK_RIGHT', heading: 340, focal: 1256 },
] as const;
/** Metres: the cameras are this far out from the LiDAR, and this far below it. */
const CAMERA_OFFSET = 0.6;
const CAMERA_DROP = 0.35;

interface Kind {
  readonly label: string;
  readonly size: Vector;
  readonly colours: readonly Vector[];
  readonly intensity: number;
}
const KINDS = {
  car: {
    label: 'car',
    size: [4.5, 1.9, 1.6],
    colours: [
      [178, 34, 34],
      [36, 74, 134],
      [200, 200, 196],
      [52, 56, 60],
    ],
    intensity: 60,
  },
  truck: {
    label: 'truck',
    size: [9, 2.7, 3.4],
    colours: [
      [222, 214, 190],
      [70, 110, 84],
    ],
    intensity: 90,
  },
  pedestrian: {
    label: 'pedestrian',
    size: [0.6, 0.6, 1.75],
    colours: [
      [196, 120, 44],
      [60, 90, 150],
      [150, 60, 110],
    ],
    intensity: 25,
  },
  barrier: { label: 'barrier', size: [0.5, 2, 1], colours: [[232, 122, 36]], intensity: 140 },
} as const satisfies Record<string, Kind>;

interface Solid extends Box {
  readonly colour: Vector;
  readonly intensity: number;
}

/** Cars and trucks along a road in y, pedestrians beside it, a row of barriers; none overlap. */
function placeSolids(random: () => number): Solid[] {
  const solids: Solid[] = [];
  const between = (low: number, high: number): number => low + (high - low) * random();
  const place = (kind: Kind, x: number, y: number, yaw: number): void => {
    const [length, width, height] = kind.size.map((side) => side * between(0.92, 1.08)) as [
      number,
      number,
      number,
    ];
    const reach = Math.hypot(length, width) / 2 + 0.4;
    const near = (s: Solid): boolean =>
      Math.hypot(s.center[0] - x, s.center[1] - y) < reach + Math.hypot(s.size[0], s.size[1]) / 2;
    if (Math.hypot(x, y) < 4 + reach || solids.some(near)) return;
    const colour = kind.colours[Math.floor(random() * kind.colours.length)]!;
    const center: [number, number, number] = [x, y, GROUND + height / 2];
    solids.push({
      label: kind.label,
      center,
      size: [length, width, height],
      yaw,
      colour,
      intensity: kind.intensity,
    });
  };
  for (let i = 0; i < 16; ++i) {
    const lane = [-5.4, -1.8, 1.8, 5.4][Math.floor(random() * 4)]!;
    const forward = lane > 0 ? 1 : -1; // traffic keeps to the right
    place(
      random() < 0.2 ? KINDS.truck : KINDS.car,
      lane + between(-0.3, 0.3),
      between(-50, 50),
      (forward * Math.PI) / 2 + between(-0.05, 0.05),
    );
  }
  for (let i = 0; i < 14; ++i) {
    place(
      KINDS.pedestrian,
      (random() < 0.5 ? -1 : 1) * between(8.5, 14),
      between(-35, 35),
      between(-Math.PI, Math.PI),
    );
  }
  for (let i = 0; i < 6; ++i) place(KINDS.barrier, 8, 8 + 2.6 * i, Math.PI);
  return solids;
}

/** Metres along a ray from the origin to a solid; Infinity where it passes by. */
function hit(solid: Solid, direction: Vector): number {
  const [c, s] = [Math.cos(solid.yaw), Math.sin(solid.yaw)];
  const local = ([x, y, z]: Vector): Vector => [c * x + s * y, -s * x + c * y, z];
  const origin = local([-solid.center[0], -solid.center[1], -solid.center[2]]);
  const ray = local(direction);
  let [enter, leave] = [0, Infinity];
  for (let i = 0; i < 3; ++i) {
    const half = solid.size[i]! / 2;
    const [a, b] = [(-half - origin[i]!) / ray[i]!, (half - origin[i]!) / ray[i]!]; // ±Infinity along a face
    enter = Math.max(enter, Math.min(a, b));
    leave = Math.min(leave, Math.max(a, b));
  }
  return enter <= leave && enter > 0 ? enter : Infinity;
}

/** A turn of a 32-beam LiDAR: [N, 5] x, y, z, intensity, ring. */
function castRays(solids: readonly Solid[], random: () => number): Float32Array {
  const points: number[] = [];
  for (let turn = 0; turn < TURNS; ++turn) {
    const azimuth = (turn / TURNS) * 2 * Math.PI;
    const [c, s] = [Math.cos(azimuth), Math.sin(azimuth)];
    // Solids that this turn's vertical plane can meet.
    const ahead = solids.filter(({ center, size }) => {
      const along = center[0] * c + center[1] * s;
      return along > -10 && Math.abs(center[0] * s - center[1] * c) < Math.hypot(size[0], size[1]) / 2 + 0.1;
    });
    for (let ring = 0; ring < BEAMS; ++ring) {
      const elevation = ((-30.67 + (41.33 * ring) / (BEAMS - 1)) * Math.PI) / 180;
      const direction: Vector = [Math.cos(elevation) * c, Math.cos(elevation) * s, Math.sin(elevation)];
      let distance = direction[2] < 0 ? GROUND / direction[2] : Infinity;
      let intensity = 12;
      for (const solid of ahead) {
        const to = hit(solid, direction);
        if (to >= distance) continue;
        distance = to;
        ({ intensity } = solid);
      }
      if (distance > LIDAR_RANGE) continue;
      const measured = distance + 0.02 * normalFrom(random);
      points.push(
        ...direction.map((value) => value * measured),
        Math.max(0, intensity + 4 * normalFrom(random)),
        ring,
      );
    }
  }
  return Float32Array.from(points);
}

interface View {
  readonly name: string;
  /** rows: right, down, forward */
  readonly axes: readonly [Vector, Vector, Vector];
  readonly position: Vector;
  readonly focal: number;
}

function viewOf({ name, heading, focal }: (typeof CAMERAS)[number]): View {
  const [c, s] = [Math.cos((heading * Math.PI) / 180), Math.sin((heading * Math.PI) / 180)];
  return {
    name,
    axes: [
      [s, -c, 0],
      [0, 0, -1],
      [c, s, 0],
    ],
    position: [CAMERA_OFFSET * c, CAMERA_OFFSET * s, -CAMERA_DROP],
    focal,
  };
}

const dotProduct = (a: Vector, b: Vector): number => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const difference = (a: Vector, b: Vector): Vector => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];

/** [4][4]: homogeneous metres to pixels times depth. */
function matrixOf({ axes, position, focal }: View): number[][] {
  const [right, down, forward] = axes.map((axis) => [...axis, -dotProduct(axis, position)]) as [
    number[],
    number[],
    number[],
  ];
  const pixel = (axis: number[], centre: number): number[] =>
    axis.map((value, i) => focal * value + centre * forward[i]!);
  return [pixel(right, IMAGE_SHAPE[1] / 2), pixel(down, IMAGE_SHAPE[0] / 2), forward, [0, 0, 0, 1]];
}

const NEAR = 0.2;

/** A polygon's outline in pixels, cut off just before the camera; undefined where nothing is left. */
function outline(view: View, corners: readonly Vector[]): string | undefined {
  const local = corners.map((corner) => {
    const from = difference(corner, view.position);
    return view.axes.map((axis) => dotProduct(axis, from)) as unknown as Vector;
  });
  const kept = local.flatMap((a, i): Vector[] => {
    const b = local[(i + 1) % local.length]!;
    const points = a[2] >= NEAR ? [a] : [];
    if (a[2] >= NEAR !== b[2] >= NEAR) {
      const t = (NEAR - a[2]) / (b[2] - a[2]);
      points.push([a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, NEAR]);
    }
    return points;
  });
  if (kept.length < 3) return undefined;
  const pixel = ([x, y, z]: Vector): string =>
    `${((view.focal * x) / z + IMAGE_SHAPE[1] / 2).toFixed(1)},${((view.focal * y) / z + IMAGE_SHAPE[0] / 2).toFixed(1)}`;
  return kept.map(pixel).join(' ');
}

function polygon(view: View, corners: readonly Vector[], colour: Vector): string {
  const points = outline(view, corners);
  return points === undefined
    ? ''
    : `<polygon points="${points}" fill="rgb(${colour.map(Math.round).join(',')})"/>`;
}

const SUN: Vector = [0.48, -0.36, 0.8];

/** The faces of a box as its corners (boxCorners), with the direction that each looks in. */
const FACES = [
  { corners: [4, 5, 6, 7], normal: [0, 0, 1] },
  { corners: [0, 3, 7, 4], normal: [1, 0, 0] },
  { corners: [1, 2, 6, 5], normal: [-1, 0, 0] },
  { corners: [0, 1, 5, 4], normal: [0, 1, 0] },
  { corners: [2, 3, 7, 6], normal: [0, -1, 0] },
] as const;

/** The faces of a solid that are turned to the camera, shaded by the sun. */
function drawSolid(view: View, solid: Solid): string {
  const corners = boxCorners(solid);
  const [c, s] = [Math.cos(solid.yaw), Math.sin(solid.yaw)];
  return FACES.map(({ corners: indices, normal }) => {
    const face = indices.map((i) => corners[i]!);
    const outward: Vector = [c * normal[0] - s * normal[1], s * normal[0] + c * normal[1], normal[2]];
    if (dotProduct(outward, difference(view.position, face[0]!)) <= 0) return '';
    const light = 0.55 + 0.45 * Math.max(0, dotProduct(outward, SUN));
    return polygon(view, face, solid.colour.map((value) => value * light) as unknown as Vector);
  }).join('');
}

/** Road, markings and verges as flat rectangles [x0, x1] × [y0, y1] on the ground. */
function drawGround(view: View): string {
  const strip = (x0: number, x1: number, y0: number, y1: number, colour: Vector): string => {
    const corners: Vector[] = [
      [x0, y0, GROUND],
      [x1, y0, GROUND],
      [x1, y1, GROUND],
      [x0, y1, GROUND],
    ];
    return polygon(view, corners, colour);
  };
  const shapes = [
    strip(-400, 400, -400, 400, [104, 122, 84]),
    strip(-15, 15, -400, 400, [146, 142, 134]),
    strip(-7.6, 7.6, -400, 400, [88, 88, 92]),
  ];
  for (const x of [-7.2, 7.2, -0.1, 0.1]) shapes.push(strip(x - 0.07, x + 0.07, -400, 400, [214, 210, 196]));
  for (let y = -80; y < 80; y += 8)
    for (const x of [-3.6, 3.6]) shapes.push(strip(x - 0.07, x + 0.07, y, y + 3, [214, 210, 196]));
  return shapes.join('');
}

async function photograph(view: View, solids: readonly Solid[]): Promise<Buffer> {
  const [height, width] = IMAGE_SHAPE;
  const far = (solid: Solid): number => dotProduct(view.axes[2], difference(solid.center, view.position));
  const drawn = [...solids].sort((a, b) => far(b) - far(a)).map((solid) => drawSolid(view, solid));
  const sky =
    '<linearGradient id="sky" x2="0" y2="1"><stop stop-color="#6d9fd6"/><stop offset="1" stop-color="#dbe7f0"/></linearGradient>';
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"><defs>${sky}</defs>
    <rect width="${width}" height="${height}" fill="url(#sky)"/>${drawGround(view)}${drawn.join('')}</svg>`;
  return sharp(Buffer.from(svg)).removeAlpha().jpeg({ quality: 92 }).toBuffer();
}

/** Whether a point of [N, 5] lies in a box. */
function holds({ center, size, yaw }: Box, points: Float32Array, at: number): boolean {
  const [x, y, z] = [points[at]! - center[0], points[at + 1]! - center[1], points[at + 2]! - center[2]];
  const [c, s] = [Math.cos(yaw), Math.sin(yaw)];
  return (
    Math.abs(c * x + s * y) <= size[0] / 2 + 0.05 &&
    Math.abs(c * y - s * x) <= size[1] / 2 + 0.05 &&
    Math.abs(z) <= size[2] / 2 + 0.05
  );
}

/**
 * Writes a scene to a folder, made where it does not exist: six JPEGs, lidar.bin, and last frame.json, whose path it returns.
 * ERR_IO.
 */
export async function writeSyntheticScene(
  folder: string,
  seed: number,
  signal?: AbortSignal,
): Promise<string> {
  const random = randomSource(seed);
  const solids = placeSolids(random);
  const points = castRays(solids, random);
  const views = CAMERAS.map(viewOf);
  const images = await Promise.all(views.map((view) => photograph(view, solids)));
  try {
    await mkdir(folder, { recursive: true });
  } catch (cause) {
    throw ioError('a folder that can be made', folder, cause);
  }
  const round = (value: number): number => Number(value.toFixed(6));
  const frame = {
    source: `synthetic, seed ${seed}`,
    lidar: {
      file: 'lidar.bin',
      format: 'little-endian float32, N x 5: x, y, z (metres), intensity, ring',
      columns: 5,
    },
    imageShape: IMAGE_SHAPE,
    cameras: views.map((view) => ({
      name: view.name,
      file: `${view.name.toLowerCase()}.jpg`,
      lidar2img: matrixOf(view).map((row) => row.map(round)),
    })),
    boxes: solids.map((solid) => {
      let lidarPoints = 0;
      for (let at = 0; at < points.length; at += 5) lidarPoints += Number(holds(solid, points, at));
      const { label, center, size, yaw } = solid;
      return { label, center: center.map(round), size: size.map(round), yaw: round(yaw), lidarPoints };
    }),
  };
  const write = (name: string, bytes: Uint8Array): Promise<void> =>
    writeAtomically(join(folder, name), [bytes], { signal });
  for (const [i, image] of images.entries()) await write(frame.cameras[i]!.file, image);
  await write('lidar.bin', new Uint8Array(points.buffer));
  await write('frame.json', new TextEncoder().encode(`${JSON.stringify(frame, null, 1)}\n`));
  return join(folder, 'frame.json');
}
