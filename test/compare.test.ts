import {
  compareBias,
  compareCameraCenters,
  compareExact,
  compareNorm,
  compareZeroRows,
  float32Ulp,
} from '../lib/compare.js';

const v = (...data: number[]) => ({ data, shape: [data.length] });

test('float32Ulp', () => {
  const bits = new Uint32Array(1);
  const value = new Float32Array(bits.buffer);
  for (const x of [1, 1.5, 2, 3, Math.fround(0.1), 100, 1 - 2 ** -24, 2 ** -126, Math.fround(3e38), -7]) {
    value[0] = Math.abs(x);
    bits[0] = (bits[0] ?? 0) + 1;
    expect(float32Ulp(x)).toBe(value[0] - Math.abs(x));
  }
  expect(float32Ulp(0)).toBe(2 ** -149);
});

describe('compareNorm', () => {
  test('takes what is within the tolerance', () => {
    expect(
      compareNorm(v(3, 4 + 4e-6, NaN, -Infinity, Infinity), v(3, 4, NaN, -Infinity, Infinity), 1e-6),
    ).toEqual([]);
    expect(compareNorm(v(1e-7, 0), v(0, 0), 1e-6)).toEqual([]);
    expect(compareNorm(v(1e-3 + 1e-6, 1), v(1e-3, 1), 2e-6, true)).toEqual([]);
    expect(compareNorm(v(-Infinity), v(-Infinity), 0)).toEqual([]);
  });
  test.each([
    ['a value too far off', v(3, 4 + 6e-6), v(3, 4), 'relative error 1.20e-6 above 0.000001'],
    ['NaN instead of a number', v(NaN, 4), v(3, 4), '[0] is NaN, not 3 (1 of 2 wrong)'],
    ['a number instead of NaN', v(3, 4), v(NaN, 4), '[0] is 3, not NaN (1 of 2 wrong)'],
    ['the wrong infinity', v(-Infinity, 4), v(Infinity, 4), '[0] is -Infinity, not Infinity (1 of 2 wrong)'],
    ['a number instead of −∞', v(-3e38, 4), v(-Infinity, 4), '[0] is -3e+38, not -Infinity (1 of 2 wrong)'],
    ['an infinity instead of a number', v(Infinity, 4), v(3, 4), '[0] is Infinity, not 3 (1 of 2 wrong)'],
    ['noise where there is nothing', v(2e-6, 2e-6), v(0, 0), 'relative error 2.00e-6 above 0.000001'],
    ['another shape', { data: [3, 4], shape: [1, 2] }, v(3, 4), 'shape is [1, 2], not [2]'],
    ['too few values', { data: [3], shape: [2] }, v(3, 4), '1 values, not 2'],
  ])('refuses %s', (_, actual, expected, problem) => {
    expect(compareNorm(actual, expected, 1e-6)).toEqual([problem]);
    expect(compareExact(actual, expected)).not.toEqual([]);
  });
});

test('compareZeroRows', () => {
  const actual = { data: [0, -0, 1e-30, 0, 0, NaN], shape: [3, 2] };
  expect(compareZeroRows(actual, [0])).toEqual([]);
  expect(compareZeroRows(actual, [0, 1, 2])).toEqual(['rows 1, 2 are not 0 (2 in all)']);
});

test('compareBias', () => {
  const ulp = 2 ** -21; // of 5
  expect(compareBias(v(5 + 2 * ulp, 5e-7, -Infinity), v(5, 0, -Infinity))).toEqual([]);
  expect(compareBias(v(5 + 3 * ulp), v(5))).toHaveLength(1);
  expect(compareBias(v(2e-6), v(0))).toHaveLength(1);
  expect(compareBias(v(-1e38), v(-Infinity))).toHaveLength(1);
  expect(compareBias(v(NaN), v(0))).toHaveLength(1);
});

test('compareExact', () => {
  expect(compareExact(v(1, -0, NaN), v(1, 0, NaN))).toEqual([]);
  expect(compareExact(v(1 + 1e-15), v(1))).toHaveLength(1);
});

test('compareCameraCenters', () => {
  const expected = { data: [0, 1, 2, -1, 0, 0], shape: [2, 3] };
  expect(compareCameraCenters({ data: [0, 1, 2, -1, -1, -1], shape: [2, 3] }, expected)).toEqual([]);
  expect(compareCameraCenters({ data: [0, 1, 3, -1, 0, 0], shape: [2, 3] }, expected)).toHaveLength(1);
  expect(compareCameraCenters({ data: [1, 1, 2, -1, 0, 0], shape: [2, 3] }, expected)).toHaveLength(1);
  expect(compareCameraCenters({ data: [0, 1, 2, 0, 0, 0], shape: [2, 3] }, expected)).toHaveLength(1);
});
