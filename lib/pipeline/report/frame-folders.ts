/** Folders that `attention-bias frame` wrote, one frame each, as a report's source. */
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import sharp from 'sharp';
import { z } from 'zod';

import { ioError, throwIfAborted } from '../../formats/io.js';
import { PREVIEW_SHAPE } from '../../frame/pictures.js';
import type { PictureKind, Row } from './data.js';
import type { Picture, Source, SourceContext } from './page.js';
import { failedRow, rowOf } from './row.js';

/** Pixels, as of a pipeline's previews: of the picture from above, and of a camera's in the strip of all. */
const BEV = 360;
const [CAMERA_HEIGHT, CAMERA_WIDTH] = PREVIEW_SHAPE;
const WEBP = { quality: 70 } as const;

const collator = new Intl.Collator('en', { numeric: true });

export const isFile = async (path: string): Promise<boolean> =>
  (await stat(path).catch(() => undefined))?.isFile() ?? false;

/** The folder itself, or those in it that hold a frame, in the order of their names. */
export async function foldersOfFrames(folder: string): Promise<string[]> {
  if (await isFile(join(folder, 'summary.json'))) return [folder];
  const entries = await readdir(folder, { withFileTypes: true }).catch((cause: unknown) => {
    throw ioError('a folder that can be read', folder, cause);
  });
  const names = entries.filter((entry) => !entry.isFile()).map(({ name }) => name);
  const found: string[] = [];
  for (const name of names.sort((a, b) => collator.compare(a, b)))
    if (await isFile(join(folder, name, 'summary.json'))) found.push(join(folder, name));
  return found;
}

const summarySchema = z.object({
  frame: z.string().optional().catch(undefined),
  cameras: z.array(z.string()).catch([]),
});

/** A camera's picture has its name; one that leads elsewhere is none. */
const isName = (name: string): boolean => name !== '' && basename(name) === name && name !== '..';

/** All cameras side by side, in their order; undefined where none has a picture. */
async function camerasStrip(folder: string, names: readonly string[]): Promise<Uint8Array | undefined> {
  const tiles: { input: Buffer; left: number; top: number }[] = [];
  for (const [i, name] of names.entries()) {
    const path = join(folder, `${name}.png`);
    if (!isName(name) || !(await isFile(path))) continue;
    const input = await sharp(path).resize(CAMERA_WIDTH, CAMERA_HEIGHT, { fit: 'fill' }).png().toBuffer();
    tiles.push({ input, left: i * CAMERA_WIDTH, top: 0 });
  }
  if (tiles.length === 0) return undefined;
  const size = { width: CAMERA_WIDTH * names.length, height: CAMERA_HEIGHT };
  return sharp({ create: { ...size, channels: 3, background: '#0c0c0c' } })
    .composite(tiles)
    .webp(WEBP)
    .toBuffer();
}

async function bevPicture(folder: string): Promise<Uint8Array | undefined> {
  const path = join(folder, 'bev.png');
  return (await isFile(path))
    ? sharp(path).resize(BEV, BEV, { fit: 'inside' }).webp(WEBP).toBuffer()
    : undefined;
}

/** A picture that can't be read is none: the numbers of its frame are what counts. */
async function* picturesOf(n: number, folder: string, cameras: readonly string[]): AsyncGenerator<Picture> {
  const makers: readonly (readonly [PictureKind, () => Promise<Uint8Array | undefined>])[] = [
    ['bev', () => bevPicture(folder)],
    ['cameras', () => camerasStrip(folder, cameras)],
  ];
  for (const [kind, make] of makers) {
    const bytes = await make().catch(() => undefined);
    if (bytes) yield { n, kind, bytes };
  }
}

async function readRow(
  folder: string,
  n: number,
  pictures: boolean,
): Promise<{ row: Row; cameras: string[] }> {
  const place = { n, index: n, key: basename(resolve(folder)), kind: 'frame', source: '', pictures } as const;
  const path = join(folder, 'summary.json');
  try {
    const summary: unknown = JSON.parse(await readFile(path, 'utf8'));
    const { frame, cameras } = summarySchema.parse(summary);
    return { row: rowOf({ ...place, source: frame ?? '' }, summary), cameras };
  } catch (cause) {
    // A frame that was cut off or changed does not keep the others from being seen.
    const message = cause instanceof Error ? cause.message : String(cause);
    const failure = { stage: 'report', code: 'ERR_FORMAT', message: `summary.json: ${message}` };
    return { row: failedRow({ ...place, pictures: false }, failure), cameras: [] };
  }
}

/** @param folders of one frame each, in the page's order */
export function frameFolders(folder: string, folders: readonly string[], context: SourceContext): Source {
  const cameras: (string[] | undefined)[] = [];
  return {
    meta: {
      title: basename(resolve(folder)),
      kind: 'frames',
      version: context.version,
      facts: [],
      items: folders.length,
      notes: [],
    },
    async *rows() {
      for (const [n, path] of folders.entries()) {
        throwIfAborted(context.signal, path);
        const keep = context.keeps(n, folders.length);
        const { row, cameras: names } = await readRow(path, n, keep);
        cameras[n] = row.pictures ? names : undefined;
        yield [row];
      }
    },
    async *pictures() {
      for (const [n, path] of folders.entries()) {
        throwIfAborted(context.signal, path);
        const names = cameras[n];
        if (names) yield* picturesOf(n, path, names);
      }
    },
  };
}
