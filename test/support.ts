// What the tests of operations share.
import { AttentionBiasError } from '../lib/errors.js';
import { randomSource } from '../lib/random.js';
import type { ErrorCode } from '../lib/errors.js';
import type { BiasTerm } from '../lib/terms.js';

export interface Dense<A = Float32Array> {
  data: A;
  shape: number[];
}

export { randomSource as random };

export const count = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** A float32 tensor of numbers from low to high. */
export function uniform(next: () => number, shape: number[], low = -1, high = 1): Dense {
  return { data: Float32Array.from({ length: count(shape) }, () => low + (high - low) * next()), shape };
}

/** Of 0 and 1, ones with probability `share`. */
export function bits(next: () => number, shape: number[], share: number): Dense<Uint8Array> {
  return { data: Uint8Array.from({ length: count(shape) }, () => (next() < share ? 1 : 0)), shape };
}

/** ‖x − ref‖ / ‖ref‖ over the elements where ref is finite; Infinity where x and ref are not of one kind. */
export function relativeError(x: ArrayLike<number>, reference: ArrayLike<number>): number {
  if (x.length !== reference.length) return Infinity;
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < x.length; ++i) {
    const a = x[i] ?? NaN;
    const b = reference[i] ?? NaN;
    if (!Number.isFinite(b)) {
      if (!Object.is(a, b)) return Infinity;
      continue;
    }
    difference += (a - b) ** 2;
    norm += b ** 2;
  }
  if (Number.isNaN(difference)) return Infinity;
  return norm === 0 ? Math.sqrt(difference / x.length) : Math.sqrt(difference / norm);
}

/** float32 cut to bfloat16. */
export const narrowed = ({ data, shape }: Dense): Dense<Uint16Array> => ({
  data: Uint16Array.from(new Uint32Array(data.buffer), (bits) => bits >>> 16),
  shape,
});

/** The float32 that bfloat16 stands for. */
export const widened = ({ data, shape }: Dense<Uint16Array>): Dense => ({
  data: new Float32Array(Uint32Array.from(data, (bits) => bits << 16).buffer),
  shape,
});

/** float32 rounded to the nearest bfloat16, ties to even; infinities and NaN stay. */
export const roundedToBfloat16 = (data: Float32Array): Uint16Array =>
  Uint16Array.from(new Uint32Array(data.buffer), (x) =>
    (x & 0x7f800000) === 0x7f800000 ? x >>> 16 : (x + 0x7fff + ((x >> 16) & 1)) >>> 16,
  );

export interface Case {
  /** B, H, Q, K */
  shape: [number, number, number, number];
  bias: BiasTerm[];
}

/** One case a term, and a few of several. */
export function termCases(seed: number): Record<string, Case> {
  const next = randomSource(seed);
  const grid3 = (batch: number, queries: number): Dense => {
    const data = new Float32Array(batch * queries * 3);
    for (let i = 0; i < batch * queries; ++i) {
      data[3 * i] = Math.floor(next() * 3) - 1; // −1: not projected
      data[3 * i + 1] = next() * 4;
      data[3 * i + 2] = next() * 6;
    }
    return { data, shape: [batch, queries, 3] };
  };
  return {
    none: { shape: [2, 2, 7, 33], bias: [] },
    dense: { shape: [2, 3, 9, 40], bias: [{ type: 'dense', bias: uniform(next, [2, 1, 9, 40], -3, 3) }] },
    mask: { shape: [2, 3, 9, 40], bias: [{ type: 'mask', visible: bits(next, [1, 3, 9, 40], 0.7) }] },
    padding: { shape: [2, 2, 9, 40], bias: [{ type: 'padding', ignore: bits(next, [2, 40], 0.3) }] },
    causal: { shape: [1, 2, 17, 17], bias: [{ type: 'causal' }] },
    'causal bottom-right': { shape: [1, 2, 9, 40], bias: [{ type: 'causal', align: 'bottom-right' }] },
    slidingWindow: { shape: [1, 2, 33, 65], bias: [{ type: 'slidingWindow', left: 3, right: -1 }] },
    blockDiagonal: {
      shape: [2, 1, 9, 40],
      bias: [
        {
          type: 'blockDiagonal',
          queryIds: { data: Int32Array.from({ length: 18 }, (_, i) => i % 3), shape: [2, 9] },
          keyIds: { data: Int32Array.from({ length: 80 }, (_, i) => i % 4), shape: [2, 40] },
        },
      ],
    },
    modality: {
      shape: [2, 2, 9, 40],
      bias: [
        {
          type: 'modality',
          strength: 3,
          segments: [
            { start: 0, length: 25, weights: uniform(next, [2, 9], 0, 1) },
            { start: 30, length: 10, weights: uniform(next, [2, 9], 0, 1) },
          ],
        },
      ],
    },
    spatial: {
      shape: [2, 2, 9, 60],
      bias: [
        {
          type: 'spatial',
          segments: [
            {
              start: 5,
              grid: [2, 4, 6],
              centers: grid3(2, 9),
              radius: 2.5,
              weights: uniform(next, [2, 9], 0, 1),
            },
          ],
        },
      ],
    },
    window: {
      shape: [2, 2, 9, 60],
      bias: [{ type: 'window', segments: [{ start: 5, grid: [2, 4, 6], centers: grid3(2, 9), size: 3 }] }],
    },
    denoising: { shape: [1, 2, 20, 20], bias: [{ type: 'denoising', groups: 3, groupSize: 4 }] },
    shiftedWindow: {
      shape: [4, 2, 16, 16],
      bias: [{ type: 'shiftedWindow', resolution: [8, 8], window: [4, 4], shift: [2, 2] }],
    },
    relativePosition: {
      shape: [2, 3, 13, 13],
      bias: [{ type: 'relativePosition', window: [3, 4], table: uniform(next, [38, 3]), clsToken: true }],
    },
    lowRank: {
      shape: [2, 2, 9, 40],
      bias: [
        {
          type: 'lowRank',
          queryFactors: uniform(next, [2, 1, 9, 5]),
          keyFactors: uniform(next, [1, 2, 40, 5]),
          scale: 0.5,
        },
      ],
    },
    alibi: { shape: [1, 4, 9, 40], bias: [{ type: 'alibi', slopes: uniform(next, [4], 0, 0.5) }] },
    'all keys hidden': {
      shape: [1, 2, 3, 8],
      bias: [{ type: 'mask', visible: bits(next, [1, 1, 1, 1], 0) }],
    },
    stacked: {
      shape: [2, 2, 40, 40],
      bias: [
        { type: 'causal' },
        { type: 'alibi', slopes: uniform(next, [2], 0, 0.5) },
        { type: 'padding', ignore: bits(next, [2, 40], 0.2) },
        { type: 'modality', segments: [{ start: 0, length: 20, weights: uniform(next, [2, 40], 0, 1) }] },
        { type: 'dense', bias: uniform(next, [1, 1, 40, 40]) },
      ],
    },
  };
}

/** Query, key and value of a case, head dim 12, value dim 20. */
export function attentionInputs(
  seed: number,
  [b, h, q, k]: Case['shape'],
): Record<'query' | 'key' | 'value', Dense> {
  const next = randomSource(seed);
  return {
    query: uniform(next, [b, h, q, 12]),
    key: uniform(next, [b, h, k, 12]),
    value: uniform(next, [b, h, k, 20]),
  };
}

/** Query, key and value of 8 heads, all of one number: large ones take no time to make. */
export function constantInputs(queries: number, keys: number): Record<'query' | 'key' | 'value', Dense> {
  const tensor = (shape: number[]): Dense => ({ data: new Float32Array(count(shape)).fill(0.1), shape });
  return {
    query: tensor([1, 8, queries, 12]),
    key: tensor([1, 8, keys, 12]),
    value: tensor([1, 8, keys, 20]),
  };
}

/** The error that a call ends with. A call that succeeds fails the test. */
export async function errorOf(call: () => unknown): Promise<AttentionBiasError> {
  try {
    await call();
  } catch (error) {
    if (error instanceof AttentionBiasError) return error;
    throw error;
  }
  throw new Error('expected an error, but the call succeeded');
}

export async function expectError(call: () => unknown, code: ErrorCode, ...words: string[]): Promise<void> {
  const error = await errorOf(call);
  expect({ code: error.code, message: error.message }).toEqual({
    code,
    message: expect.stringContaining(words[0] ?? '') as string,
  });
  for (const word of words) expect(error.message).toContain(word);
}
