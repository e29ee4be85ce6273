/** What a run would take, from a measured sample of it. */
import type { DeviceInfo } from '../device.js';
import { expected } from '../errors.js';
import { computeItems, type ComputeOptions, type ItemOutcome } from './items.js';
import type { ManifestItem } from './manifest.js';

/** Items in steady flow: the next ones were under way when the last result came, as in the middle of a run. */
export interface Sample {
  /** milliseconds from the request to the first result: threads, first reads and first kernels start, nothing overlaps yet */
  readonly firstMs: number;
  /** milliseconds from each result to the next, of which there are at least two; the first result itself is not among them */
  readonly intervals: readonly number[];
  /** of the results, those that were failures */
  readonly failed: number;
  readonly device: DeviceInfo;
}

/** The least number of items after the first that say anything of their spread. */
const LEAST = 4;

/**
 * Computes a sample of items as `computeItems` does, and then stops. Where there are fewer items than it takes, they come
 * again.
 *
 * @param items of which at least one
 * @param options `sample`: how many items are timed, at least 4 (default 16), one more for warming up; `each`: what a run does with
 *   an outcome beside computing it, such as writing it, which belongs to its time
 * @throws AttentionBiasError ERR_VALUE for too small a sample, or no item; ERR_ABORTED
 */
export async function measureSample(
  items: readonly ManifestItem[],
  options: ComputeOptions & {
    readonly sample?: number | undefined;
    readonly each?: ((outcome: ItemOutcome) => void | Promise<void>) | undefined;
  },
): Promise<Sample> {
  const { sample = 16, each, ...compute } = options;
  if (!Number.isInteger(sample) || sample < LEAST)
    throw expected('ERR_VALUE', `an integer of at least ${LEAST}`, 'the sample', String(sample));
  if (items.length === 0) throw expected('ERR_VALUE', 'at least one item', 'the sample', 'none');
  function* forEver(): Generator<ManifestItem, never> {
    for (;;) yield* items;
  }
  const times: number[] = [];
  let failed = 0;
  const start = performance.now();
  for await (const outcome of computeItems(forEver(), compute)) {
    await each?.(outcome);
    times.push(performance.now());
    if (!outcome.ok) failed += 1;
    if (times.length > sample) break;
  }
  return {
    firstMs: times[0]! - start,
    intervals: times.slice(1).map((time, i) => time - times[i]!),
    failed,
    device: options.device.info,
  };
}

/** The run that is asked about. */
export interface EstimateTarget {
  /** items of the run */
  readonly items: number;
  /** milliseconds that the whole run may take */
  readonly deadlineMs?: number | undefined;
}

/** A number with the range that it is in with 95 % confidence. */
export interface Estimated {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

/** What a run would take, with the assumptions that it rests on. */
export interface Estimate {
  readonly items: number;
  /** items that were timed */
  readonly sample: number;
  /** milliseconds an item, in steady flow */
  readonly itemMs: Estimated;
  /** standard deviation of single intervals between results, milliseconds */
  readonly spreadMs: number;
  /** milliseconds until the first result beyond what an item takes; once a process */
  readonly startupMs: number;
  /** milliseconds of the whole run on one such device, without the start-up */
  readonly totalMs: Estimated;
  /** what one such device does */
  readonly itemsPerHour: Estimated;
  /** share of the sample's items that failed */
  readonly failedShare: number;
  /** for the deadline: devices like the sample's, each with its machine's own share of cores, and the cores or GPUs they are */
  readonly needed?: {
    readonly deadlineMs: number;
    readonly devices: Estimated;
    readonly unit: 'cores' | 'GPUs';
    readonly count: Estimated;
  };
  /** what it takes for granted, in sentences */
  readonly assumptions: readonly string[];
}

/** Of Student's t: two-sided 95 %, by degrees of freedom. */
const T_95 = [
  12.71, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.2, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.1,
  2.09, 2.09,
];
/** A sample is short: other load, clocks and caches drift by as much over a long run. Added to the range, as a share. */
const DRIFT = 0.05;
const BATCHES = 8;

const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);
const mean = (values: readonly number[]): number => sum(values) / values.length;

function deviation(values: readonly number[]): number {
  const middle = mean(values);
  return Math.sqrt(sum(values.map((value) => (value - middle) ** 2)) / (values.length - 1));
}

/**
 * The mean interval. Results that come in bursts make intervals that depend on each other; means of batches hardly do, so their
 * spread tells how sure the mean is.
 */
function meanInterval(intervals: readonly number[]): Estimated {
  const value = mean(intervals);
  const size = Math.max(
    1,
    Math.floor(intervals.length / BATCHES),
    Math.min(2, Math.floor(intervals.length / LEAST)),
  );
  const batches = Array.from({ length: Math.floor(intervals.length / size) }, (_, i) =>
    mean(intervals.slice(i * size, (i + 1) * size)),
  );
  const error = deviation(batches) / Math.sqrt(batches.length);
  const t = T_95[batches.length - 2] ?? 1.96;
  const off = Math.hypot(t * error, DRIFT * value);
  return { value, low: Math.max(0, value - off), high: value + off };
}

const times = ({ value, low, high }: Estimated, factor: number): Estimated => ({
  value: value * factor,
  low: low * factor,
  high: high * factor,
});

/**
 * What a run of items like the sample's takes on one such device, and how many it needs for a deadline.
 *
 * @throws AttentionBiasError ERR_VALUE for a number of items that is none, a sample of fewer than four intervals, or a deadline
 *   that is over before the first item can be done
 */
export function estimate(sample: Sample, { items, deadlineMs }: EstimateTarget): Estimate {
  const { intervals, device } = sample;
  if (!Number.isInteger(items) || items < 1)
    throw expected('ERR_VALUE', 'an integer of at least 1', 'the items', String(items));
  if (intervals.length < LEAST)
    throw expected('ERR_VALUE', `at least ${LEAST} intervals`, 'the sample', String(intervals.length));
  const itemMs = meanInterval(intervals);
  const startupMs = Math.max(0, sample.firstMs - itemMs.value);
  const hour = 3_600_000;
  return {
    items,
    sample: intervals.length,
    itemMs,
    spreadMs: deviation(intervals),
    startupMs,
    totalMs: times(itemMs, items),
    itemsPerHour: { value: hour / itemMs.value, low: hour / itemMs.high, high: hour / itemMs.low },
    failedShare: sample.failed / (intervals.length + 1),
    ...(deadlineMs === undefined ? {} : { needed: neededFor(deadlineMs, items, itemMs, startupMs, device) }),
    assumptions: [
      `All ${items} items are like the ${intervals.length} of the sample: as many keys and queries, files as large.`,
      'Files are read as fast as in the sample, also when several machines read at once.',
      'Start-up is left out of the total: it comes once for each process, not for each item.',
      'The first item of the sample is left out: threads, caches and kernels were cold.',
      `The range is of 95 % confidence from the sample's own spread, and ${DRIFT * 100} % for what drifts over a long run.`,
      device.backend === 'cpu'
        ? `A device is ${device.threads} thread${device.threads === 1 ? '' : 's'} of ${device.name} (${device.isa}), with reading and preparing on the same cores.`
        : `A device is one ${device.name}, with as many CPU cores for reading and preparing as the sample had.`,
      'Machines share nothing: twice the devices do twice the items.',
    ],
  };
}

function neededFor(
  deadlineMs: number,
  items: number,
  itemMs: Estimated,
  startupMs: number,
  device: DeviceInfo,
): NonNullable<Estimate['needed']> {
  const devices = (ms: number): number => {
    const each = Math.floor((deadlineMs - startupMs) / ms);
    if (!(each >= 1)) {
      const least = `at least ${Math.ceil(startupMs + itemMs.high)} ms (start-up and one item)`;
      throw expected('ERR_VALUE', least, 'the deadline', `${deadlineMs} ms`);
    }
    return Math.ceil(items / each);
  };
  const count = { value: devices(itemMs.value), low: devices(itemMs.low), high: devices(itemMs.high) };
  return {
    deadlineMs,
    devices: count,
    unit: device.backend === 'cpu' ? 'cores' : 'GPUs',
    count: times(count, device.backend === 'cpu' ? device.threads : 1),
  };
}
