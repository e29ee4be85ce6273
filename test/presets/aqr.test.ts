import { compareBias } from '../../lib/compare.js';
import { aqrTerms, denoisingPlan, freshAqrRouter } from '../../lib/presets/index.js';
import type { AqrArgs } from '../../lib/presets/index.js';
import { bits, expectError, random, uniform } from '../support.js';
import { between, biasProblems, readVector, seeds, useDevice } from './presets.js';

const grids = { bev: [5, 6], cameras: [2, 3, 4] } as const;
const [bevKeys, keys] = [30, 54];

function randomArgs(seed: number, batch = 2, queries = 7): AqrArgs & Required<Pick<AqrArgs, 'ignore'>> {
  const next = random(seed);
  const bev = Float32Array.from({ length: batch * queries * 2 }, () => between(next, -1, 6));
  const cameras = Float32Array.from({ length: batch * queries * 3 }, (_, i) =>
    i % 3 === 0 ? between(next, -1, 1) : between(next, 0, 3),
  );
  return {
    grids,
    lidar: uniform(next, [batch, queries], 0, 1),
    camera: uniform(next, [batch, queries], 0, 1),
    bevCenters: { data: bev, shape: [batch, queries, 2] },
    cameraCenters: { data: cameras, shape: [batch, queries, 3] },
    ignore: bits(next, [batch, keys], 0.2),
  };
}

/** The formulas, over keys whose cells are found by counting. */
function formulas(args: AqrArgs, strength: number, radius: { bev: number; camera: number }) {
  const [, queries] = args.lidar.shape as [number, number];
  const cells: { view: number; y: number; x: number }[] = [];
  for (let y = 0; y < 5; ++y) for (let x = 0; x < 6; ++x) cells.push({ view: NaN, y, x });
  for (let view = 0; view < 2; ++view)
    for (let y = 0; y < 3; ++y) for (let x = 0; x < 4; ++x) cells.push({ view, y, x });
  const weight = (b: number, q: number, k: number): number =>
    (k < bevKeys ? args.lidar : args.camera).data[b * queries + q]!;
  const distance = (b: number, q: number, k: number): number => {
    const cell = cells[k]!;
    const row = b * queries + q;
    if (k < bevKeys) {
      const [y, x] = args.bevCenters!.data.subarray(2 * row);
      return Math.hypot(cell.y - y!, cell.x - x!);
    }
    const [view, y, x] = args.cameraCenters!.data.subarray(3 * row);
    return view === cell.view ? Math.hypot(cell.y - y!, cell.x - x!) : Infinity;
  };
  const global = (b: number, q: number, k: number): number => (weight(b, q, k) - 0.5) * 2 * strength;
  const local = (b: number, q: number, k: number): number => {
    const r = k < bevKeys ? radius.bev : radius.camera;
    return weight(b, q, k) * strength * Math.max(0, 1 - distance(b, q, k) / r);
  };
  return { global, local };
}

describe('AQR', () => {
  const device = useDevice();

  test.each(seeds)('global, local and both, with padding, seed %i', async (seed) => {
    const args = randomArgs(seed);
    const { global, local } = formulas(args, 5, { bev: 3, camera: 8 });
    const shape: [number, number, number, number] = [2, 1, 7, keys];
    const hidden = (b: number, k: number): boolean => args.ignore.data[b * keys + k] !== 0;
    for (const mode of ['global', 'local', 'both'] as const) {
      const { crossAttention, selfAttention } = aqrTerms({ ...args, mode });
      expect(selfAttention).toEqual([]);
      const want = (b: number, _: number, q: number, k: number): number => {
        if (hidden(b, k)) return -Infinity;
        return (mode === 'local' ? 0 : global(b, q, k)) + (mode === 'global' ? 0 : local(b, q, k));
      };
      const problems = await biasProblems(device(), shape, crossAttention, want);
      expect({ seed, mode, problems }).toEqual({ seed, mode, problems: [] });
    }
    expect(aqrTerms(args)).toEqual(aqrTerms({ ...args, mode: 'both' }));
  });

  test('a weight of 1 gives +5, of ½ nothing, of 0 gives −5', async () => {
    const lidar = { data: Float32Array.of(1, 0.5, 0), shape: [1, 3] };
    const { crossAttention } = aqrTerms({ grids, mode: 'global', lidar, camera: lidar });
    const want = (_b: number, _h: number, q: number): number => [5, 0, -5][q]!;
    expect(await biasProblems(device(), [1, 1, 3, keys], crossAttention, want)).toEqual([]);
  });

  test.each(['aqr-2-cameras', 'aqr-6-cameras'])('the conformance vector %s', async (name) => {
    const { job, tensors, expected } = await readVector(`${name}.bias`);
    type Segment = { start: number; grid: number[]; radius: number; size: number } & Record<string, string>;
    const given = job.bias as { type: string; strength: number; segments: Segment[]; ignore: string }[];
    const [modality, spatial, window, padding] = given as [
      (typeof given)[0],
      (typeof given)[0],
      (typeof given)[0],
      (typeof given)[0],
    ];
    const [bev, camera] = spatial.segments as [Segment, Segment];
    const tensor = (field: string | undefined) => tensors[field!]!;
    const { crossAttention } = aqrTerms({
      grids: { bev: bev.grid as [number, number], cameras: camera.grid as [number, number, number] },
      strength: modality.strength,
      lidar: tensor(bev.weights),
      camera: tensor(camera.weights),
      bevCenters: tensor(bev.centers),
      cameraCenters: tensor(camera.centers),
      radius: { bev: bev.radius, camera: camera.radius },
      windows: { bev: window.segments[0]!.size, camera: window.segments[1]!.size },
      ignore: tensor(padding.ignore),
    });
    expect(crossAttention.map(({ type }) => type)).toEqual(given.map(({ type }) => type));
    const shape = job.shape as [number, number, number, number];
    expect(compareBias(await device().bias({ shape, bias: crossAttention }), expected.bias!)).toEqual([]);
  });

  test('with denoising queries: their mask is self-attention’s, and they are routed as all are', async () => {
    const denoising = denoisingPlan({ variant: 'cmt', boxCounts: [1, 2], queries: 3, groups: 2 });
    const args = randomArgs(9, 2, denoising.length); // one group: two boxes go into three queries once
    const { crossAttention, selfAttention } = aqrTerms({ ...args, denoising });
    expect(selfAttention).toEqual([{ type: 'denoising', groups: 1, groupSize: 2 }]);
    expect(crossAttention).toEqual(aqrTerms(args).crossAttention);
    const { length } = denoising;
    const want = (_b: number, _h: number, q: number, k: number): number => (q >= 2 && k < 2 ? -Infinity : 0);
    expect(await biasProblems(device(), [2, 1, length, length], selfAttention, want)).toEqual([]);
  });

  test('a fresh router trusts both sensors with sigmoid(1.5)', async () => {
    const features = uniform(random(1), [1, 5, 16], -100, 100);
    const weights = await device().router({ features, ...freshAqrRouter(16) });
    expect(weights.shape).toEqual([1, 5, 2]);
    for (const weight of weights.data) expect(weight).toBeCloseTo(0.8175745, 6);
  });

  test('is refused', async () => {
    const args = randomArgs(1);
    await expectError(() => aqrTerms({ ...args, mode: 'none' as 'both' }), 'ERR_VALUE', 'mode', '"none"');
    await expectError(
      () => aqrTerms({ ...args, bevCenters: undefined }),
      'ERR_VALUE',
      'bevCenters',
      'undefined',
    );
    await expectError(() => aqrTerms({ ...args, camera: uniform(random(1), [2, 6]) }), 'ERR_SHAPE', 'camera');
    await expectError(
      () => aqrTerms({ ...args, ignore: bits(random(1), [2, 5], 0) }),
      'ERR_SHAPE',
      '[2, 54]',
      'ignore',
    );
    const denoising = denoisingPlan({ boxCounts: [1, 2], queries: 3 });
    await expectError(() => aqrTerms({ ...args, denoising }), 'ERR_SHAPE', '[2, 13]', 'lidar', '[2, 7]');
  });
});
