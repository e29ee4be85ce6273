// Frames in memory: made-up ones from seeds, or one from disk. An image is kept as grey levels at half its size.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { inputMatrix, INPUT_SHAPE } from '../../dist/frame/geometry.js';
import { readFrame, readImage, readSweep } from '../../dist/frame/scene.js';
import { writeSyntheticScene } from '../../dist/frame/synthetic.js';

export const GREY_SHAPE = INPUT_SHAPE.map((size) => size / 2);

/** Grey levels in [0, 255], the mean of 2×2 pixels and three colours each. */
function greyOf({ rgb }) {
  const [height, width] = GREY_SHAPE;
  const grey = new Float32Array(height * width);
  const row = width * 2 * 3;
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      const at = y * 2 * row + x * 6;
      let sum = 0;
      for (let i = 0; i < 6; ++i) sum += rgb[at + i] + rgb[at + row + i];
      grey[y * width + x] = sum / 12;
    }
  }
  return grey;
}

/** A frame from its frame.json: LiDAR points, grey images, calibration and boxes. */
export async function readScene(path, name) {
  const frame = await readFrame(path);
  const [sweep, ...images] = await Promise.all([
    readSweep(frame),
    ...frame.cameras.map((camera) => readImage(frame, camera)),
  ]);
  return {
    name,
    sweep,
    images: images.map(greyOf),
    matrices: frame.cameras.map(({ lidar2img }) => inputMatrix(lidar2img, frame.imageShape)),
    boxes: frame.boxes,
  };
}

/** Made-up scenes, one a seed; their files are removed again. */
export async function syntheticScenes(seeds) {
  const folder = await mkdtemp(join(tmpdir(), 'train-router-'));
  try {
    const scenes = [];
    for (const seed of seeds) {
      scenes.push(
        await readScene(await writeSyntheticScene(join(folder, String(seed)), seed), `seed ${seed}`),
      );
    }
    return scenes;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
