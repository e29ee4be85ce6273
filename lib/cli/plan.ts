/** `pipeline --plan`: what a run would take, from a sample of it that is computed and written here, and kept nowhere. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { DeviceInfo } from '../device.js';
import { expected } from '../errors.js';
import { ioError } from '../formats/io.js';
import { estimate, measureSample, type Estimate, type Estimated } from '../pipeline/estimate.js';
import type { ManifestItem } from '../pipeline/manifest.js';
import { readManifest } from '../pipeline/read-manifest.js';
import { openScratchShard, type Run } from '../pipeline/run.js';
import { describeDevice, openDevice, type DeviceOptions } from './device-options.js';
import { counted, duration, grouped } from './words.js';

export interface PlanArguments extends DeviceOptions {
  sample: number;
  /** items of the run that is asked about; default: the manifest's */
  frames: number | undefined;
  /** within which the run is to be done */
  hours: number | undefined;
  concurrency: number | undefined;
  'max-bytes': number | undefined;
}

export const planOptions = {
  plan: {
    type: 'boolean',
    default: false,
    describe: 'compute a sample, keep nothing, and say what the run would take',
  },
  sample: { type: 'number', default: 16, requiresArg: true, describe: 'with --plan: items to measure' },
  frames: {
    type: 'number',
    requiresArg: true,
    describe: 'with --plan: as if the manifest had so many items, default its own',
  },
  hours: {
    type: 'number',
    requiresArg: true,
    describe: 'with --plan: say how many cores or GPUs are needed to be done within so many hours',
  },
} as const;

/** Items from all over the manifest, in its order. */
async function spreadSample(run: Run, count: number, signal: AbortSignal): Promise<ManifestItem[]> {
  const wanted = Math.min(count, run.items);
  const places = new Set(Array.from({ length: wanted }, (_, i) => Math.floor((i * run.items) / wanted)));
  const found: ManifestItem[] = [];
  for await (const item of readManifest(run.options.manifest, signal, run.options.root))
    if (places.has(item.index)) found.push(item);
  return found;
}

export interface Plan extends Estimate {
  /** time on one core, or one GPU, of the whole run, in hours */
  readonly deviceHours: Estimated;
  readonly unit: 'core' | 'GPU';
  /** what the sample was computed on */
  readonly device: DeviceInfo;
}

/** Measures a sample of a run and says what the whole takes. */
export async function planPipeline(run: Run, args: PlanArguments, signal: AbortSignal): Promise<Plan> {
  const { sample, frames = run.items, hours, concurrency, 'max-bytes': maxBytes } = args;
  if (hours !== undefined && !(hours > 0))
    throw expected('ERR_VALUE', 'a number above 0', '--hours', String(hours));
  const items = await spreadSample(run, sample, signal);
  using device = await openDevice(args);
  const folder = await mkdtemp(join(tmpdir(), 'attention-bias-plan-')).catch((cause: unknown) => {
    throw ioError('a folder for the sample that can be made', tmpdir(), cause);
  });
  try {
    const shard = await openScratchShard(run, folder);
    const { frame, tensors, previews } = run.options;
    const measured = await measureSample(items, {
      ...{ device, frame, tensors, previews, concurrency, maxBytes, signal, sample },
      each: (outcome) => shard.add(outcome),
    }).finally(() => shard.discard());
    const target = { items: frames, ...(hours === undefined ? {} : { deadlineMs: hours * 3_600_000 }) };
    const found = estimate(measured, target);
    const perDevice = device.info.backend === 'cpu' ? device.info.threads : 1;
    const { value, low, high } = found.totalMs;
    const [deviceValue, deviceLow, deviceHigh] = [value, low, high].map((ms) => (ms * perDevice) / 3_600_000);
    return {
      ...found,
      assumptions: [
        ...found.assumptions,
        `The sample was written into ${tmpdir()}; the output folder takes as many bytes a second.`,
      ],
      deviceHours: { value: deviceValue!, low: deviceLow!, high: deviceHigh! },
      unit: device.info.backend === 'cpu' ? 'core' : 'GPU',
      device: device.info,
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

const range = ({ value, low, high }: Estimated, words: (value: number) => string): string =>
  `${words(value)} (${words(low)} to ${words(high)})`;

/** A plan in words. */
export function describePlan(plan: Plan): string {
  const {
    items,
    sample,
    itemMs,
    totalMs,
    itemsPerHour,
    deviceHours,
    unit,
    failedShare,
    needed,
    startupMs,
    device,
  } = plan;
  const short = (value: number): string => (value < 10 ? value.toPrecision(2) : grouped(Math.round(value)));
  const lines = [
    `${counted(items, 'item')} on ${describeDevice({ info: device })}: ${range(totalMs, (ms) => duration(ms / 1000))}`,
    `${range(itemMs, (ms) => `${short(ms)} ms`)} an item of the ${sample} measured, ${range(itemsPerHour, short)} an hour; ` +
      `${range(deviceHours, short)} ${unit} hours; ${duration(startupMs / 1000)} to start a process`,
  ];
  if (needed) {
    const count = range(needed.count, (value) => grouped(Math.ceil(value)));
    lines.push(`within ${duration(needed.deadlineMs / 1000)}: ${count} ${needed.unit}`);
  }
  if (failedShare > 0) lines.push(`${(100 * failedShare).toFixed(1)} % of the sample failed`);
  lines.push('taken for granted:', ...plan.assumptions.map((words) => `  ${words}`), '');
  return lines.join('\n');
}
