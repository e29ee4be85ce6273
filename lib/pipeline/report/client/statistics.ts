/** Sums over frames. */
import type { ByDistance, BySensor, Failure, Row } from '../data.js';

/** The value below which a share `p` of sorted numbers lies, between two of them where it falls so. NaN of none. */
export function quantile(sorted: ArrayLike<number>, p: number): number {
  if (sorted.length === 0) return NaN;
  const place = (sorted.length - 1) * p;
  const [low, high] = [Math.floor(place), Math.ceil(place)];
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (place - low);
}

export const sorted = (values: Iterable<number>): Float64Array => Float64Array.from(values).sort();

export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

/** Share of the queries in each bin of weight; undefined where no row has weights. Rows of other bins are left out. */
export function weightShares(rows: readonly Row[]): BySensor<number[]> | undefined {
  const bins = rows.find((row) => row.weights)?.weights?.lidar.length;
  if (bins === undefined) return undefined;
  const shares = (sensor: 'lidar' | 'camera'): number[] => {
    const sums = new Array<number>(bins).fill(0);
    for (const { weights } of rows) {
      if (weights?.[sensor].length !== bins) continue;
      weights[sensor].forEach((count, bin) => (sums[bin] = sums[bin]! + count));
    }
    const total = sums.reduce((a, b) => a + b, 0);
    return sums.map((sum) => (total > 0 ? sum / total : 0));
  };
  return { lidar: shares('lidar'), camera: shares('camera') };
}

/** A bin of distance over many frames. */
export interface DistanceBin {
  readonly from: number;
  readonly to: number;
  readonly queries: number;
  /** mean over queries; NaN where there are none */
  readonly lidar: number;
  readonly camera: number;
  /** of the frames' means for LiDAR: the 10th and the 90th of 100 */
  readonly spread: readonly [number, number];
}

/** Whether a row's bins are those. */
export const hasEdges = (distance: ByDistance | undefined, edges: readonly number[]): boolean =>
  distance?.edges.length === edges.length && distance.edges.every((edge, i) => edge === edges[i]);

/** The bins of the first row that has any, over all rows that have the same. */
export function distanceBins(rows: readonly Row[]): DistanceBin[] {
  const edges = rows.find((row) => row.distance)?.distance?.edges ?? [];
  const frames = rows.flatMap(({ distance }) => (distance && hasEdges(distance, edges) ? [distance] : []));
  return edges.slice(1).map((to, bin) => {
    let [queries, lidar, camera] = [0, 0, 0];
    const shares: number[] = [];
    for (const frame of frames) {
      const [count, l, c] = [frame.queries[bin] ?? 0, frame.lidar[bin], frame.camera[bin]];
      if (typeof l !== 'number' || typeof c !== 'number') continue;
      queries += count;
      lidar += count * l;
      camera += count * c;
      shares.push(l);
    }
    const order = sorted(shares);
    return {
      from: edges[bin]!,
      to,
      queries,
      lidar: lidar / queries,
      camera: camera / queries,
      spread: [quantile(order, 0.1), quantile(order, 0.9)],
    };
  });
}

/** How long a stage takes, over rows. */
export interface StageTimes {
  readonly stage: string;
  /** sorted, one a row that has the stage */
  readonly times: Float64Array;
  readonly sum: number;
}

/** Stages in the order in which rows first name them. `total` is no stage. */
export function stageTimes(rows: readonly Row[]): StageTimes[] {
  const stages = new Map<string, number[]>();
  for (const { ms } of rows) {
    for (const [stage, time] of Object.entries(ms ?? {})) {
      if (stage === 'total') continue;
      const times = stages.get(stage);
      if (times) times.push(time);
      else stages.set(stage, [time]);
    }
  }
  return [...stages].map(([stage, times]) => ({
    stage,
    times: sorted(times),
    sum: times.reduce((a, b) => a + b, 0),
  }));
}

/** Milliseconds of a row over all its stages; undefined where none are known. */
export function totalMs({ ms }: Row): number | undefined {
  if (!ms) return undefined;
  return ms.total ?? Object.values(ms).reduce((a, b) => a + b, 0);
}

/** Failures of one stage, code and message. */
export interface FailureGroup extends Failure {
  readonly id: string;
  readonly rows: readonly Row[];
}

export const failureId = ({ stage, code, message }: Failure): string =>
  JSON.stringify([stage, code, message]);

/** The most frequent first. */
export function failureGroups(rows: readonly Row[]): FailureGroup[] {
  const groups = new Map<string, { failure: Failure; rows: Row[] }>();
  for (const row of rows) {
    if (!row.failure) continue;
    const id = failureId(row.failure);
    const group = groups.get(id);
    if (group) group.rows.push(row);
    else groups.set(id, { failure: row.failure, rows: [row] });
  }
  return [...groups]
    .map(([id, group]) => ({ id, ...group.failure, rows: group.rows }))
    .sort((a, b) => b.rows.length - a.rows.length);
}
