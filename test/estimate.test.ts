/** What a run would take: of samples whose truth is known, and of a real one. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Device, DeviceInfo } from '../lib/device.js';
import { writeSafetensors } from '../lib/formats/safetensors.js';
import { open } from '../lib/index.js';
import { estimate, measureSample, type Sample } from '../lib/pipeline/estimate.js';
import { computeItems } from '../lib/pipeline/items.js';
import type { ManifestItem } from '../lib/pipeline/manifest.js';
import { normalFrom } from '../lib/random.js';
import { expectError, random, uniform } from './support.js';

const cpu: DeviceInfo = { backend: 'cpu', name: 'a CPU', isa: 'x86-64-v3', threads: 4 };
const gpu: DeviceInfo = {
  backend: 'cuda',
  name: 'a GPU',
  ordinal: 0,
  computeCapability: '9.0',
  multiprocessors: 132,
  memoryBytes: 8e10,
};
const sampleOf = (intervals: number[], device: DeviceInfo = cpu): Sample => ({
  ...{ firstMs: 1100, intervals, failed: 0, device },
});

describe('a sample whose truth is known', () => {
  test('even intervals', () => {
    const result = estimate(sampleOf(Array<number>(16).fill(100)), { items: 1000 });
    expect(result).toMatchObject({
      ...{ items: 1000, sample: 16, spreadMs: 0, startupMs: 1000, failedShare: 0 },
      itemMs: { value: 100, low: 95, high: 105 },
      totalMs: { value: 100_000, low: 95_000, high: 105_000 },
      itemsPerHour: { value: 36_000 },
    });
    expect(result.needed).toBeUndefined();
    expect(result.assumptions.join('\n')).toMatch(/Start-up is left out[^]*4 threads of a CPU/);
  });

  test('results in bursts are no uncertainty', () => {
    const bursts = Array.from({ length: 32 }, (_, i) => (i % 2 === 0 ? 0 : 200));
    const { itemMs, spreadMs } = estimate(sampleOf(bursts), { items: 10 });
    expect(itemMs).toEqual({ value: 100, low: 95, high: 105 });
    expect(spreadMs).toBeGreaterThan(90);
  });

  test('the range holds the truth in at least 90 of 100 samples', () => {
    const next = random(11);
    let held = 0;
    for (let i = 0; i < 200; ++i) {
      const intervals = Array.from({ length: 16 }, () => Math.max(1, 100 + 30 * normalFrom(next)));
      const { low, high } = estimate(sampleOf(intervals), { items: 1 }).itemMs;
      if (low <= 100 && 100 <= high) held += 1;
    }
    expect(held).toBeGreaterThan(180);
  });

  test('devices for a deadline: whole items, start-up taken off, cores or GPUs', () => {
    const even = Array<number>(8).fill(100);
    const { needed } = estimate(sampleOf(even), { items: 1000, deadlineMs: 11_000 });
    expect(needed).toMatchObject({
      devices: { value: 10, low: 10, high: 11 },
      unit: 'cores',
      count: { value: 40 },
    });
    expect(estimate(sampleOf(even, gpu), { items: 1000, deadlineMs: 11_000 }).needed).toMatchObject({
      unit: 'GPUs',
      count: { value: 10 },
    });
  });

  test('what is no sample or target is refused', async () => {
    const even = sampleOf(Array<number>(8).fill(100));
    await expectError(() => estimate(even, { items: 0 }), 'ERR_VALUE', 'items', '0');
    await expectError(() => estimate(sampleOf([1, 2, 3]), { items: 1 }), 'ERR_VALUE', 'sample', '3');
    await expectError(
      () => estimate(even, { items: 9, deadlineMs: 1050 }),
      'ERR_VALUE',
      'deadline',
      '1050 ms',
    );
  });
});

describe('a sample of a run', () => {
  let folder: string;
  let device: Device;
  let items: ManifestItem[];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'attention-bias-estimate-'));
    device = await open({ device: 'cpu', threads: 1 });
    const next = random(3);
    await writeSafetensors(join(folder, 'tensors.safetensors'), {
      q: uniform(next, [1, 8, 200, 32]),
      k: uniform(next, [1, 8, 1500, 32]),
    });
    const job = { op: 'attention', tensors: 'tensors.safetensors', query: 'q', key: 'k', value: 'k' };
    await writeFile(join(folder, 'job.json'), JSON.stringify(job));
    items = Array.from({ length: 160 }, (_, index) => ({
      ...{ kind: 'job', index, key: `k${index}`, job: join(folder, 'job.json') },
    }));
  });

  afterAll(async () => {
    device.close();
    await rm(folder, { recursive: true });
  });

  test('foretells a run of ten times as many items within 20 %', async () => {
    // Other processes on the machine come and go: a prediction may miss, but not each time.
    let off = Infinity;
    for (let tries = 0; tries < 6 && off > 0.2; ++tries) {
      const written: string[] = [];
      const each = ({ item }: { item: ManifestItem }): void => void written.push(item.key);
      const sample = await measureSample(items.slice(0, 3), { device, sample: 16, each });
      expect(sample.intervals).toHaveLength(16);
      expect(written.slice(0, 5)).toEqual(['k0', 'k1', 'k2', 'k0', 'k1']);
      const { totalMs, startupMs } = estimate(sample, { items: 160 });
      const run = computeItems(items, { device });
      let count = 0;
      for await (const { ok } of run) count += Number(ok);
      expect(count).toBe(160);
      off = Math.abs((totalMs.value + startupMs) / run.stats.wallMs - 1);
    }
    expect(off).toBeLessThan(0.2);
  });

  test('counts failures, and refuses to be of nothing', async () => {
    const bad: ManifestItem = { kind: 'job', index: 0, key: 'bad', job: join(folder, 'no.json') };
    const sample = await measureSample([items[0]!, bad], { device, sample: 5 });
    expect(sample.failed).toBe(3);
    expect(estimate(sample, { items: 2 }).failedShare).toBe(0.5);
    await expectError(() => measureSample([], { device }), 'ERR_VALUE', 'none');
    await expectError(() => measureSample(items, { device, sample: 3 }), 'ERR_VALUE', 'sample', '3');
  });
});
