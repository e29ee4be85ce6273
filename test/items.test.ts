/** Manifest items: frames and jobs as their own commands compute them, in order, within bounds, failures among them. */
import diagnostics from 'node:diagnostics_channel';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { transferableSymbol, valueSymbol } from 'piscina';
import sharp from 'sharp';

import type { Device } from '../lib/device.js';
import { openSafetensors, writeSafetensors } from '../lib/formats/safetensors.js';
import { runFrame } from '../lib/frame/index.js';
import { writeSyntheticScene } from '../lib/frame/synthetic.js';
import { open } from '../lib/index.js';
import { readJob, runJob } from '../lib/job.js';
import { computeItems, type ComputeOptions, type ItemOutcome } from '../lib/pipeline/items.js';
import type { FrameItem, JobItem, ManifestItem } from '../lib/pipeline/manifest.js';
import { ReusedMemory } from '../lib/pipeline/reused-memory.js';
import prepare from '../lib/pipeline/prepare-worker.js';
import type { StageEvent, ItemEvent } from '../lib/telemetry.js';
import { errorOf, expectError, random, uniform } from './support.js';

let folder: string;
let device: Device;
let small: string; // a frame of one camera
const settings = { queries: 12, seed: 3, strength: 5, window: false };

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'attention-bias-items-'));
  device = await open({ device: 'cpu', threads: 2 });
  const scene = await writeSyntheticScene(join(folder, 'scene'), 1);
  const json = JSON.parse(await readFile(scene, 'utf8')) as { cameras: unknown[] };
  small = join(folder, 'scene', 'small.json');
  await writeFile(small, JSON.stringify({ ...json, cameras: json.cameras.slice(0, 1) }));
  const next = random(5);
  for (const i of [0, 1, 2]) {
    await writeSafetensors(join(folder, `${i}.safetensors`), {
      q: uniform(next, [1, 2, 5, 4]),
      k: uniform(next, [1, 2, 30, 4]),
      v: uniform(next, [1, 2, 30, 4]),
    });
    const job = { op: 'attention', tensors: `${i}.safetensors`, query: 'q', key: 'k', value: 'v' };
    await writeFile(join(folder, `${i}.json`), JSON.stringify(job));
  }
}, 30_000);

afterAll(async () => {
  device.close();
  await rm(folder, { recursive: true });
});

const frameItem = (index: number, more: Partial<FrameItem> = {}): FrameItem => ({
  ...{ kind: 'frame', index, key: `f${index}`, frame: small, options: {} },
  ...more,
});
const jobItem = (index: number, job = index % 3, more: Partial<JobItem> = {}): JobItem => ({
  ...{ kind: 'job', index, key: `j${index}`, job: join(folder, `${job}.json`) },
  ...more,
});

async function outcomes(
  items: Iterable<ManifestItem>,
  options: Partial<ComputeOptions> = {},
): Promise<ItemOutcome[]> {
  const all: ItemOutcome[] = [];
  for await (const outcome of computeItems(items, { device, frame: settings, ...options })) all.push(outcome);
  return all;
}

/** The outcome of an item that is to succeed. */
function good(outcome: ItemOutcome | undefined): Extract<ItemOutcome, { ok: true }> {
  if (outcome?.ok) return outcome;
  throw outcome?.error ?? new Error('no outcome');
}

describe('frames and jobs', () => {
  test('come in order, as frame and run compute them, failures among them', async () => {
    const items: ManifestItem[] = [
      frameItem(0),
      jobItem(1),
      frameItem(2, { frame: join(folder, 'nowhere.json') }),
      jobItem(3, 2, { tensors: join(folder, '0.safetensors') }),
      frameItem(4, { options: { queries: 0 } }),
      frameItem(5, { options: { queries: 7, window: true } }),
      jobItem(6, 0, { job: join(folder, 'no.json') }),
      jobItem(7, 0, { tensors: join(folder, 'no.safetensors') }),
    ];
    const all = await outcomes(items, { previews: true });
    expect(all.map(({ item }) => item)).toEqual(items);
    expect(all.map(({ ok }) => ok)).toEqual([true, true, false, true, false, true, false, false]);
    const failures = all.flatMap((outcome) => (outcome.ok ? [] : [outcome]));
    expect(failures.map(({ stage, error }) => [stage, error.code])).toEqual([
      ['read', 'ERR_IO'],
      ['read', 'ERR_VALUE'],
      ['read', 'ERR_IO'],
      ['read', 'ERR_IO'],
    ]);
    expect(failures[0]!.error.message).toContain('nowhere.json');

    for (const [at, more] of [
      [0, {}],
      [5, { queries: 7, window: true }],
    ] as const) {
      const { tensors, summary, previews, ms } = good(all[at]);
      const out = join(folder, `frame-${at}`);
      const alone = await runFrame(
        { ...settings, ...more, frame: small, out, dense: false, pictures: false },
        device,
      );
      await using file = await openSafetensors(join(out, 'frame.safetensors'));
      expect(Object.keys(tensors).sort()).toEqual([...file.tensors.keys()].sort());
      for (const [name, { data, shape }] of Object.entries(tensors)) {
        const written = await file.read(name);
        expect({ name, shape: [...shape] }).toEqual({ name, shape: written.shape });
        expect(Buffer.compare(Buffer.from(data.buffer), Buffer.from(written.data.buffer))).toBe(0);
      }
      const json = JSON.parse(JSON.stringify(alone)) as Record<string, unknown>;
      for (const name of ['frame', 'device', 'ms', 'files']) Reflect.deleteProperty(json, name);
      expect(summary).toEqual(json);
      expect(Object.keys(ms)).toEqual(expect.arrayContaining(['read', 'features', 'attention', 'mass']));
      expect(Object.keys(previews)).toEqual(['bev.webp', 'cameras.webp']);
    }
    expect(JSON.stringify(good(all[0]).summary)).not.toContain(folder);

    const job = good(all[3]);
    const alone = await runJob(join(folder, '0.json'), { device });
    expect(job.summary).toEqual({ op: 'attention', outputs: { out: [1, 2, 5, 4], lse: [1, 2, 5] } });
    expect(job.tensors.out!.data).toEqual(alone.out!.data);
    expect(job.tensors.lse).toMatchObject({ dtype: 'float32', shape: [1, 2, 5] });
    expect(job.previews).toEqual({});
    expect(Object.keys(job.ms)).toEqual(['read', 'attention']);
  });

  test('summaries count queries by weight and by distance', async () => {
    const { summary } = good((await outcomes([frameItem(0, { options: { queries: 300 } })]))[0]);
    const { weights, distance } = summary as {
      weights: { bins: number; lidar: number[]; camera: number[] };
      distance: { edges: number[]; queries: number[]; lidar: (number | null)[]; camera: (number | null)[] };
    };
    const total = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);
    expect(weights.bins).toBe(20);
    expect(weights.lidar).toHaveLength(20);
    expect([weights.lidar, weights.camera, distance.queries].map(total)).toEqual([300, 300, 300]);
    expect(distance.edges).toEqual([0, 10, 20, 30, 40, 50, 60, 70, 80]);
    distance.queries.forEach((count, i) => {
      if (count === 0) expect([distance.lidar[i], distance.camera[i]]).toEqual([null, null]);
      else expect(distance.lidar[i]! + distance.camera[i]!).toBeCloseTo(1, 4);
    });
  });

  test('previews are small pictures of all cameras; a router is named without its folder', async () => {
    const router = join(folder, 'router.safetensors');
    const next = random(1);
    await writeSafetensors(router, { weight: uniform(next, [2, 256]), bias: uniform(next, [2]) });
    const all = await outcomes(
      [frameItem(0, { frame: join(folder, 'scene', 'frame.json'), options: { router } })],
      {
        previews: true,
        tensors: ['lse'],
      },
    );
    const { previews, summary, tensors } = good(all[0]);
    expect(Object.keys(tensors)).toEqual(['lse']);
    expect(summary.router).toMatchObject({ source: 'router.safetensors' });
    const [bev, cameras] = [previews['bev.webp']!, previews['cameras.webp']!];
    expect(await sharp(bev).metadata()).toMatchObject({ format: 'webp', width: 360, height: 360 });
    expect(await sharp(cameras).metadata()).toMatchObject({ format: 'webp', width: 1920, height: 128 });
    expect(bev.length + cameras.length).toBeLessThan(100_000);
    const { channels } = await sharp(cameras).stats();
    for (const { stdev } of channels) expect(stdev).toBeGreaterThan(10); // something is to be seen
  });

  test('tensors are those asked for; the dense bias only then', async () => {
    const all = await outcomes([frameItem(0), jobItem(1)], { tensors: ['bias', 'out', 'keyMass'] });
    expect(Object.keys(good(all[0]).tensors).sort()).toEqual(['bias', 'keyMass', 'out']);
    expect(good(all[0]).tensors.bias!.shape).toEqual([1, 1, 12, 36_400]);
    expect(Object.keys(good(all[1]).tensors)).toEqual(['out']);
  });

  test('all that a thread prepares leaves it by transfer', async () => {
    const { [transferableSymbol]: list, [valueSymbol]: reply } = (await prepare({
      frame: small,
      features: undefined,
      previews: true,
    })) as Record<symbol, unknown>;
    const seen: ArrayBufferLike[] = [];
    const visit = (value: unknown): void => {
      if (ArrayBuffer.isView(value)) seen.push(value.buffer);
      else if (typeof value === 'object' && value !== null) Object.values(value).forEach(visit);
    };
    visit(reply);
    expect(seen.length).toBeGreaterThanOrEqual(5);
    expect(new Set(list as ArrayBuffer[])).toEqual(new Set(seen));
  });
});

describe('the flow of items', () => {
  test('the next items are read while one is on the device', async () => {
    const channel = diagnostics.tracingChannel<unknown, StageEvent>('attention-bias:stage');
    const read = new Map<number, () => void>();
    const isRead = [0, 1, 2, 3, 4].map((i) => new Promise<void>((resolve) => read.set(i, resolve)));
    const asyncEnd = (event: StageEvent): void => {
      if (event.stage === 'read') read.get(event.index)!();
    };
    channel.subscribe({ asyncEnd } as never);
    try {
      // The first item's attention ends when three more are in memory: it would wait for ever if they were not read.
      const slow = Object.create(device, {
        attention: {
          value: async (args: Parameters<Device['attention']>[0]) => {
            await Promise.all(isRead.slice(0, 4));
            return device.attention(args);
          },
        },
        info: { value: device.info },
      }) as Device;
      const all = await outcomes(
        [0, 1, 2, 3, 4].map((i) => jobItem(i)),
        { device: slow, concurrency: 4 },
      );
      expect(all.every(({ ok }) => ok)).toBe(true);
    } finally {
      channel.unsubscribe({ asyncEnd } as never);
    }
  });

  test('bytes bound the items under way: large ones go alone', async () => {
    const items = Array.from({ length: 8 }, (_, i) => jobItem(i));
    const bytes = 4 * (1 * 2 * 5 * 4 + 2 * 2 * 30 * 4);
    for (const [maxBytes, most] of [
      [bytes, 1],
      [2 * bytes, 2],
    ] as const) {
      const run = computeItems(items, { device, maxBytes, concurrency: 6 });
      let count = 0;
      for await (const { ok } of run) count += Number(ok);
      expect(count).toBe(8);
      expect(run.stats.peak).toEqual({ items: most, bytes: most * bytes });
    }
    await expectError(() => outcomes([], { concurrency: 0 }), 'ERR_VALUE', 'concurrency', '0');
    await expectError(() => outcomes([], { maxBytes: -1 }), 'ERR_VALUE', 'maxBytes', '-1');
  });

  test("jobs' tensors are read into memory that is used again, once the device has done with it", async () => {
    const next = random(9);
    const shapes = { q: [1, 2, 5, 64], k: [1, 2, 2100, 64], v: [1, 2, 2100, 64] }; // k and v take 1 MiB
    const files = [0, 1, 2].map((i) => join(folder, `large-${i}.safetensors`));
    for (const file of files) {
      const tensors = Object.entries(shapes).map(([name, shape]) => [name, uniform(next, shape)] as const);
      await writeSafetensors(file, Object.fromEntries(tensors));
    }
    const inUse = new Set<ArrayBufferLike>();
    const used: ArrayBufferLike[] = [];
    const watched = Object.create(device, {
      attention: {
        value: async (args: Parameters<Device['attention']>[0]) => {
          const buffers = [args.key, args.value].map((tensor) => (tensor.data as Float32Array).buffer);
          for (const buffer of buffers) {
            expect(inUse.has(buffer)).toBe(false);
            inUse.add(buffer);
            used.push(buffer);
          }
          const results = await device.attention(args);
          for (const buffer of buffers) inUse.delete(buffer);
          return results;
        },
      },
      info: { value: device.info },
    }) as Device;
    const items = Array.from({ length: 12 }, (_, i) => jobItem(i, 0, { tensors: files[i % 3]! }));
    const all = await outcomes(items, { device: watched, concurrency: 4 });
    for (const [i, outcome] of all.entries()) {
      const { out } = await runJob(
        join(folder, '0.json'),
        { device },
        {
          ...(await readJob(join(folder, '0.json'))),
          tensors: files[i % 3]!,
        },
      );
      expect(good(outcome).tensors.out!.data).toEqual(out!.data);
    }
    expect(used).toHaveLength(24);
    expect(new Set(used).size).toBeLessThanOrEqual(8);
  });

  test('memory to be used again is bounded, and exactly of the size that is asked for', () => {
    const memory = new ReusedMemory(5 * 2 ** 20);
    const [small, ...large] = [1, 2, 3, 4].map((mib) =>
      memory.take(mib * 2 ** 20 - 4 * Number(mib === 1), 'x'),
    );
    for (const buffer of [small!, ...large]) memory.give(buffer);
    memory.give(large[2]!); // once more
    expect(memory.take(4 * 2 ** 20, 'x')).toBe(large[2]); // 2 and 3 MiB had to go for it
    for (const [i, buffer] of large.slice(0, 2).entries())
      expect(memory.take((i + 2) * 2 ** 20, 'x')).not.toBe(buffer);
    expect(memory.take(2 ** 20 - 4, 'x')).not.toBe(small);
    expect(memory.take(4 * 2 ** 20, 'x')).not.toBe(large[2]);
  });

  test('a signal and a break end it; whoever listens is told of every item', async () => {
    const events: ItemEvent[] = [];
    const channel = diagnostics.tracingChannel<unknown, ItemEvent>('attention-bias:item');
    const asyncEnd = (event: ItemEvent): void => void events.push(event);
    channel.subscribe({ asyncEnd } as never);
    try {
      await outcomes([jobItem(0), jobItem(1, 0, { job: 'nowhere.json' })]);
      const told = events.map(({ key, type, error }) => [key, type, error === undefined]);
      expect(told.sort()).toEqual([
        ['j0', 'job', true],
        ['j1', 'job', false],
      ]);
      events.length = 0;
      const controller = new AbortController();
      const run = computeItems(
        Array.from({ length: 1000 }, (_, i) => jobItem(i)),
        { device, signal: controller.signal },
      );
      let seen = 0;
      const error = await errorOf(async () => {
        for await (const { ok } of run) {
          expect(ok).toBe(true);
          if (++seen === 5) controller.abort(new Error('enough'));
        }
      });
      expect(error).toMatchObject({ code: 'ERR_ABORTED', cause: new Error('enough') });
      expect(seen).toBe(5);
      expect(run.stats.taken).toBeLessThan(20);
      await new Promise(setImmediate);
      expect(events.length).toBeGreaterThanOrEqual(5);
      expect(events.slice(5).every(({ error }) => (error as { code?: string }).code === 'ERR_ABORTED')).toBe(
        true,
      );
      for await (const { item } of computeItems([frameItem(0), frameItem(1)], { device, frame: settings })) {
        expect(item.index).toBe(0);
        break;
      }
    } finally {
      channel.unsubscribe({ asyncEnd } as never);
    }
  });

  test('an error of the items themselves ends it', async () => {
    function* items(): Generator<ManifestItem, void> {
      yield jobItem(0);
      throw new Error('line 2');
    }
    await expect(outcomes(items())).rejects.toThrow('line 2');
  });
});
