/** The main job: synthetic scenes, features, projection on the objects, attention mass, outputs and errors. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { copyFile, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';

import type { Device } from '../lib/device.js';
import { openSafetensors, writeSafetensors } from '../lib/formats/safetensors.js';
import { keyMass, modalityMass, biasStack, type StackInput } from '../lib/frame/attention.js';
import { cellsOutside, patchStatistics, pillarStatistics, readFeatures } from '../lib/frame/features.js';
import {
  BEV_CELLS,
  bevCell,
  CAMERA_CELLS,
  CHANNELS,
  HEAD_DIM,
  HEADS,
  inputMatrix,
  INPUT_SHAPE,
  STRIDE,
} from '../lib/frame/geometry.js';
import { runFrame, type FrameOptions, type FrameSummary } from '../lib/frame/index.js';
import { heatOf } from '../lib/frame/pictures.js';
import { placeQueries } from '../lib/frame/queries.js';
import { readFrame, readImage, readSweep, type Frame } from '../lib/frame/scene.js';
import { writeSyntheticScene } from '../lib/frame/synthetic.js';
import { open } from '../lib/index.js';
import { referenceBias } from '../lib/reference.js';
import { errorOf, expectError, random, uniform } from './support.js';

const command = join(__dirname, '../dist/cli/main.js');
let folder: string;
let scene: string;
let frame: Frame;
let device: Device;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'attention-bias-frame-'));
  scene = await writeSyntheticScene(join(folder, 'scene'), 1);
  frame = await readFrame(scene);
  device = await open({ device: 'cpu', threads: 2 });
}, 30_000);

afterAll(async () => {
  device.close();
  await rm(folder, { recursive: true });
});

const options = (out: string, more: Partial<FrameOptions> = {}): FrameOptions => ({
  frame: scene,
  out: join(folder, out),
  queries: 60,
  seed: 1,
  strength: 5,
  window: false,
  dense: false,
  pictures: false,
  ...more,
});

/** The scene with other contents of frame.json, in a file beside it. */
async function variant(name: string, change: (json: Record<string, unknown>) => void): Promise<string> {
  const json = JSON.parse(await readFile(scene, 'utf8')) as Record<string, unknown>;
  change(json);
  const path = join(folder, 'scene', name);
  await writeFile(path, JSON.stringify(json));
  return path;
}

describe('a synthetic scene', () => {
  test('is the same for the same seed, and another for another', async () => {
    await writeSyntheticScene(join(folder, 'again'), 1);
    await writeSyntheticScene(join(folder, 'other'), 2);
    const names = (await readdir(join(folder, 'again'))).sort();
    expect(names).toEqual([
      'cam_back.jpg',
      'cam_back_left.jpg',
      'cam_back_right.jpg',
      'cam_front.jpg',
      'cam_front_left.jpg',
      'cam_front_right.jpg',
      'frame.json',
      'lidar.bin',
    ]);
    for (const name of names) {
      const [first, again, other] = await Promise.all(
        ['scene', 'again', 'other'].map((at) => readFile(join(folder, at, name))),
      );
      expect(again!.equals(first!)).toBe(true);
      expect(other!.equals(first!)).toBe(false);
    }
  });

  test('has LiDAR points on its boxes and the ground between', async () => {
    const { points, count } = await readSweep(frame);
    expect(count).toBeGreaterThan(10_000);
    const boxes = (
      JSON.parse(await readFile(scene, 'utf8')) as { boxes: { lidarPoints: number; label: string }[] }
    ).boxes;
    expect(boxes.filter(({ lidarPoints }) => lidarPoints >= 5).length).toBeGreaterThan(10);
    let ground = 0;
    for (let i = 0; i < count; ++i) ground += Number(Math.abs(points[5 * i + 2]! + 1.84) < 0.1);
    expect(ground / count).toBeGreaterThan(0.5);
  });
});

describe('geometry', () => {
  test('the lower 640 rows of a 900 × 1600 image: 260 rows less', () => {
    const [u, v, depth] = [1234.5, 800.25, 12];
    // A matrix that sends (1, 1, 1) to those pixels.
    const matrix = inputMatrix(
      [u * depth, 0, 0, 0, v * depth, 0, 0, 0, depth, 0, 0, 0, 0, 0, 0, 1],
      [900, 1600],
    );
    expect(matrix[0]! / matrix[8]!).toBeCloseTo(u, 3);
    expect(matrix[4]! / matrix[8]!).toBeCloseTo(v - 260, 3);
  });

  test('a smaller, flatter image is scaled and padded above', () => {
    const matrix = inputMatrix([100, 0, 0, 0, 50, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], [200, 800]);
    // Twice the size is 1600 × 400: 240 rows of padding.
    expect([matrix[0], matrix[4]]).toEqual([200, 50 * 2 + 240]);
    const ignore = cellsOutside([240, 0]);
    expect(ignore.reduce((a, b) => a + b, 0)).toBe(15 * 100);
    expect([ignore[BEV_CELLS], ignore[BEV_CELLS + 1499], ignore[BEV_CELLS + 1500]]).toEqual([1, 1, 0]);
  });

  test('BEV cells', () => {
    expect(bevCell(-54, -54, 0)).toBe(0);
    expect(bevCell(53.99, 53.99, 0)).toBe(BEV_CELLS - 1);
    expect(bevCell(0.01, -53.99, 0)).toBe(90);
    for (const point of [
      [54, 0, 0],
      [0, -54.01, 0],
      [0, 0, 3],
      [NaN, 0, 0],
      [0, Infinity, 0],
    ]) {
      expect(bevCell(point[0]!, point[1]!, point[2]!)).toBe(-1);
    }
  });

  test('queries stand on boxes first, and the spread follows the seed', () => {
    const { referencePoints, boxes, boxesLeftOut } = placeQueries(frame.boxes, 900, 7);
    const inside = frame.boxes.filter(({ center }) =>
      center.every((value, i) => Math.abs(value) < (i < 2 ? 54 : 3)),
    );
    expect(boxes).toEqual(inside);
    expect(boxesLeftOut).toBe(frame.boxes.length - inside.length);
    boxes.forEach(({ center }, q) => {
      expect(referencePoints.data[3 * q]! * 108 - 54).toBeCloseTo(center[0], 3);
      expect(referencePoints.data[3 * q + 2]! * 8 - 5).toBeCloseTo(center[2], 3);
    });
    expect(referencePoints.data.every((value) => value >= 0 && value < 1)).toBe(true);
    expect(placeQueries(frame.boxes, 900, 7)).toEqual(placeQueries(frame.boxes, 900, 7));
    expect(placeQueries(frame.boxes, 900, 8).referencePoints.data).not.toEqual(referencePoints.data);
    expect(placeQueries(frame.boxes, 3, 7)).toMatchObject({
      boxes: inside.slice(0, 3),
      boxesLeftOut: frame.boxes.length - 3,
    });
  });
});

describe('features', () => {
  test('statistics of pillars', () => {
    const points = Float32Array.of(0.1, 0.1, -1, 51, 0, 0.2, 0.3, 1, 102, 3, 0, 0, NaN, 0, 0, 99, 0, 0, 0, 0);
    const { counts, statistics } = pillarStatistics({ points, columns: 5, count: 4 });
    const cell = bevCell(0.1, 0.1, 0);
    expect(counts[cell]).toBe(2);
    expect(counts.reduce((a, b) => a + b, 0)).toBe(2);
    const expected = [Math.log(3), 0, -1, 1, 1, 0.3, -0.15, -0.1]; // the cell's centre is (0.3, 0.3)
    expected.forEach((value, i) => expect(statistics[8 * cell + i]).toBeCloseTo(value, 5));
  });

  test('statistics of patches', () => {
    const [height, width] = INPUT_SHAPE;
    const rgb = new Uint8Array(height * width * 3);
    for (let y = 0; y < 16; ++y)
      for (let x = 16; x < 32; ++x) rgb.fill(x % 2 ? 30 : 10, (y * width + x) * 3, (y * width + x) * 3 + 3);
    const statistics = patchStatistics({ rgb, firstRow: 0 });
    const expected = [20, 20, 20, 10, 10, 10, (15 * 16 * 60) / 256, 0];
    expected.forEach((value, i) => expect(statistics[8 + i]).toBeCloseTo(value, 4));
    expect(statistics.subarray(16).every((value) => value === 0)).toBe(true);
  });

  test("a backbone's maps, channels first or last, with leading ones", async () => {
    const path = join(folder, 'maps.safetensors');
    const value = (channel: number, cell: number): number => ((channel * 31 + cell) % 64) / 8;
    const map = (cells: number, views: number, channelsFirst: boolean): Float32Array => {
      const data = new Float32Array(views * CHANNELS * cells);
      for (let view = 0, at = 0; view < views; ++view) {
        for (let i = 0; i < (channelsFirst ? CHANNELS : cells); ++i) {
          for (let j = 0; j < (channelsFirst ? cells : CHANNELS); ++j, ++at) {
            data[at] = channelsFirst ? value(i, view * cells + j) : value(j, view * cells + i);
          }
        }
      }
      return data;
    };
    const keys = BEV_CELLS + 2 * CAMERA_CELLS;
    const read = async (tensors: Parameters<typeof writeSafetensors>[1]): Promise<Float32Array> => {
      await writeSafetensors(path, tensors);
      const features = new Float32Array(keys * CHANNELS);
      await readFeatures(path, 2, features);
      return features;
    };
    const a = await read({
      bev: { data: map(BEV_CELLS, 1, true), shape: [1, CHANNELS, 180, 180] },
      camera: { data: map(CAMERA_CELLS, 2, true), shape: [2, CHANNELS, 40, 100] },
    });
    const b = await read({
      bev: { data: map(BEV_CELLS, 1, false), shape: [180, 180, CHANNELS] },
      camera: { data: map(CAMERA_CELLS, 2, false), shape: [1, 2, 40, 100, CHANNELS] },
    });
    expect(Buffer.from(a.buffer).equals(Buffer.from(b.buffer))).toBe(true);
    // Channel 40 is number 8 of head 1; cell 3 of the second camera.
    expect(a[(1 * keys + BEV_CELLS + CAMERA_CELLS + 3) * HEAD_DIM + 8]).toBe(value(40, CAMERA_CELLS + 3));
    await expectError(() => readFeatures(path, 3, a), 'ERR_SHAPE', '"camera"', '[3, 256, 40, 100]');
    await writeSafetensors(path, { bev: { data: map(BEV_CELLS, 1, true), shape: [CHANNELS, 180, 180] } });
    await expectError(() => readFeatures(path, 2, a), 'ERR_FORMAT', '"camera"', 'bev');
  });
});

/** Mean colour of a query's image cell. */
async function colourAt(view: number, row: number, column: number): Promise<number[]> {
  const { rgb } = await readImage(frame, frame.cameras[view]!);
  const at = ((row + 0.5) * STRIDE * INPUT_SHAPE[1] + (column + 0.5) * STRIDE) * 3;
  return [...rgb.subarray(at, at + 3)];
}

test('a query lands on its object in the images and from above', async () => {
  const summary = await runFrame(options('landing', { queries: frame.boxes.length }), device);
  await using file = await openSafetensors(join(folder, 'landing', 'frame.safetensors'));
  const { data: cameras } = await file.read('cameraCenters');
  const { data: bev } = await file.read('bevCenters');
  // The nearest box has nothing before it: its image cell shows its colour, with the red, green and blue of one paint.
  const barriers = frame.boxes.map((box, q) => ({ box, q })).filter(({ box }) => box.label === 'barrier');
  const distance = ({ box }: (typeof barriers)[number]): number => Math.hypot(box.center[0], box.center[1]);
  const [nearest] = barriers.sort((a, b) => distance(a) - distance(b));
  const { box, q } = nearest!;
  expect([...bev.subarray(2 * q, 2 * q + 2)]).toEqual([
    Math.floor((box.center[1] + 54) / 0.6),
    Math.floor((box.center[0] + 54) / 0.6),
  ]);
  const [view, row, column] = cameras.subarray(3 * q, 3 * q + 3);
  expect(view).toBeGreaterThanOrEqual(0);
  const [red, green, blue] = await colourAt(view!, row!, column!);
  expect(green! / red!).toBeCloseTo(122 / 232, 1);
  expect(blue! / red!).toBeCloseTo(36 / 232, 1);
  expect(summary.queries).toMatchObject({ onBoxes: frame.boxes.length, spread: 0 });
});

describe('attention mass', () => {
  const views = 1;
  const keys = BEV_CELLS + views * CAMERA_CELLS;
  const queries = 70;
  const next = random(3);
  const stack = (window: boolean): StackInput => ({
    lidar: uniform(next, [queries], 0, 1).data,
    camera: uniform(next, [queries], 0, 1).data,
    bevCenters: Float32Array.from({ length: queries * 2 }, () => Math.floor(next() * 180)),
    cameraCenters: Float32Array.from({ length: queries * 3 }, (_, i) =>
      i % 3 === 0 ? -Math.floor(next() * 2) : Math.floor(next() * 40),
    ),
    ignore: cellsOutside([32]),
    strength: 5,
    window,
  });

  test.each([false, true])(
    'is what the probabilities say (window %s)',
    async (window) => {
      const input = stack(window);
      const query = uniform(next, [1, HEADS, queries, HEAD_DIM]);
      const key = uniform(next, [1, HEADS, keys, HEAD_DIM]);
      const bias = biasStack(input);
      const { lse } = await device.attention({ query, key, value: key, bias });
      const mass = await keyMass(device, { query, key, lse, bias });
      const modality = await modalityMass(device, { query, key, bias });
      expect(mass.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5);
      expect(mass.subarray(BEV_CELLS, BEV_CELLS + 200).every((value) => value === 0)).toBe(true); // padding

      // Of 500 keys, spread and near queries, by the definition.
      const dense = referenceBias({ shape: [1, 1, queries, keys], bias });
      const near = input.bevCenters[0]! * 180 + input.bevCenters[1]!;
      for (const k of [near, ...Array.from({ length: 499 }, () => Math.floor(next() * keys))]) {
        let sum = 0;
        for (let head = 0; head < HEADS; ++head) {
          for (let q = 0; q < queries; ++q) {
            let dot = 0;
            for (let d = 0; d < HEAD_DIM; ++d)
              dot +=
                query.data[(head * queries + q) * HEAD_DIM + d]! *
                key.data[(head * keys + k) * HEAD_DIM + d]!;
            sum += Math.exp(dot / Math.sqrt(HEAD_DIM) + dense[q * keys + k]! - lse.data[head * queries + q]!);
          }
        }
        expect(Math.abs(mass[k]! - sum / (HEADS * queries))).toBeLessThan(1e-5 * mass[k]! + 1e-12);
      }
      const lidar = modality.filter((_, i) => i % 2 === 0).reduce((a, b) => a + b, 0) / (HEADS * queries);
      expect(lidar).toBeCloseTo(
        mass.subarray(0, BEV_CELLS).reduce((a, b) => a + b, 0),
        5,
      );
      modality.forEach((value, i) => i % 2 === 0 && expect(value + modality[i + 1]!).toBeCloseTo(1, 5));
    },
    30_000,
  );

  test('heat is 0 to 1 and follows mass', () => {
    const heat = heatOf(Float64Array.of(0, 1e-9, 1e-6, 1e-3, 1));
    expect(heat[0]).toBe(0);
    expect([...heat]).toEqual([...heat].sort((a, b) => a - b));
    expect(heat[4]).toBe(1);
    expect([...heatOf(new Float64Array(3))]).toEqual([0, 0, 0]);
  });
});

describe('runFrame', () => {
  test('writes tensors, a summary and pictures', async () => {
    const stages: string[] = [];
    const summary = await runFrame(
      options('whole', { pictures: true, window: true, dense: true, queries: 40 }),
      device,
      {
        progress: (stage) => stages.push(stage),
      },
    );
    expect(stages).toEqual([
      'read',
      'features',
      'project',
      'router',
      'attention',
      'mass',
      'pictures',
      'write',
    ]);
    const out = join(folder, 'whole');
    expect((await readdir(out)).sort()).toEqual([...summary.files].sort());
    expect(JSON.parse(await readFile(join(out, 'summary.json'), 'utf8'))).toEqual({
      ...summary,
      ms: expect.anything() as unknown,
    });
    await using file = await openSafetensors(join(out, 'frame.safetensors'));
    const shapes = Object.fromEntries([...file.tensors].map(([name, { shape }]) => [name, shape.join('x')]));
    expect(shapes).toEqual({
      referencePoints: '1x40x3',
      bevCenters: '1x40x2',
      cameraCenters: '1x40x3',
      weights: '1x40x2',
      out: '1x8x40x32',
      lse: '1x8x40',
      modalityMass: '1x8x40x2',
      keyMass: '56400',
      bias: '1x1x40x56400',
    });
    const { lidar, camera, perCamera } = summary.attentionMass;
    expect(lidar + camera).toBeCloseTo(1, 5);
    expect(Object.values(perCamera).reduce((a, b) => a + b, 0)).toBeCloseTo(camera, 8);
    // A window hides all but 25 BEV and 225 image cells of a query.
    const { data: bias } = await file.read('bias');
    for (let q = 0; q < 40; ++q) {
      const visible = bias.subarray(q * 56400, (q + 1) * 56400).filter((value) => value > -Infinity).length;
      expect(visible).toBeGreaterThan(0);
      expect(visible).toBeLessThanOrEqual(250);
    }
    for (const name of summary.files.filter((file) => file.endsWith('.png'))) {
      const { width, height, format } = await sharp(join(out, name)).metadata();
      expect({ name, width, height, format }).toEqual(
        name === 'bev.png'
          ? { name, width: 900, height: 900, format: 'png' }
          : { name, width: 1600, height: 640, format: 'png' },
      );
    }
  }, 30_000);

  test('gives the same for the same, and a flat image padding', async () => {
    const first = await runFrame(options('same-1'), device);
    const path = await variant('flat.json', (json) => {
      json.imageShape = [480, 1600];
      for (const camera of json.cameras as { file: string }[])
        camera.file = camera.file.replace('.jpg', '-flat.png');
    });
    for (const { file } of frame.cameras) {
      await sharp(file)
        .extract({ left: 0, top: 420, width: 1600, height: 480 })
        .toFile(file.replace('.jpg', '-flat.png'));
    }
    const again = await runFrame(options('same-2'), device);
    expect({ ...again, ms: 0 }).toEqual({ ...first, ms: 0 });
    const bytes = await Promise.all(
      ['same-1', 'same-2'].map((at) => readFile(join(folder, at, 'frame.safetensors'))),
    );
    expect(bytes[0]!.equals(bytes[1]!)).toBe(true);
    const flat = await runFrame(options('flat', { frame: path }), device);
    expect(flat.bias).toContainEqual({ type: 'padding', cells: 6 * 10 * 100 });
    await using file = await openSafetensors(join(folder, 'flat', 'frame.safetensors'));
    const { data: mass } = await file.read('keyMass');
    for (let view = 0; view < 6; ++view) {
      const start = BEV_CELLS + view * CAMERA_CELLS;
      expect(mass.subarray(start, start + 1000).every((value) => value === 0)).toBe(true);
      expect(mass.subarray(start + 1000, start + CAMERA_CELLS).every((value) => value > 0)).toBe(true);
    }
  }, 30_000);

  test('a router from a file, and one camera', async () => {
    const router = join(folder, 'router.safetensors');
    await writeSafetensors(router, {
      weight: { data: new Float32Array(2 * CHANNELS), shape: [2, CHANNELS] },
      bias: { data: Float32Array.of(1.5, -1.5), shape: [2] },
    });
    const path = await variant(
      'one.json',
      (json) => (json.cameras = (json.cameras as unknown[]).slice(0, 1)),
    );
    const summary = await runFrame(options('one', { frame: path, router }), device);
    expect(summary.shape.keys).toBe(BEV_CELLS + CAMERA_CELLS);
    expect(summary.router.mean.lidar).toBeCloseTo(0.817574, 5);
    expect(summary.router.mean.camera).toBeCloseTo(1 - 0.817574, 5);
    expect(summary.attentionMass.lidar).toBeGreaterThan(0.9);
    await writeSafetensors(router, {
      weight: { data: new Float32Array(4), shape: [2, 2] },
      bias: { data: new Float32Array(2), shape: [2] },
    });
    await expectError(() => runFrame(options('bad', { router }), device), 'ERR_SHAPE', '[2, 256]', '[2, 2]');
  }, 30_000);

  const refusals: [string, (json: Record<string, unknown>) => void, string[]][] = [
    ['no cameras', (json) => (json.cameras = []), ['at least one camera', 'cameras']],
    [
      'no calibration',
      (json) => delete (json.cameras as Record<string, unknown>[])[2]!.lidar2img,
      ['cameras[2].lidar2img', 'nothing'],
    ],
    [
      'a ragged matrix',
      (json) => ((json.cameras as { lidar2img: number[][] }[])[0]!.lidar2img[1] = [1, 2]),
      ['4 numbers', 'cameras[0].lidar2img[1]'],
    ],
    [
      'a name that leaves the folder',
      (json) => ((json.cameras as { name: string }[])[0]!.name = '../x'),
      ['cameras[0].name', '../x'],
    ],
    [
      'a name twice',
      (json) => ((json.cameras as { name: string }[])[1]!.name = 'cam_front'),
      ['cameras[1].name', 'once'],
    ],
    ['an image size as text', (json) => (json.imageShape = ['900', 1600]), ['imageShape[0]', '"900"']],
    [
      'a box without size',
      (json) => delete (json.boxes as Record<string, unknown>[])[0]!.size,
      ['boxes[0].size'],
    ],
    [
      'a flat box',
      (json) => ((json.boxes as { size: number[] }[])[0]!.size[1] = 0),
      ['above 0', 'boxes[0].size[1]'],
    ],
    ['no LiDAR', (json) => delete json.lidar, ['lidar', 'nothing']],
    [
      'a sweep of other columns',
      (json) => ((json.lidar as { columns: number }).columns = 63),
      ['multiple of 252 bytes', 'lidar.bin'],
    ],
    ['another image size', (json) => (json.imageShape = [720, 1280]), ['1280×720', '1600×900']],
  ];
  test.each(refusals)('refuses %s', async (name, change, words) => {
    const path = await variant('bad.json', change);
    const error = await errorOf(() => runFrame(options(`refused ${name}`, { frame: path }), device));
    expect(error.code).toBe('ERR_FORMAT');
    for (const word of words) expect(error.message).toContain(word);
    expect(existsSync(join(folder, `refused ${name}`))).toBe(false);
  });

  test('refuses files that are not there or cut off', async () => {
    await expectError(
      () => runFrame(options('x', { frame: join(folder, 'nowhere.json') }), device),
      'ERR_IO',
      'nowhere.json',
    );
    const missing = await variant(
      'missing.json',
      (json) => ((json.cameras as { file: string }[])[3]!.file = 'nothing.jpg'),
    );
    await expectError(
      () => runFrame(options('x', { frame: missing }), device),
      'ERR_IO',
      'nothing.jpg',
      'no such file',
    );
    const whole = await readFile(frame.cameras[0]!.file);
    const path = await variant(
      'cut.json',
      (json) => ((json.cameras as { file: string }[])[0]!.file = 'cut.jpg'),
    );
    for (const length of [0, 1, 100, 2000, Math.floor(whole.length / 2), whole.length - 100]) {
      await writeFile(join(folder, 'scene', 'cut.jpg'), whole.subarray(0, length));
      await expectError(() => runFrame(options('x', { frame: path }), device), 'ERR_FORMAT', 'cut.jpg');
    }
    const sweep = await variant('sweep.json', (json) => ((json.lidar as { file: string }).file = 'cut.bin'));
    for (const length of [0, 19, 21]) {
      await writeFile(join(folder, 'scene', 'cut.bin'), new Uint8Array(length));
      await expectError(
        () => runFrame(options('x', { frame: sweep }), device),
        'ERR_FORMAT',
        'cut.bin',
        `${length} bytes`,
      );
    }
    expect(existsSync(join(folder, 'x'))).toBe(false);
  }, 30_000);

  test('refuses options out of range', async () => {
    await expectError(() => runFrame(options('x', { queries: 0 }), device), 'ERR_VALUE', 'queries', '0');
    await expectError(() => runFrame(options('x', { queries: 1.5 }), device), 'ERR_VALUE', 'queries', '1.5');
    await expectError(() => runFrame(options('x', { seed: -1 }), device), 'ERR_VALUE', 'seed');
    await expectError(() => runFrame(options('x', { strength: NaN }), device), 'ERR_VALUE', 'strength');
    const file = join(folder, 'a-file');
    await copyFile(scene, file);
    await expectError(() => runFrame({ ...options('x'), out: file }, device), 'ERR_IO', 'a-file');
  });

  test('leaves nothing when it is aborted', async () => {
    for (const at of ['attention', 'write']) {
      const controller = new AbortController();
      const progress = (stage: string): void => {
        if (stage === at) controller.abort();
      };
      const { signal } = controller;
      await expectError(
        () => runFrame(options(`aborted ${at}`), device, { signal, progress }),
        'ERR_ABORTED',
      );
      expect(await readdir(join(folder, `aborted ${at}`))).toEqual([]);
    }
  }, 30_000);
});

describe('the command line', () => {
  test('frame: words on stderr, the summary on stdout with --json', () => {
    const out = join(folder, 'cli');
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [command, 'frame', scene, '--out', out, '--queries', '30', '--no-pictures', '--json', '--threads', '1'],
      { encoding: 'utf8' },
    );
    expect({ status, stderr }).toMatchObject({
      status: 0,
      stderr: expect.stringContaining('30 queries') as string,
    });
    const summary = JSON.parse(stdout) as FrameSummary;
    expect(summary).toMatchObject({
      device: { backend: 'cpu', threads: 1 },
      shape: { queries: 30 },
      files: ['frame.safetensors', 'summary.json'],
    });
    expect(stderr.split('\n')[0]).toBe('[1/8] read');
  }, 30_000);

  test.each([
    [['frame', 'nowhere.json', '--out', 'x'], 4, /nowhere\.json/],
    [['frame'], 2, /need at least 1/],
    [['frame', 'x.json'], 2, /out/],
    [['frame', 'x.json', '--out', 'x', '--nonsense'], 2, /nonsense/],
    [['frame', 'x.json', '--out', 'x', '--device', 'cuda:9999'], 3, /cuda:9999/],
    [['demo', '--out', '/dev/null/x'], 4, /\/dev\/null/],
  ])('%j ends with %i', (args, code, words) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [command, ...args], { encoding: 'utf8' });
    const lines = stderr
      .trimEnd()
      .split('\n')
      .filter((line) => !/^\[\d+\/\d+\] /.test(line)); // progress
    expect({ status, stdout, lines: lines.length }).toEqual({ status: code, stdout: '', lines: 1 });
    expect(stderr).toMatch(words);
  });

  test('ends by the signal that stops it, with nothing half-written', async () => {
    const out = join(folder, 'stopped');
    const child = spawn(process.execPath, [command, 'frame', scene, '--out', out, '--queries', '4000'], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    child.stderr.on('data', (text: Buffer) => {
      if (text.includes('attention')) child.kill('SIGTERM');
    });
    const signal = await new Promise((resolve) => child.once('exit', (_, by) => resolve(by)));
    expect(signal).toBe('SIGTERM');
    expect(await readdir(out)).toEqual([]);
  }, 30_000);
});
