// How busy a pipeline keeps the attention kernel when attention is the larger part of a run:
//
//     node bench/pipeline-busy.mjs [--items 24] [--threads N] [--frames]
//
// Jobs of the CMT shape, 900 queries over 56,400 keys in 8 heads of 32 channels, each with tensors of its own (117 MB), or with
// --frames synthetic frames, go through computeItems. Two ratios, of the wall time from the first request to the last result:
//
//   calls   the union of the times in which a native attention call is running, as diagnostics_channel tells them. Another
//           call's waiting in the device's queue is no work of its own, but then the kernel of the one before runs.
//   alone   what the same calls take one after the other with nothing beside them (the median, for jobs), times the items:
//           no overlap can hide in it, and what reading takes from the cores counts against it.
import diagnostics from 'node:diagnostics_channel';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { writeFile } from 'node:fs/promises';

import { open } from 'attention-bias';
import { writeSafetensors } from 'attention-bias/formats';

const require = createRequire(import.meta.url);
const { computeItems } = require('../dist/pipeline/items.js');
const { writeSyntheticScene } = require('../dist/frame/synthetic.js');

const { values } = parseArgs({
  options: {
    items: { type: 'string', default: '24' },
    threads: { type: 'string' },
    frames: { type: 'boolean', default: false },
  },
});
const count = Number(values.items);
const [B, H, Q, K, D] = [1, 8, 900, 56_400, 32];

/** Milliseconds in which at least one call was under way. */
class Union {
  #running = 0;
  #since = 0;
  ms = 0;
  enter = () => {
    if (this.#running++ === 0) this.#since = performance.now();
  };
  leave = () => {
    if (--this.#running === 0) this.ms += performance.now() - this.#since;
  };
}

function uniform(shape, seed) {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
  let state = seed >>> 0;
  for (let i = 0; i < data.length; ++i) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    data[i] = state / 2 ** 31 - 1;
  }
  return { data, shape };
}

/** Job items that share a few tensors files, so that a run of any length fits on the disk. */
async function jobs(folder) {
  const files = 4;
  await writeFile(
    join(folder, 'job.json'),
    JSON.stringify({ op: 'attention', tensors: '0.safetensors', query: 'q', key: 'k', value: 'v' }),
  );
  for (let i = 0; i < files; ++i) {
    await writeSafetensors(join(folder, `${i}.safetensors`), {
      q: uniform([B, H, Q, D], 3 * i + 1),
      k: uniform([B, H, K, D], 3 * i + 2),
      v: uniform([B, H, K, D], 3 * i + 3),
    });
  }
  return Array.from({ length: count }, (_, index) => ({
    kind: 'job',
    index,
    key: String(index).padStart(8, '0'),
    job: join(folder, 'job.json'),
    tensors: join(folder, `${index % files}.safetensors`),
  }));
}

async function frames(folder) {
  const scenes = [];
  for (let i = 0; i < 3; ++i) scenes.push(await writeSyntheticScene(join(folder, `scene-${i}`), i));
  return Array.from({ length: count }, (_, index) => ({
    kind: 'frame',
    index,
    key: String(index).padStart(8, '0'),
    frame: scenes[index % scenes.length],
    options: {},
  }));
}

const folder = await mkdtemp(join(tmpdir(), 'attention-bias-busy-'));
const threads = values.threads === undefined ? undefined : Number(values.threads);
const device = await open({ device: 'cpu', threads });
try {
  const items = await (values.frames ? frames : jobs)(folder);
  let alone;
  if (!values.frames) {
    const [query, key, value] = [
      uniform([B, H, Q, D], 1),
      uniform([B, H, K, D], 2),
      uniform([B, H, K, D], 3),
    ];
    const times = [];
    for (let i = 0; i < 5; ++i) {
      const begin = performance.now();
      const { out, lse } = await device.attention({ query, key, value });
      times.push(performance.now() - begin);
      out.dispose();
      lse.dispose();
    }
    alone = times.sort((a, b) => a - b)[2];
  }
  const union = new Union();
  const channel = diagnostics.tracingChannel('attention-bias:attention');
  channel.subscribe({ start: union.enter, asyncStart: union.leave });
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const run = computeItems(items, { device });
  let failed = 0;
  for await (const { ok } of run) if (!ok) failed += 1;
  delay.disable();
  const { wallMs, stages } = run.stats;
  const report = {
    device: device.info,
    items: count,
    kind: values.frames ? 'frame' : 'job',
    failed,
    wallMs: Math.round(wallMs),
    busy: { calls: union.ms / wallMs, ...(alone === undefined ? {} : { alone: (alone * count) / wallMs }) },
    ...(alone === undefined ? {} : { attentionAloneMs: alone }),
    eventLoopDelayMs: { mean: delay.mean / 1e6, p99: delay.percentile(99) / 1e6 },
    stages: stages.map(({ name, busyMs, totalMs }) => ({
      name,
      busyMs: Math.round(busyMs),
      totalMs: Math.round(totalMs),
    })),
  };
  process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
} finally {
  device.close();
  await rm(folder, { recursive: true });
}
