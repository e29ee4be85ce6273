import { compareBias } from '../../lib/compare.js';
import { denoisingPlan, denoisingQueries } from '../../lib/presets/index.js';
import { expectError, random, uniform } from '../support.js';
import { between, biasProblems, readVector, seeds, useDevice } from './presets.js';

/** Hidden pairs as the loop over groups of DN-DETR's and CMT's code leaves them. */
function publishedMask(groups: number, size: number, queries: number): boolean[][] {
  const before = groups * size;
  const hidden = Array.from({ length: before + queries }, () =>
    new Array<boolean>(before + queries).fill(false),
  );
  const hide = (rows: [number, number], columns: [number, number]): void => {
    for (let q = rows[0]; q < rows[1]; ++q) hidden[q]!.fill(true, ...columns);
  };
  hide([before, before + queries], [0, before]);
  for (let i = 0; i < groups; ++i) {
    const own: [number, number] = [size * i, size * (i + 1)];
    hide(own, [size * (i + 1), before]);
    hide(own, [0, size * i]);
  }
  return hidden;
}

describe('denoising', () => {
  const device = useDevice();

  test.each(seeds)('the mask and the places, seed %i', async (seed) => {
    const next = random(seed);
    const boxCounts = Array.from({ length: between(next, 1, 4) }, () => between(next, 0, 6));
    const [queries, groups] = [between(next, 1, 20), between(next, 1, 5)];
    const plan = denoisingPlan({ boxCounts, queries, groups });
    const size = Math.max(...boxCounts);
    const before = groups * size;
    expect({ seed, plan }).toMatchObject({
      seed,
      plan: { groupSize: size, denoisingQueries: before, length: before + queries, batch: boxCounts.length },
    });

    const places = boxCounts.flatMap((count) => Array.from({ length: count }, (_, i) => i));
    const images = boxCounts.flatMap((count, image) => new Array<number>(count).fill(image));
    const copies = Array.from({ length: size > 0 ? groups : 0 }, (_, i) => i);
    expect([...plan.places]).toEqual(copies.flatMap((group) => places.map((place) => place + size * group)));
    expect([...plan.images]).toEqual(copies.flatMap(() => images));
    expect([...plan.boxes]).toEqual(copies.flatMap(() => places.map((_, box) => box)));

    const hidden = publishedMask(groups, size, queries);
    const want = (_b: number, _h: number, q: number, k: number): number => (hidden[q]![k]! ? -Infinity : 0);
    const shape: [number, number, number, number] = [boxCounts.length, 2, plan.length, plan.length];
    const problems = await biasProblems(device(), shape, plan.terms, want);
    expect({ seed, problems }).toEqual({ seed, problems: [] });
  });

  test('DN-DETR takes five groups, whatever the number of boxes', () => {
    expect(denoisingPlan({ boxCounts: [3, 100], queries: 300 })).toMatchObject({ groups: 5, groupSize: 100 });
  });

  test('CMT takes ten groups, fewer where they would outnumber the queries', () => {
    const groups = (...boxCounts: number[]): number =>
      denoisingPlan({ variant: 'cmt', boxCounts, queries: 900 }).groups;
    expect([groups(4, 30), groups(90), groups(91), groups(450, 2), groups(900), groups(901)]).toEqual([
      10, 10, 9, 2, 1, 0,
    ]);
  });

  test('images without boxes', () => {
    for (const variant of ['dn-detr', 'cmt'] as const) {
      const plan = denoisingPlan({ variant, boxCounts: [0, 0], queries: 7 });
      expect(plan).toMatchObject({ groups: 0, denoisingQueries: 0, length: 7, batch: 2, terms: [] });
      const matching = uniform(random(1), [7, 2]);
      const queries = denoisingQueries(plan, { noised: matching, matching });
      expect([...queries.data]).toEqual([...matching.data, ...matching.data]);
    }
  });

  test.each([
    ['denoising-g3n5m18', {}],
    ['denoising-g2n16m33', {}],
    ['denoising-g1n7m26', {}],
    ['denoising-g3n4m21-blind', { groupsSeeMatching: false }],
  ])('the conformance vector %s', async (name, options) => {
    const { job, expected } = await readVector(`${name}.bias`);
    const [{ groups, groupSize }] = job.bias as [{ groups: number; groupSize: number }];
    const shape = job.shape as [number, number, number, number];
    const queries = shape[3] - groups * groupSize;
    const plan = denoisingPlan({ boxCounts: [1, groupSize], queries, groups, ...options });
    expect(compareBias(await device().bias({ shape, bias: plan.terms }), expected.bias!)).toEqual([]);
  });

  test('empty places: seen by their group, as published, or by nobody', async () => {
    const args = { boxCounts: [1, 3], queries: 2, groups: 2 };
    const hidden = publishedMask(2, 3, 2);
    const empty = (b: number, k: number): boolean => b === 0 && k < 6 && k % 3 > 0;
    const shape: [number, number, number, number] = [2, 1, 8, 8];
    const { terms } = denoisingPlan({ ...args, hideEmpty: true });
    const want = (b: number, _: number, q: number, k: number): number =>
      hidden[q]![k]! || empty(b, k) ? -Infinity : 0;
    expect(await biasProblems(device(), shape, terms, want)).toEqual([]);
    expect(denoisingPlan(args).terms).toEqual([{ type: 'denoising', groups: 2, groupSize: 3 }]);
  });

  test('noised boxes stand in their places, zeros in the empty ones', () => {
    const plan = denoisingPlan({ boxCounts: [1, 2], queries: 2, groups: 2 });
    const noised = { data: Float32Array.of(10, 11, 12, 20, 21, 22), shape: [6, 1] };
    const matching = { data: Float32Array.of(1, 2), shape: [2, 1] };
    const { data, shape } = denoisingQueries(plan, { noised, matching });
    expect(shape).toEqual([2, 6, 1]);
    expect([...data]).toEqual([10, 0, 20, 0, 1, 2, 11, 12, 21, 22, 1, 2]);
  });

  test('is refused', async () => {
    const args = { boxCounts: [1], queries: 2 };
    await expectError(() => denoisingPlan({ ...args, boxCounts: [] }), 'ERR_VALUE', 'boxCounts');
    await expectError(
      () => denoisingPlan({ ...args, boxCounts: [1, -1] }),
      'ERR_VALUE',
      'boxCounts[1]',
      '-1',
    );
    await expectError(
      () => denoisingPlan({ ...args, variant: 'dino' as 'cmt' }),
      'ERR_VALUE',
      'variant',
      '"dino"',
    );
    await expectError(() => denoisingPlan({ ...args, groups: 0 }), 'ERR_VALUE', 'groups', '0');
    const plan = denoisingPlan(args);
    const matching = uniform(random(1), [2, 3]);
    await expectError(
      () => denoisingQueries(plan, { noised: matching, matching }),
      'ERR_SHAPE',
      'noised',
      '[5, 3]',
    );
  });
});
