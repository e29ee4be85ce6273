import { alibiSlopes, alibiTerms } from '../../lib/presets/index.js';
import { expectError } from '../support.js';
import { biasProblems, useDevice } from './presets.js';

/** As the paper's code has it: by recursion on twice the next lower power of two. */
function publishedSlopes(heads: number): number[] {
  const exponent = Math.log2(heads);
  if (Number.isInteger(exponent)) {
    const start = 2 ** -(2 ** -(exponent - 3));
    return Array.from({ length: heads }, (_, i) => start * start ** i);
  }
  const closest = 2 ** Math.floor(exponent);
  const rest = publishedSlopes(2 * closest).filter((_, i) => i % 2 === 0);
  return [...publishedSlopes(closest), ...rest.slice(0, heads - closest)];
}

describe('ALiBi', () => {
  const device = useDevice();

  test('eight heads: 1/2 to 1/256, as the paper says', () => {
    expect([...alibiSlopes(8).data]).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((h) => 2 ** -h));
  });

  test('twelve heads: those of eight, then every second of sixteen', () => {
    const { data, shape } = alibiSlopes(12);
    expect(shape).toEqual([12]);
    const want = [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5].map((exponent) => Math.fround(2 ** -exponent));
    expect([...data]).toEqual(want);
  });

  test('any number of heads', () => {
    for (let heads = 1; heads <= 130; ++heads) {
      const got = [...alibiSlopes(heads).data];
      const far = publishedSlopes(heads).findIndex((want, h) => !(Math.abs(got[h]! / want - 1) < 1e-6));
      expect({ heads, count: got.length, far }).toEqual({ heads, count: heads, far: -1 });
    }
  });

  test.each([
    [9, 9],
    [4, 9],
  ])('%i queries, %i keys', async (queries, keys) => {
    const slopes = publishedSlopes(6);
    const place = (q: number): number => keys - queries + q;
    const want = (_: number, h: number, q: number, k: number): number =>
      k > place(q) ? -Infinity : -slopes[h]! * (place(q) - k);
    const terms = alibiTerms({ heads: 6 });
    expect(await biasProblems(device(), [1, 6, queries, keys], terms, want)).toEqual([]);
  });

  test('both directions', async () => {
    const want = (_: number, h: number, q: number, k: number): number =>
      -(2 ** -(4 * (h + 1))) * Math.abs(q - k);
    const terms = alibiTerms({ heads: 2, causal: false });
    expect(await biasProblems(device(), [1, 2, 7, 7], terms, want)).toEqual([]);
  });

  test('is refused', async () => {
    await expectError(() => alibiSlopes(0), 'ERR_VALUE', 'heads', '0');
    await expectError(() => alibiSlopes(2.5), 'ERR_VALUE', 'heads', '2.5');
    await expectError(() => alibiTerms({} as { heads: number }), 'ERR_VALUE', 'heads', 'undefined');
  });
});
