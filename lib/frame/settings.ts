/** What a frame's computation depends on beside the frame itself. */
import { expected } from '../errors.js';

/** A frame's queries and their bias. */
export interface FrameSettings {
  /** object queries: boxes first, then a spread; 1 to 1,000,000 */
  readonly queries: number;
  /** of the spread of the queries that stand on no box; 0 to 2³² − 1 */
  readonly seed: number;
  /** α of the modality and the spatial term */
  readonly strength: number;
  /** a backbone's feature maps instead of statistics */
  readonly features?: string | undefined;
  /** a trained router's weight and bias instead of sensor evidence */
  readonly router?: string | undefined;
  /** whether a query sees nothing but its windows */
  readonly window: boolean;
}

/** CMT's number of queries, and MoME's stack. */
export const DEFAULT_SETTINGS: FrameSettings = { queries: 900, seed: 1, strength: 5, window: false };

function requireInteger(value: number, least: number, most: number, name: string): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw expected('ERR_VALUE', `an integer from ${least} to ${most}`, name, String(value));
}

/** ERR_VALUE; what a strength may be is for the device to say. */
export function checkSettings({ queries, seed }: FrameSettings): void {
  requireInteger(queries, 1, 1_000_000, 'queries');
  requireInteger(seed, 0, 2 ** 32 - 1, 'seed');
}

/** Runs a part of the work under a name: for times, progress and aborts. */
export type Stage = <T>(name: string, work: () => Promise<T> | T) => Promise<T>;
