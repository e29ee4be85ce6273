import { describe } from './describe.js';
import { expected } from './errors.js';

/** ERR_VALUE for what is no signal. By shape: signals of another realm are as good. */
export function requireSignal(signal: unknown): asserts signal is AbortSignal | undefined {
  if (signal === undefined) return;
  const { aborted, addEventListener, removeEventListener } = Object(signal) as Partial<AbortSignal>;
  const methods = [addEventListener, removeEventListener];
  if (typeof aborted === 'boolean' && methods.every((method) => typeof method === 'function')) return;
  throw expected('ERR_VALUE', 'an AbortSignal', 'signal', describe(signal));
}
