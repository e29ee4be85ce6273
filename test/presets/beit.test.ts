import { compareBias } from '../../lib/compare.js';
import { beitTerms, relativePositionIndex } from '../../lib/presets/index.js';
import type { Size } from '../../lib/presets/index.js';
import { expectError, random, uniform } from '../support.js';
import { biasProblems, readVector, useDevice } from './presets.js';

/** As BEiT's code has it: the patches' index within a table, then three fills over it, of which the later wins. */
function publishedIndex([height, width]: Size): number[][] {
  const rows = (2 * height - 1) * (2 * width - 1) + 3;
  const tokens = height * width + 1;
  const index = Array.from({ length: tokens }, () => new Array<number>(tokens).fill(0));
  const places: [number, number][] = [];
  for (let y = 0; y < height; ++y) for (let x = 0; x < width; ++x) places.push([y, x]);
  places.forEach(([yq, xq], q) =>
    places.forEach(([yk, xk], k) => {
      const [down, right] = [yq - yk + (height - 1), xq - xk + (width - 1)];
      index[q + 1]![k + 1] = down * (2 * width - 1) + right;
    }),
  );
  for (let k = 0; k < tokens; ++k) index[0]![k] = rows - 3;
  for (let q = 0; q < tokens; ++q) index[q]![0] = rows - 2;
  index[0]![0] = rows - 1;
  return index;
}

const windows: Size[] = [
  [1, 1],
  [1, 4],
  [3, 3],
  [4, 6],
  [14, 14],
];

describe('BEiT', () => {
  const device = useDevice();

  test.each(windows)('the index of %i × %i patches', (height, width) => {
    const { data, shape } = relativePositionIndex([height, width], true);
    expect(shape).toEqual([height * width + 1, height * width + 1]);
    expect([...data]).toEqual(publishedIndex([height, width]).flat());
  });

  test.each(windows)(
    'the bias over %i × %i patches, with and without a class token',
    async (height, width) => {
      const rows = (2 * height - 1) * (2 * width - 1);
      const table = uniform(random(1), [rows + 3, 2]);
      const index = publishedIndex([height, width]);
      const tokens = height * width;
      const entry = (h: number, q: number, k: number): number => table.data[index[q]![k]! * 2 + h]!;
      const withToken = beitTerms({ window: [height, width], table });
      const want = (_: number, h: number, q: number, k: number): number => entry(h, q, k);
      expect(await biasProblems(device(), [1, 2, tokens + 1, tokens + 1], withToken, want)).toEqual([]);

      const patches = { data: table.data.subarray(0, rows * 2), shape: [rows, 2] };
      const without = beitTerms({ window: [height, width], table: patches, clsToken: false });
      const wantPatches = (_: number, h: number, q: number, k: number): number => entry(h, q + 1, k + 1);
      expect(await biasProblems(device(), [1, 2, tokens, tokens], without, wantPatches)).toEqual([]);
    },
  );

  test.each(['relative-3x3-cls', 'relative-4x6-cls', 'relative-3x5', 'relative-7x7'])(
    'the conformance vector %s',
    async (name) => {
      const { job, tensors, expected } = await readVector(`${name}.bias`);
      const [given] = job.bias as [{ window: Size; table: string; clsToken?: boolean }];
      const table = tensors[given.table]!;
      const bias = beitTerms({ window: given.window, table, clsToken: name.endsWith('cls') });
      const shape = job.shape as [number, number, number, number];
      expect(compareBias(await device().bias({ shape, bias }), expected.bias!)).toEqual([]);
    },
  );

  test('is refused', async () => {
    const table = uniform(random(1), [9, 2]);
    await expectError(
      () => beitTerms({ window: [2, 2], table }),
      'ERR_SHAPE',
      '[12, heads]',
      'table',
      '[9, 2]',
    );
    await expectError(() => beitTerms({ window: [2, 0], table }), 'ERR_VALUE', 'window', '[2, 0]');
  });
});
