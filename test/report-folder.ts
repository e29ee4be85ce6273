/** Folders as `attention-bias pipeline` leaves them, with made-up numbers. */
import { createWriteStream } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import sharp from 'sharp';
import { pack } from 'tar-stream';

import type { RunDescription } from '../lib/pipeline/sidecar.js';
import { random } from './support.js';

export interface FolderOptions {
  readonly items: number;
  readonly shardSize?: number;
  readonly seed?: number;
  /** WebP pictures of each frame; by default none */
  readonly pictures?: readonly (readonly [bev: Uint8Array, cameras: Uint8Array])[];
  /** every so many-th item fails; default 37 */
  readonly failEvery?: number;
  /** changes an item's line before it is written */
  readonly change?: (line: Record<string, unknown>, index: number) => void;
  /** shards without their shard file: not finished */
  readonly unfinished?: readonly number[];
}

const CAMERAS = [
  'CAM_FRONT',
  'CAM_FRONT_RIGHT',
  'CAM_BACK_RIGHT',
  'CAM_BACK',
  'CAM_BACK_LEFT',
  'CAM_FRONT_LEFT',
];
const EDGES = [0, 10, 20, 30, 40, 50, 60, 70, 80];
const QUERIES = 900;
const START = Date.UTC(2026, 0, 1);

const FAILURES = [
  {
    stage: 'read',
    code: 'ERR_IO',
    message:
      'expected a file that can be opened for sweeps/0042.bin but received ENOENT: no such file or directory',
  },
  {
    stage: 'read',
    code: 'ERR_FORMAT',
    message: 'frame.json: expected an array for boxes but received nothing',
  },
  {
    stage: 'attention',
    code: 'ERR_VALUE',
    message: 'expected values in [0, 1] for bias[0].segments[1].weights but received NaN at element 7',
  },
] as const;

/** The name of an item in a folder of these. */
export const keyOf = (index: number): string => String(index).padStart(8, '0');

/** Shares of LiDAR that wander from frame to frame, as along a drive, with a few frames far off. */
function lidarShares(count: number, next: () => number): number[] {
  let at = 0.6;
  return Array.from({ length: count }, () => {
    at += (0.6 - at) * 0.03 + (next() - 0.5) * 0.05;
    return Math.min(0.95, Math.max(0.05, next() < 0.01 ? at - 0.3 : at));
  });
}

const bump = (center: number, width: number, next: () => number): number[] =>
  Array.from({ length: 20 }, (_, bin) =>
    Math.round(
      QUERIES * Math.exp(-0.5 * (((bin + 0.5) / 20 - center) / width) ** 2) * (0.05 + 0.02 * next()),
    ),
  );

export function summaryOf(lidar: number, next: () => number): Record<string, unknown> {
  const parts = CAMERAS.map(() => 0.5 + next());
  const sum = parts.reduce((a, b) => a + b, 0);
  const queries = EDGES.slice(1).map((_, bin) =>
    bin === 7 ? 0 : Math.round(60 + 200 * Math.exp(-bin / 3) + 20 * next()),
  );
  const near = queries.map((count, bin) =>
    count === 0 ? null : Math.min(0.99, Math.max(0.01, lidar + 0.25 - 0.08 * bin + 0.06 * (next() - 0.5))),
  );
  return {
    shape: { batch: 1, heads: 8, queries: QUERIES, keys: 56400, headDim: 32 },
    cameras: CAMERAS,
    lidarPoints: Math.round(26_000 + 9000 * next()),
    queries: {
      onBoxes: Math.round(20 + 40 * next()),
      spread: 860,
      seenByACamera: Math.round(700 + 100 * next()),
      boxesLeftOut: 0,
      seed: 1,
    },
    router: { kind: 'evidence', mean: { lidar: lidar * 0.9, camera: 0.8 - lidar * 0.3 } },
    bias: [{ type: 'modality', strength: 5 }],
    attentionMass: {
      lidar,
      camera: 1 - lidar,
      perCamera: Object.fromEntries(CAMERAS.map((name, i) => [name, ((1 - lidar) * parts[i]!) / sum])),
    },
    blindQueries: Math.floor(3 * next()),
    weights: { bins: 20, lidar: bump(lidar * 0.9, 0.12, next), camera: bump(0.8 - lidar * 0.3, 0.18, next) },
    distance: {
      edges: EDGES,
      queries,
      lidar: near,
      camera: near.map((share) => (share === null ? null : 1 - share)),
    },
  };
}

/** WebP pictures of noise and colour, about 20 kB each, `count` pairs of them. */
export async function makePictures(count: number): Promise<[Buffer, Buffer][]> {
  const next = random(5);
  const picture = (width: number, height: number, hue: number): Promise<Buffer> => {
    const rgb = Buffer.alloc(width * height * 3);
    for (let i = 0; i < width * height; ++i) {
      const [x, y] = [i % width, Math.floor(i / width)];
      const far = Math.hypot(x - width / 2, y - height / 2);
      const noise = next() * 70;
      rgb[i * 3] = Math.max(0, 230 - far * hue) + noise * 0.3;
      rgb[i * 3 + 1] = Math.max(0, 120 - far) + noise;
      rgb[i * 3 + 2] = 40 + noise;
    }
    return sharp(rgb, { raw: { width, height, channels: 3 } })
      .webp({ quality: 62 })
      .toBuffer();
  };
  return Promise.all(
    Array.from({ length: count }, async (_, i): Promise<[Buffer, Buffer]> => [
      await picture(360, 360, 0.5 + i / count),
      await picture(1200, 80, 0.5 + i / count),
    ]),
  );
}

async function writeTar(path: string, entries: Iterable<readonly [string, Uint8Array]>): Promise<void> {
  const tar = pack();
  for (const [name, bytes] of entries) tar.entry({ name, mtime: new Date(0) }, Buffer.from(bytes));
  tar.finalize();
  await pipeline(tar, createWriteStream(path));
}

/** Writes such a folder. */
export async function writePipelineFolder(folder: string, options: FolderOptions): Promise<void> {
  const { items, shardSize = 64, seed = 1, pictures = [], failEvery = 37, unfinished = [] } = options;
  const next = random(seed);
  const shares = lidarShares(items, next);
  await mkdir(join(folder, 'shards'), { recursive: true });
  await mkdir(join(folder, 'logs'));
  const run: RunDescription = {
    version: '0.1.0',
    manifest: { sha256: 'ab'.repeat(32), items },
    shardSize,
    shards: Math.ceil(items / shardSize),
    format: 'tar',
    dtype: 'f32',
    tensors: ['lse', 'out'],
    previews: pictures.length > 0,
    precision: 'f32',
    frame: { queries: QUERIES, seed: 1, strength: 5, window: false, features: null, router: null },
  };
  await writeFile(join(folder, 'run.json'), `${JSON.stringify(run, null, 2)}\n`);
  const log: string[] = [];
  let time = START;
  for (let shard = 0; shard * shardSize < items; ++shard) {
    const lines: string[] = [];
    const entries: [string, Uint8Array][] = [];
    for (let index = shard * shardSize; index < Math.min(items, (shard + 1) * shardSize); ++index) {
      const at = {
        key: keyOf(index),
        index,
        kind: 'frame',
        source: `scene-${String(Math.floor(index / 40)).padStart(4, '0')}/${index % 40}.json`,
      };
      const failed = index % failEvery === failEvery - 1;
      const failure = FAILURES[Math.floor(index / failEvery) % FAILURES.length]!;
      const line: Record<string, unknown> = failed
        ? { ...at, ok: false, stage: failure.stage, error: { code: failure.code, message: failure.message } }
        : { ...at, ok: true, summary: summaryOf(shares[index]!, next) };
      options.change?.(line, index);
      lines.push(JSON.stringify(line));
      const long = next() < 0.02 ? 6 : 1;
      const ms = failed
        ? { read: 4 + 8 * next() }
        : {
            read: 20 + 25 * next() ** 3,
            prepare: 60 + 40 * next(),
            project: 0.4 + 0.2 * next(),
            router: 1 + next(),
            attention: (260 + 60 * next()) * long,
            mass: 90 + 30 * next(),
            write: 3 + 6 * next(),
          };
      time += ms.read + (ms.attention ?? 0);
      log.push(
        JSON.stringify({
          level: 30,
          time: Math.round(time),
          msg: 'item',
          key: at.key,
          index,
          shard,
          ok: !failed,
          ms,
        }),
      );
      const [bev, cameras] = pictures.length > 0 ? pictures[index % pictures.length]! : [];
      if (failed || !bev || !cameras) continue;
      entries.push([`${at.key}.bev.webp`, bev], [`${at.key}.cameras.webp`, cameras]);
    }
    const stem = join(
      folder,
      'shards',
      `${String(shard).padStart(6, '0')}-${(shard + 1).toString(16).padStart(16, '0')}`,
    );
    await writeFile(`${stem}.jsonl`, `${lines.join('\n')}\n`);
    if (entries.length > 0) await writeTar(`${stem}.previews.tar`, entries);
    if (!unfinished.includes(shard)) await writeFile(`${stem}.tar`, '');
    log.push(JSON.stringify({ level: 30, time: Math.round(time), msg: 'shard', shard, items: lines.length }));
  }
  // The last line of a process that was killed.
  await writeFile(join(folder, 'logs', 'host-1-1.jsonl'), `${log.join('\n')}\n{"level":30,"ti`);
}
