/**
 * A LiDAR-camera frame on disk: FRAME.json with the calibration, the LiDAR sweep and the images beside it. docs/frame.md
 * describes the format for users.
 */
import sharp from 'sharp';
import { z } from 'zod';

import { expected } from '../errors.js';
import { readWhole } from '../formats/io.js';
import { integer, number, readWith } from '../formats/schema.js';
import { resolveFrom } from '../formats/within.js';
import { INPUT_SHAPE, inputTransform } from './geometry.js';

const MAX_FILE_BYTES = 2 ** 30;

const file = z.string({ error: 'the path of a file' }).min(1, { error: 'the path of a file' });
const point = z.tuple([number, number, number], { error: '[x, y, z], numbers' });
const positive = z.number({ error: 'a number above 0' }).positive({ error: 'a number above 0' });
const row = z.tuple([number, number, number, number], { error: 'a row of 4 numbers' });
const pixels = integer
  .min(1, { error: 'an integer from 1 to 16384' })
  .max(16384, { error: 'an integer from 1 to 16384' });

const cameraSchema = z.object(
  {
    // The name of its picture; bev.png is another.
    name: z.string({ error: 'a name' }).regex(/^(?!bev$)\w[\w.-]{0,99}$/i, {
      error: 'a name of letters, digits, _, - and ., other than bev,',
    }),
    file,
    lidar2img: z.tuple([row, row, row, row], { error: 'a matrix of 4 rows' }),
  },
  { error: 'an object' },
);

const boxSchema = z.object(
  {
    label: z.string({ error: 'a text' }),
    center: point,
    size: z.tuple([positive, positive, positive], { error: '[length, width, height], numbers above 0' }),
    yaw: number,
  },
  { error: 'an object' },
);

// Fields beyond these are left alone: calibration files carry many.
const frameSchema = z.object(
  {
    lidar: z.object(
      {
        file,
        columns: integer
          .min(4, { error: 'an integer of at least 4' })
          .max(64, { error: 'an integer of at most 64' })
          .default(5),
      },
      { error: 'an object' },
    ),
    imageShape: z.tuple([pixels, pixels], { error: '[height, width], integers' }),
    cameras: z
      .array(cameraSchema, { error: 'a list of cameras' })
      .min(1, { error: 'at least one camera' })
      .max(64, { error: 'at most 64 cameras' }),
    boxes: z.array(boxSchema, { error: 'a list of boxes' }).default([]),
  },
  { error: 'an object' },
);

/** Metres, LiDAR frame; `center` the geometric centre, `size` length, width and height, `yaw` radians from x to y. */
export type Box = z.infer<typeof boxSchema>;

export interface Camera {
  readonly name: string;
  readonly file: string;
  /** [4, 4] row-major: homogeneous LiDAR metres to pixels of the file's image, times depth */
  readonly lidar2img: readonly number[];
}

/** A frame's calibration, with the paths of its files resolved. */
export interface Frame {
  readonly path: string;
  readonly lidar: { readonly file: string; readonly columns: number };
  /** [height, width] of the image files in pixels */
  readonly imageShape: readonly [number, number];
  readonly cameras: readonly Camera[];
  readonly boxes: readonly Box[];
}

/** Reads FRAME.json; ERR_IO, ERR_FORMAT in one line, also for a file that it names outside of `root`. */
export async function readFrame(path: string, signal?: AbortSignal, root?: string): Promise<Frame> {
  const json = await readWith(frameSchema, path, 'the frame', signal);
  const at = (name: string): string => resolveFrom(path, name, root);
  const names = new Set<string>();
  json.cameras.forEach(({ name }, i) => {
    // Without regard to case, as some file systems have it.
    if (names.has(name.toLowerCase())) {
      throw expected('ERR_FORMAT', 'each name once', `cameras[${i}].name of ${path}`, JSON.stringify(name));
    }
    names.add(name.toLowerCase());
  });
  return {
    path,
    lidar: { file: at(json.lidar.file), columns: json.lidar.columns },
    imageShape: json.imageShape,
    cameras: json.cameras.map((camera) => ({
      ...camera,
      file: at(camera.file),
      lidar2img: camera.lidar2img.flat(),
    })),
    boxes: json.boxes,
  };
}

/** The points of a sweep, `columns` float32 each: x, y, z in metres, intensity from 0 to 255, and what else there is. */
export interface Sweep {
  readonly points: Float32Array;
  readonly columns: number;
  readonly count: number;
}

/** Reads the LiDAR sweep: little-endian float32; ERR_IO, ERR_FORMAT. */
export async function readSweep({ lidar: { file, columns } }: Frame, signal?: AbortSignal): Promise<Sweep> {
  const bytes = await readWhole(file, MAX_FILE_BYTES, signal);
  if (bytes.byteLength === 0 || bytes.byteLength % (4 * columns) !== 0) {
    const what = `a multiple of ${4 * columns} bytes (${columns} float32 a point)`;
    throw expected('ERR_FORMAT', what, file, `${bytes.byteLength} bytes`);
  }
  const points = new Float32Array(bytes);
  return { points, columns, count: points.length / columns };
}

/** An image as the network takes it: RGB of INPUT_SHAPE, black above `firstRow`, where the image has no rows. */
export interface InputImage {
  readonly rgb: Uint8Array;
  readonly firstRow: number;
}

/** Reads a camera's image (JPEG, PNG, WebP, …), scales it to the input's width and cuts out its lower rows. */
export async function readImage(frame: Frame, camera: Camera, signal?: AbortSignal): Promise<InputImage> {
  const bytes = new Uint8Array(await readWhole(camera.file, MAX_FILE_BYTES, signal));
  const [height, width] = INPUT_SHAPE;
  const [imageHeight, imageWidth] = frame.imageShape;
  const { scaledHeight, top } = inputTransform(frame.imageShape);
  const refuse = (cause: unknown): never => {
    const words = cause instanceof Error ? cause.message : String(cause);
    const error = expected('ERR_FORMAT', 'an image that can be decoded', camera.file, words);
    error.cause = cause;
    throw error;
  };
  const decode = async () => sharp(bytes).metadata();
  const { width: fileWidth, height: fileHeight } = await decode().catch(refuse);
  if (fileWidth !== imageWidth || fileHeight !== imageHeight) {
    const what = `an image of ${imageWidth}×${imageHeight} pixels, as imageShape of ${frame.path} has it,`;
    throw expected('ERR_FORMAT', what, camera.file, `${fileWidth}×${fileHeight}`);
  }
  const firstRow = Math.max(0, -top);
  const image = sharp(bytes).toColourspace('srgb').removeAlpha().resize(width, scaledHeight, { fit: 'fill' });
  const visible = await image
    .extract({ left: 0, top: Math.max(0, top), width, height: height - firstRow })
    .raw()
    .toBuffer({ resolveWithObject: true })
    .catch(refuse);
  const rgb = new Uint8Array(height * width * 3);
  const { channels } = visible.info;
  if (channels === 3) rgb.set(visible.data, firstRow * width * 3);
  else
    visible.data.forEach((value, i) =>
      rgb.fill(value, (firstRow * width + i) * 3, (firstRow * width + i + 1) * 3),
    ); // grey
  return { rgb, firstRow };
}
