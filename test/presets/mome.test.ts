import { momeExpertTerms, momeLocalMask, momeRoute } from '../../lib/presets/index.js';
import { expectError, random, relativeError, uniform } from '../support.js';
import { between, biasProblems, seeds, useDevice } from './presets.js';

const grids = { bev: [9, 11], cameras: [3, 6, 7] } as const;
const [bevKeys, cameraKeys] = [99, 126];
const keys = bevKeys + cameraKeys;

const modulo = (a: number, n: number): number => ((a % n) + n) % n;

/**
 * Visible keys of a window round a flat index, as MoME's code finds them: offsets on flat indices, of which those stay whose
 * row and column (within the view) are near enough and that are within the map.
 */
function publishedWindow(
  index: number,
  size: number,
  rows: number,
  columns: number,
  total: number,
): Set<number> {
  const reach = Math.floor(size / 2);
  const visible = new Set<number>();
  const row = (i: number): number => Math.floor(modulo(i, rows * columns) / columns);
  for (let dy = -reach; dy <= reach; ++dy) {
    for (let dx = -reach; dx <= reach; ++dx) {
      const i = index + dy * columns + dx;
      if (i < 0 || i >= total) continue;
      const far = Math.abs(row(i) - row(index)) > reach;
      if (far || Math.abs(modulo(i, columns) - modulo(index, columns)) > reach) continue;
      visible.add(i);
    }
  }
  return visible;
}

/** Centres of cells; `unseen` of them are seen by no camera. */
function centers(next: () => number, queries: number, unseen: number) {
  const bev = new Float32Array(2 * queries);
  const cameras = new Float32Array(3 * queries);
  for (let q = 0; q < queries; ++q) {
    bev.set([between(next, 0, 8), between(next, 0, 10)], 2 * q);
    const cell = q < unseen ? [-1, -1, -1] : [between(next, 0, 2), between(next, 0, 5), between(next, 0, 6)];
    cameras.set(cell, 3 * q);
  }
  return {
    bevCenters: { data: bev, shape: [1, queries, 2] },
    cameraCenters: { data: cameras, shape: [1, queries, 3] },
  };
}

describe('MoME', () => {
  const device = useDevice();

  test('windows are 15 × 15 image cells and 5 × 5 BEV cells of nuScenes’ grids', () => {
    const mask = momeLocalMask(centers(random(1), 4, 0));
    expect(mask.segments).toMatchObject([
      { start: 0, grid: [180, 180], size: 5 },
      { start: 32_400, grid: [6, 40, 100], size: 15 },
    ]);
  });

  test.each(seeds)('the local attention mask, seed %i', async (seed) => {
    const next = random(seed);
    const windows = { bev: 2 * between(next, 0, 3) + 1, camera: 2 * between(next, 0, 2) + 1 };
    const at = centers(next, 20, 3);
    for (const unseen of ['nothing', 'first cell'] as const) {
      const term = momeLocalMask({ grids, ...at, windows, unseen });
      const visible = Array.from({ length: 20 }, (_, q) => {
        const [y, x] = at.bevCenters.data.subarray(2 * q);
        const [view, row, column] = at.cameraCenters.data.subarray(3 * q);
        const flat = view! < 0 ? 0 : (view! * 6 + row!) * 7 + column!;
        return {
          bev: publishedWindow(y! * 11 + x!, windows.bev, 9, 11, bevKeys),
          cameras:
            view! < 0 && unseen === 'nothing'
              ? new Set<number>()
              : publishedWindow(flat, windows.camera, 6, 7, cameraKeys),
        };
      });
      const want = (_b: number, _h: number, q: number, k: number): number => {
        const { bev, cameras } = visible[q]!;
        return (k < bevKeys ? bev.has(k) : cameras.has(k - bevKeys)) ? 0 : -Infinity;
      };
      const problems = await biasProblems(device(), [1, 1, 20, keys], [term], want);
      expect({ seed, unseen, problems }).toEqual({ seed, unseen, problems: [] });
    }
  });

  test('a query goes to the expert of its largest logit, the first of equal ones', () => {
    const rows = [
      [3, 1, 2],
      [1, 3, 2],
      [1, 2, 3],
      [2, 2, 1],
      [2, 1, 2],
      [1, 2, 2],
      [2, 2, 2],
    ];
    const route = momeRoute({ data: Float32Array.from(rows.flat()), shape: [1, 7, 3] });
    expect(route.shape).toEqual([1, 7]);
    expect([...route.data]).toEqual([0, 1, 2, 0, 0, 1, 0]);
  });

  test('masks of the three experts', async () => {
    const experts = { data: Int32Array.of(0, 1, 2, 2, 1, 0, 1, 1), shape: [2, 4] };
    const { crossAttention, selfAttention } = momeExpertTerms({ grids, experts });
    const expert = (b: number, q: number): number => experts.data[4 * b + q]!;
    const cross = (b: number, _: number, q: number, k: number): number =>
      expert(b, q) === (k < bevKeys ? 2 : 1) ? -Infinity : 0;
    expect(await biasProblems(device(), [2, 2, 4, keys], crossAttention, cross)).toEqual([]);
    const self = (b: number, _: number, q: number, k: number): number =>
      expert(b, q) === expert(b, k) ? 0 : -Infinity;
    expect(await biasProblems(device(), [2, 2, 4, 4], selfAttention, self)).toEqual([]);
  });

  test('attention under the masks is that of three decoders on their own queries and keys', async () => {
    const next = random(5);
    const [queries, size] = [30, 8];
    const [query, key, value] = [queries, keys, keys].map((n) => uniform(next, [1, 1, n, size]));
    const experts = {
      data: Int32Array.from({ length: queries }, () => between(next, 0, 2)),
      shape: [1, queries],
    };
    const { crossAttention, selfAttention } = momeExpertTerms({ grids, experts });
    const cross = await device().attention({ query: query!, key: key!, value: value!, bias: crossAttention });
    const self = await device().attention({ query: query!, key: query!, value: query!, bias: selfAttention });

    const rows = (data: Float32Array, which: number[]) => ({
      data: Float32Array.from(which.flatMap((row) => [...data.subarray(row * size, (row + 1) * size)])),
      shape: [1, 1, which.length, size],
    });
    const range = (from: number, to: number): number[] =>
      Array.from({ length: to - from }, (_, i) => from + i);
    for (const [expert, seen] of [range(0, keys), range(0, bevKeys), range(bevKeys, keys)].entries()) {
      const own = range(0, queries).filter((q) => experts.data[q] === expert);
      const alone = rows(query!.data, own);
      const decoder = await device().attention({
        query: alone,
        key: rows(key!.data, seen),
        value: rows(value!.data, seen),
      });
      expect(own.length).toBeGreaterThan(0);
      expect(relativeError(rows(cross.out.data, own).data, decoder.out.data)).toBeLessThan(2e-6);
      const among = await device().attention({ query: alone, key: alone, value: alone });
      expect(relativeError(rows(self.out.data, own).data, among.out.data)).toBeLessThan(2e-6);
    }
  });

  test('of nuScenes’ size', async () => {
    const experts = { data: Int32Array.of(0, 1, 2), shape: [1, 3] };
    const { crossAttention } = momeExpertTerms({ experts });
    const cross = (_b: number, _h: number, q: number, k: number): number =>
      q === (k < 32_400 ? 2 : 1) ? -Infinity : 0;
    expect(await biasProblems(device(), [1, 1, 3, 56_400], crossAttention, cross)).toEqual([]);
  });

  test('is refused', async () => {
    const at = centers(random(1), 4, 0);
    await expectError(
      () => momeLocalMask({ ...at, windows: { bev: 4, camera: 15 } }),
      'ERR_VALUE',
      'windows.bev',
      '4',
    );
    await expectError(
      () => momeLocalMask({ ...at, cameraCenters: at.bevCenters }),
      'ERR_SHAPE',
      '[1, 4, 3]',
      'cameraCenters',
    );
    await expectError(
      () => momeExpertTerms({ experts: { data: Int32Array.of(0, 3), shape: [1, 2] } }),
      'ERR_VALUE',
      'experts[1]',
      '3',
    );
    await expectError(() => momeRoute(at.bevCenters), 'ERR_SHAPE', '[B, Q, 3]', 'logits');
    const nan = { data: Float32Array.of(1, 2, 3, 4, NaN, 6), shape: [1, 2, 3] };
    await expectError(() => momeRoute(nan), 'ERR_VALUE', 'logits', 'query 1');
  });
});
