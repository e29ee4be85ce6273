import { swinTerms, swinV2Coordinates, swinV2Cosine, swinV2Table } from '../../lib/presets/index.js';
import type { Size } from '../../lib/presets/index.js';
import { expectError, random, relativeError, uniform } from '../support.js';
import { between, seeds, useDevice } from './presets.js';

/** The coordinate that the published code makes of an offset. */
const spaced = (offset: number, size: number): number => {
  const x = (offset / (size - 1)) * 8;
  return (Math.sign(x) * Math.log2(Math.abs(x) + 1)) / Math.log2(8);
};

describe('Swin V2', () => {
  const device = useDevice();

  test('offsets are log-spaced, 8 at the window’s end', () => {
    const { data, shape } = swinV2Coordinates({ window: [8, 8] });
    expect(shape).toEqual([225, 2]);
    expect([...data.subarray(0, 2)]).toEqual(new Array<number>(2).fill(Math.fround(-Math.log2(9) / 3)));
    expect([...data.subarray(2 * 112, 2 * 113)]).toEqual([0, 0]);
  });

  test.each<[Size, Size | undefined]>([
    [[8, 8], undefined],
    [
      [8, 8],
      [0, 0],
    ],
    [[7, 4], undefined],
    [
      [16, 16],
      [8, 8],
    ],
    [
      [24, 12],
      [12, 6],
    ],
    [[1, 3], undefined],
  ])('coordinates of a window of %p, trained at %p', (window, pretrainedWindow) => {
    const { data } = swinV2Coordinates({ window, pretrainedWindow });
    const trained = pretrainedWindow && pretrainedWindow[0] > 0 ? pretrainedWindow : window;
    const want: number[] = [];
    for (let y = 1 - window[0]; y < window[0]; ++y)
      for (let x = 1 - window[1]; x < window[1]; ++x)
        // 0/0 in the published code, for a window of one row
        want.push(window[0] === 1 ? 0 : spaced(y, trained[0]), spaced(x, trained[1]));
    expect([...data].map((value) => value + 0)).toEqual(want.map((value) => Math.fround(value) + 0));
  });

  test.each(seeds)('the table is 16·sigmoid(MLP), seed %i', (seed) => {
    const next = random(seed);
    const window: Size = [between(next, 2, 6), between(next, 2, 6)];
    const [hidden, heads] = [between(next, 1, 20), between(next, 1, 4)];
    const weight1 = uniform(next, [hidden, 2]);
    const bias1 = uniform(next, [hidden]);
    const weight2 = uniform(next, [heads, hidden]);
    const got = swinV2Table({ window, weight1, bias1, weight2 });
    const want: number[] = [];
    for (let y = 1 - window[0]; y < window[0]; ++y) {
      for (let x = 1 - window[1]; x < window[1]; ++x) {
        const at = [spaced(y, window[0]), spaced(x, window[1])];
        const layer = [...bias1.data].map((bias, i) =>
          Math.max(bias + weight1.data[2 * i]! * at[0]! + weight1.data[2 * i + 1]! * at[1]!, 0),
        );
        for (let h = 0; h < heads; ++h) {
          const logit = layer.reduce((sum, value, i) => sum + value * weight2.data[h * hidden + i]!, 0);
          want.push(16 * (1 / (1 + Math.exp(-logit))));
        }
      }
    }
    const rows = (2 * window[0] - 1) * (2 * window[1] - 1);
    expect({ seed, shape: got.shape }).toEqual({ seed, shape: [rows, heads] });
    expect(relativeError(got.data, want)).toBeLessThan(1e-6);
  });

  test('a block’s attention: cosines, the table and the mask', async () => {
    const next = random(3);
    const [resolution, window, shift]: Size[] = [
      [6, 9],
      [3, 3],
      [1, 1],
    ] as [Size, Size, Size];
    const [heads, size, tokens, windows] = [2, 5, 9, 6];
    const shape = [windows, heads, tokens, size];
    const [query, key, value] = [uniform(next, shape), uniform(next, shape), uniform(next, shape)];
    query.data.fill(0, 0, size); // a vector of length 0 has cosine 0
    const logitScale = { data: Float32Array.of(Math.log(10), 9), shape: [heads, 1, 1] }; // e⁹ is above 100
    const table = uniform(next, [25, heads], 0, 16);
    const terms = swinTerms({ resolution: resolution, window: window, shift: shift, table });
    const cosine = swinV2Cosine({ query, key, logitScale });
    const { out } = await device().attention({ ...cosine, value, bias: terms });

    const dense = await device().bias({ shape: [windows, heads, tokens, tokens], bias: terms });
    const want = new Float64Array(out.size);
    const row = (data: Float32Array, at: number): Float32Array => data.subarray(at * size, (at + 1) * size);
    const dot = (a: Float32Array, b: Float32Array): number => a.reduce((sum, x, d) => sum + x * b[d]!, 0);
    for (let bh = 0; bh < windows * heads; ++bh) {
      const factor = bh % heads === 0 ? 10 : 100;
      for (let q = 0; q < tokens; ++q) {
        const a = row(query.data, bh * tokens + q);
        const exps = Array.from({ length: tokens }, (_, k) => {
          const b = row(key.data, bh * tokens + k);
          const lengths = Math.max(Math.sqrt(dot(a, a)), 1e-12) * Math.sqrt(dot(b, b));
          return Math.exp((dot(a, b) / lengths) * factor + dense.data[(bh * tokens + q) * tokens + k]!);
        });
        const sum = exps.reduce((x, y) => x + y, 0);
        for (let k = 0; k < tokens; ++k)
          for (let d = 0; d < size; ++d)
            want[(bh * tokens + q) * size + d]! += (exps[k]! / sum) * row(value.data, bh * tokens + k)[d]!;
      }
    }
    // Scores of up to 116: float32 leaves 4e-6 of them.
    expect(relativeError(out.data, want)).toBeLessThan(2e-5);
  });

  test('is refused', async () => {
    const weights = {
      weight1: uniform(random(1), [4, 2]),
      bias1: uniform(random(1), [3]),
      weight2: uniform(random(1), [1, 4]),
    };
    await expectError(() => swinV2Table({ window: [2, 2], ...weights }), 'ERR_SHAPE', '[4]', 'bias1', '[3]');
    await expectError(
      () => swinV2Coordinates({ window: [2, 2], pretrainedWindow: [1, 8] }),
      'ERR_VALUE',
      'pretrainedWindow[0]',
      '1',
    );
    const query = uniform(random(1), [1, 2, 3, 4]);
    await expectError(
      () => swinV2Cosine({ query, key: query, logitScale: uniform(random(1), [3]) }),
      'ERR_SHAPE',
      '[2]',
      'logitScale',
    );
  });
});
