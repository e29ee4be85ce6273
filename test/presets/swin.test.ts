import { compareBias } from '../../lib/compare.js';
import { swinTerms, swinWindow, windowPartition, windowReverse } from '../../lib/presets/index.js';
import type { Size } from '../../lib/presets/index.js';
import { expectError, random, uniform } from '../support.js';
import { between, biasProblems, readVector, seeds, useDevice } from './presets.js';

/** Random sizes: [H, W], [Mh, Mw] and a shift below it. */
function randomLayout(next: () => number): { resolution: Size; window: Size; shift: Size; windows: number } {
  const window: Size = [between(next, 1, 5), between(next, 1, 5)];
  const across: Size = [between(next, 2, 4), between(next, 2, 4)];
  return {
    resolution: [window[0] * across[0], window[1] * across[1]],
    window,
    shift: [between(next, 0, window[0] - 1), between(next, 0, window[1] - 1)],
    windows: across[0] * across[1],
  };
}

/** torch.roll of a map [H, W]: what is at (y, x) moves to (y + down, x + right), round the borders. */
function roll<T>(map: T[][], down: number, right: number): T[][] {
  const [height, width] = [map.length, map[0]!.length];
  const rolled = map.map((row) => [...row]);
  map.forEach((row, y) =>
    row.forEach((value, x) => {
      rolled[(y + down + height) % height]![(x + right + width) % width] = value;
    }),
  );
  return rolled;
}

/** A map [H, W] cut into windows, each row by row. */
function cut<T>(map: T[][], [rows, columns]: Size): T[][] {
  const windows: T[][] = [];
  for (let top = 0; top < map.length; top += rows)
    for (let left = 0; left < map[0]!.length; left += columns)
      windows.push(map.slice(top, top + rows).flatMap((row) => row.slice(left, left + columns)));
  return windows;
}

/** The mask as Swin's code makes it: regions numbered by slices from the end of the shifted map. */
function publishedMask(resolution: Size, window: Size, shift: Size): number[][][] {
  const map = Array.from({ length: resolution[0] }, () => new Array<number>(resolution[1]).fill(0));
  const slices = (length: number, size: number, by: number): [number, number][] => [
    [0, length - size],
    [length - size, by > 0 ? length - by : 0], // Python's slice(−size, −0) is empty
    [by > 0 ? length - by : 0, length],
  ];
  let region = 0;
  for (const [top, bottom] of slices(resolution[0], window[0], shift[0])) {
    for (const [left, right] of slices(resolution[1], window[1], shift[1])) {
      for (let y = top; y < bottom; ++y) for (let x = left; x < right; ++x) map[y]![x] = region;
      region += 1;
    }
  }
  return cut(map, window).map((ids) => ids.map((a) => ids.map((b) => (a === b ? 0 : -100))));
}

describe('Swin', () => {
  const device = useDevice();

  test.each(seeds)('windows of shifted maps, seed %i', (seed) => {
    const next = random(seed);
    const { resolution, window, shift, windows } = randomLayout(next);
    const [images, channels] = [between(next, 1, 3), between(next, 1, 4)];
    const map = uniform(next, [images, ...resolution, channels]);
    const tokens = window[0] * window[1];
    const got = windowPartition(map, { window, shift });
    expect({ seed, shape: got.shape }).toEqual({ seed, shape: [images * windows, tokens, channels] });

    const want: number[] = [];
    for (let image = 0; image < images; ++image) {
      const cells = Array.from({ length: resolution[0] }, (_, y) =>
        Array.from({ length: resolution[1] }, (_, x) => {
          const at = ((image * resolution[0] + y) * resolution[1] + x) * channels;
          return [...map.data.subarray(at, at + channels)];
        }),
      );
      want.push(...cut(roll(cells, -shift[0], -shift[1]), window).flat(2));
    }
    expect({ seed, data: [...got.data] }).toEqual({ seed, data: want });
    expect(windowReverse(got, { resolution, window, shift })).toEqual(map);
  });

  test('keeps the dtype', () => {
    const map = { data: Uint16Array.from({ length: 16 }, (_, i) => i), shape: [1, 4, 4, 1] };
    const { data, shape } = windowPartition(map, { window: [2, 2] });
    expect(data).toBeInstanceOf(Uint16Array);
    expect([...data]).toEqual([0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
    expect(shape).toEqual([4, 4, 1]);
    expect(windowReverse({ data, shape }, { resolution: [4, 4], window: [2, 2] })).toEqual(map);
  });

  test.each(seeds)('the bias of shifted windows, seed %i', async (seed) => {
    const next = random(seed);
    const { resolution, window, shift, windows } = randomLayout(next);
    const [height, width] = window;
    const table = uniform(next, [(2 * height - 1) * (2 * width - 1), 2]);
    const terms = swinTerms({ resolution, window, shift, table });
    const mask = publishedMask(resolution, window, shift);
    const tokens = height * width;
    const want = (b: number, h: number, q: number, k: number): number => {
      const down = Math.floor(q / width) - Math.floor(k / width) + height - 1;
      const right = (q % width) - (k % width) + width - 1;
      return table.data[(down * (2 * width - 1) + right) * 2 + h]! + mask[b % windows]![q]![k]!;
    };
    const problems = await biasProblems(device(), [2 * windows, 2, tokens, tokens], terms, want);
    expect({ seed, problems }).toEqual({ seed, problems: [] });
  });

  test.each(seeds)('a token is masked from what is no neighbour in the image, seed %i', async (seed) => {
    const { resolution, window, shift, windows } = randomLayout(random(seed));
    const tokens = window[0] * window[1];
    const places = {
      data: Int32Array.from({ length: resolution[0] * resolution[1] }, (_, i) => i),
      shape: [1, ...resolution, 1],
    };
    const { data } = windowPartition(places, { window, shift });
    const terms = swinTerms({ resolution, window, shift });
    const far = (a: number, b: number): boolean => {
      const [down, right] = [
        Math.floor(a / resolution[1]) - Math.floor(b / resolution[1]),
        (a % resolution[1]) - (b % resolution[1]),
      ];
      return Math.abs(down) >= window[0] || Math.abs(right) >= window[1];
    };
    const want = (b: number, _: number, q: number, k: number): number =>
      far(data[b * tokens + q]!, data[b * tokens + k]!) ? -100 : 0;
    const problems = await biasProblems(device(), [windows, 1, tokens, tokens], terms, want);
    expect({ seed, problems }).toEqual({ seed, problems: [] });
  });

  test.each(['swin-4x10-w2x5-s1x3', 'swin-6x9-w3x3-s1x1', 'swin-8x12-w4x4-s2x2'])(
    'the conformance vector %s',
    async (name) => {
      const { job, tensors, expected } = await readVector(`${name}.bias`);
      const given = job.bias as {
        type: string;
        table?: string;
        resolution?: Size;
        window: Size;
        shift?: Size;
        value?: number;
      }[];
      const mask = given.find(({ type }) => type === 'shiftedWindow');
      const table = tensors[given.find(({ type }) => type === 'relativePosition')!.table!]!;
      const { resolution, window, shift, value } = mask!;
      const bias = swinTerms({ resolution: resolution!, window, shift: shift!, table, value });
      const shape = job.shape as [number, number, number, number];
      expect(compareBias(await device().bias({ shape, bias }), expected.bias!)).toEqual([]);
    },
  );

  test('a map no larger than the window is one window, unshifted', () => {
    const layout = { window: [7, 7], shift: [3, 3] } as const;
    expect(swinWindow({ ...layout, resolution: [14, 14] })).toEqual({ ...layout, resolution: [14, 14] });
    expect(swinWindow({ ...layout, resolution: [7, 7] })).toEqual({
      resolution: [7, 7],
      window: [7, 7],
      shift: [0, 0],
    });
    expect(swinWindow({ ...layout, resolution: [4, 14] })).toEqual({
      resolution: [4, 14],
      window: [4, 7],
      shift: [0, 3],
    });
    expect(swinTerms({ window: [7, 7], resolution: [7, 7] })).toEqual([]);
  });

  test('is refused', async () => {
    const map = uniform(random(1), [1, 6, 6, 1]);
    await expectError(
      () => windowPartition(map, { window: [4, 3] }),
      'ERR_VALUE',
      'resolution',
      '[6, 6]',
      '[4, 3]',
    );
    await expectError(
      () => windowPartition(map, { window: [3, 3], shift: [3, 0] }),
      'ERR_VALUE',
      'shift',
      '[3, 0]',
    );
    await expectError(
      () => windowPartition({ ...map, shape: [6, 6, 1] }, { window: [3, 3] }),
      'ERR_SHAPE',
      'map',
    );
    await expectError(
      () => windowPartition({ ...map, shape: [1, 6, 6, 2] }, { window: [3, 3] }),
      'ERR_SHAPE',
      '72 elements',
      'map',
      '36',
    );
    const layout = { resolution: [6, 6], window: [3, 3] } as const;
    await expectError(
      () => windowReverse({ data: new Float32Array(27), shape: [3, 9, 1] }, layout),
      'ERR_SHAPE',
      'multiple of 4',
      'windows',
      '3',
    );
    await expectError(() => swinTerms({ ...layout, table: map }), 'ERR_SHAPE', '[25, heads]', 'table');
  });
});
