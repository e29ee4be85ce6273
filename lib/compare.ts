/** Results against expected ones, at the package's tolerances. Every function returns what is wrong, an empty list if nothing is. */

export interface Values {
  readonly data: ArrayLike<number>;
  readonly shape: readonly number[];
}

/** Relative L2 tolerances of the float32 operations. */
export const F32_TOLERANCE = 2e-6;
export const ROUTER_TOLERANCE = 1e-5;
export const DEFORMABLE_TOLERANCE = 1e-5;

const MAX_REPORTED = 3;

/** The distance of a float32 to the next one away from zero. */
export function float32Ulp(value: number): number {
  const magnitude = Math.max(Math.abs(Math.fround(value)), 2 ** -126);
  const exponent = Math.floor(Math.log2(magnitude));
  // log2 may round up just below a power of two.
  return 2 ** ((2 ** exponent > magnitude ? exponent - 1 : exponent) - 23);
}

/** The first few entries that `wrong` says are wrong, and how many more. */
function report(
  expected: Values,
  actual: Values,
  wrong: (want: number, got: number, index: number) => boolean,
): string[] {
  const indices: number[] = [];
  for (let i = 0; i < expected.data.length; ++i) {
    if (wrong(expected.data[i] ?? NaN, actual.data[i] ?? NaN, i)) indices.push(i);
  }
  if (indices.length === 0) return [];
  const some = indices
    .slice(0, MAX_REPORTED)
    .map((i) => `[${i}] is ${actual.data[i]}, not ${expected.data[i]}`);
  return [`${some.join('; ')} (${indices.length} of ${expected.data.length} wrong)`];
}

/** Shapes, lengths, and NaN and infinities at the same places. */
function compareFrame(actual: Values, expected: Values): string[] {
  const shapes = [actual.shape, expected.shape].map((shape) => `[${shape.join(', ')}]`);
  if (shapes[0] !== shapes[1]) return [`shape is ${shapes[0]}, not ${shapes[1]}`];
  if (actual.data.length !== expected.data.length)
    return [`${actual.data.length} values, not ${expected.data.length}`];
  return report(
    expected,
    actual,
    (want, got) => (!Number.isFinite(want) || !Number.isFinite(got)) && !Object.is(want, got),
  );
}

/**
 * ‖actual − expected‖ below tolerance·‖expected‖ over the finite entries. Where ‖expected‖ is 0, the root mean square is
 * held against the tolerance. With `atLeastOne`, as for lse, ‖expected‖ counts as √n at least.
 */
export function compareNorm(
  actual: Values,
  expected: Values,
  tolerance: number,
  atLeastOne = false,
): string[] {
  const frame = compareFrame(actual, expected);
  if (frame.length > 0) return frame;
  let error = 0;
  let norm = 0;
  let count = 0;
  for (let i = 0; i < expected.data.length; ++i) {
    const want = expected.data[i] ?? NaN;
    if (!Number.isFinite(want)) continue;
    error += ((actual.data[i] ?? NaN) - want) ** 2;
    norm += want ** 2;
    ++count;
  }
  if (count === 0) return [];
  const scale = Math.max(norm === 0 || atLeastOne ? count : 0, norm);
  const relative = Math.sqrt(error / scale);
  return relative <= tolerance ? [] : [`relative error ${relative.toExponential(2)} above ${tolerance}`];
}

/** These rows (all dimensions but the last flattened) are exactly 0. */
export function compareZeroRows(actual: Values, rows: readonly number[]): string[] {
  const width = actual.shape.at(-1) ?? 1;
  const wrong = rows.filter((row) => {
    for (let i = row * width; i < (row + 1) * width; ++i) if (actual.data[i] !== 0) return true;
    return false;
  });
  return wrong.length === 0
    ? []
    : [`rows ${wrong.slice(0, MAX_REPORTED).join(', ')} are not 0 (${wrong.length} in all)`];
}

/**
 * Every finite entry within 2 ulp, or 1e-6, and −∞ exactly where expected. The contract allows 2 ulp of the largest summand;
 * of the sum is stricter where summands cancel.
 */
export function compareBias(actual: Values, expected: Values): string[] {
  const frame = compareFrame(actual, expected);
  if (frame.length > 0) return frame;
  return report(expected, actual, (want, got) => {
    return Number.isFinite(want) && !(Math.abs(got - want) <= Math.max(1e-6, 2 * float32Ulp(want)));
  });
}

/** The very same numbers. */
export function compareExact(actual: Values, expected: Values): string[] {
  const frame = compareFrame(actual, expected);
  return frame.length > 0
    ? frame
    : report(expected, actual, (want, got) => want !== got && !Number.isNaN(want));
}

/** [..., 3] (view, y, x): the same cells; of a point that no view sees, view −1, only the view counts. */
export function compareCameraCenters(actual: Values, expected: Values): string[] {
  const frame = compareFrame(actual, expected);
  if (frame.length > 0) return frame;
  return report(
    expected,
    actual,
    (want, got, i) => want !== got && (i % 3 === 0 || expected.data[i - (i % 3)] !== -1),
  );
}
