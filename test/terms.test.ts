import { open } from '../lib/index.js';
import { expectError } from './support.js';
import type { BiasTerm, Device, ErrorCode } from '../lib/index.js';

const floats = (shape: number[], value = 0.5) => ({
  data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value),
  shape,
});
const bytes = (shape: number[]) => ({ data: new Uint8Array(shape.reduce((a, b) => a * b, 1)), shape });
const ints = (shape: number[]) => ({ data: new Int32Array(shape.reduce((a, b) => a * b, 1)), shape });

const modality = { start: 0, length: 8, weights: floats([1, 4]) };
const spatial = { start: 0, grid: [2, 4], centers: floats([1, 4, 2]), radius: 2, weights: floats([1, 4]) };
const window = { start: 0, grid: [2, 4], centers: floats([1, 4, 2]), size: 3 };
const withElement = (shape: number[], i: number, value: number) => {
  const tensor = floats(shape);
  tensor.data[i] = value;
  return tensor;
};

// B 1, H 2, Q 4, K 8. What a message must hold comes last.
const bad: [string, unknown, ErrorCode, ...string[]][] = [
  ['no object', 5, 'ERR_TERM', 'bias[0]', '5'],
  ['null', null, 'ERR_TERM', 'bias[0]', 'null'],
  ['no type', {}, 'ERR_TERM', 'bias[0].type', 'undefined'],
  ['unknown type', { type: 'dence' }, 'ERR_TERM', 'bias[0].type', 'dense, mask, padding', '"dence"'],
  ['type of Object.prototype', { type: 'toString' }, 'ERR_TERM', 'bias[0].type'],

  ['dense: missing field', { type: 'dense' }, 'ERR_TERM', 'bias[0].bias', 'undefined'],
  [
    'dense: unknown field',
    { type: 'dense', bias: floats([1, 1, 4, 8]), scale: 2 },
    'ERR_TERM',
    '"scale"',
    'bias[0]',
  ],
  [
    'dense: shape',
    { type: 'dense', bias: floats([1, 3, 4, 8]) },
    'ERR_SHAPE',
    'bias[0].bias',
    '[1, 3, 4, 8]',
  ],
  ['dense: dtype', { type: 'dense', bias: ints([1, 1, 4, 8]) }, 'ERR_DTYPE', 'bias[0].bias', 'int32'],
  [
    'dense: NaN',
    { type: 'dense', bias: withElement([1, 1, 4, 8], 9, NaN) },
    'ERR_VALUE',
    'bias[0].bias',
    'element 9',
  ],
  ['dense: +∞', { type: 'dense', bias: withElement([1, 1, 4, 8], 9, Infinity) }, 'ERR_VALUE', 'bias[0].bias'],

  ['mask: dtype', { type: 'mask', visible: floats([1, 1, 4, 8]) }, 'ERR_DTYPE', 'bias[0].visible', 'float32'],
  ['mask: rank', { type: 'mask', visible: bytes([4, 8]) }, 'ERR_SHAPE', 'bias[0].visible', '[4, 8]'],
  ['padding: shape', { type: 'padding', ignore: bytes([1, 7]) }, 'ERR_SHAPE', 'bias[0].ignore', '[1, 7]'],
  ['padding: no tensor', { type: 'padding', ignore: true }, 'ERR_VALUE', 'bias[0].ignore', 'true'],

  ['causal: align', { type: 'causal', align: 'top' }, 'ERR_VALUE', 'bias[0].align', '"top-left"', '"top"'],
  ['causal: align is null', { type: 'causal', align: null }, 'ERR_VALUE', 'bias[0].align', 'null'],
  ['slidingWindow: missing', { type: 'slidingWindow', left: 1 }, 'ERR_TERM', 'bias[0].right'],
  [
    'slidingWindow: fraction',
    { type: 'slidingWindow', left: 1.5, right: 0 },
    'ERR_VALUE',
    'bias[0].left',
    '1.5',
  ],
  ['slidingWindow: NaN', { type: 'slidingWindow', left: NaN, right: 0 }, 'ERR_VALUE', 'bias[0].left', 'NaN'],
  ['slidingWindow: huge', { type: 'slidingWindow', left: 2 ** 54, right: 0 }, 'ERR_VALUE', 'bias[0].left'],
  [
    'slidingWindow: string',
    { type: 'slidingWindow', left: '1', right: 0 },
    'ERR_VALUE',
    'bias[0].left',
    '"1"',
  ],
  [
    'slidingWindow: bigint',
    { type: 'slidingWindow', left: 1n, right: 0 },
    'ERR_VALUE',
    'bias[0].left',
    'a bigint',
  ],
  ['slidingWindow: −2', { type: 'slidingWindow', left: -2, right: 0 }, 'ERR_VALUE', 'bias[0].left', '-2'],

  [
    'blockDiagonal: dtype',
    { type: 'blockDiagonal', queryIds: floats([1, 4]), keyIds: ints([1, 8]) },
    'ERR_DTYPE',
    'bias[0].queryIds',
  ],
  [
    'blockDiagonal: shape',
    { type: 'blockDiagonal', queryIds: ints([1, 4]), keyIds: ints([1, 4]) },
    'ERR_SHAPE',
    'bias[0].keyIds',
  ],

  ['modality: no segments', { type: 'modality', segments: [] }, 'ERR_TERM', 'bias[0].segments'],
  [
    'modality: segments is no array',
    { type: 'modality', segments: modality },
    'ERR_TERM',
    'bias[0].segments',
    'an object',
  ],
  [
    'modality: strength',
    { type: 'modality', strength: Infinity, segments: [modality] },
    'ERR_VALUE',
    'bias[0].strength',
  ],
  [
    'modality: missing',
    { type: 'modality', segments: [{ start: 0, length: 8 }] },
    'ERR_TERM',
    'bias[0].segments[0].weights',
  ],
  [
    'modality: unknown',
    { type: 'modality', segments: [{ ...modality, radius: 1 }] },
    'ERR_TERM',
    '"radius"',
    'bias[0].segments[0]',
  ],
  [
    'modality: weight above 1',
    { type: 'modality', segments: [{ ...modality, weights: withElement([1, 4], 2, 1.5) }] },
    'ERR_VALUE',
    'bias[0].segments[0].weights',
    '1.5',
    'element 2',
  ],
  [
    'modality: weight NaN',
    { type: 'modality', segments: [{ ...modality, weights: withElement([1, 4], 0, NaN) }] },
    'ERR_VALUE',
    'bias[0].segments[0].weights',
    'nan',
  ],
  [
    'modality: past the end',
    { type: 'modality', segments: [{ ...modality, start: 1 }] },
    'ERR_VALUE',
    'bias[0].segments[0]',
  ],
  [
    'modality: overlap',
    {
      type: 'modality',
      segments: [
        { ...modality, length: 5 },
        { ...modality, start: 4, length: 2 },
      ],
    },
    'ERR_VALUE',
    'bias[0].segments',
  ],
  [
    'modality: 2^53 keys',
    { type: 'modality', segments: [{ ...modality, length: 2 ** 53 - 1 }] },
    'ERR_VALUE',
    'bias[0].segments[0]',
  ],

  [
    'spatial: radius 0',
    { type: 'spatial', segments: [{ ...spatial, radius: 0 }] },
    'ERR_VALUE',
    'bias[0].segments[0].radius',
  ],
  [
    'spatial: grid',
    { type: 'spatial', segments: [{ ...spatial, grid: [8] }] },
    'ERR_VALUE',
    'bias[0].segments[0].grid',
  ],
  [
    'spatial: grid of strings',
    { type: 'spatial', segments: [{ ...spatial, grid: ['2', '4'] }] },
    'ERR_VALUE',
    'bias[0].segments[0].grid',
    '"2"',
  ],
  [
    'spatial: centers',
    { type: 'spatial', segments: [{ ...spatial, grid: [1, 2, 4] }] },
    'ERR_SHAPE',
    'bias[0].segments[0].centers',
  ],
  [
    'spatial: 2^40 cells',
    { type: 'spatial', segments: [{ ...spatial, grid: [2 ** 20, 2 ** 20] }] },
    'ERR_VALUE',
    'bias[0].segments[0]',
  ],
  [
    'spatial: weights',
    { type: 'spatial', segments: [{ ...spatial, weights: withElement([1, 4], 1, -Infinity) }] },
    'ERR_VALUE',
    'bias[0].segments[0].weights',
  ],

  [
    'window: even',
    { type: 'window', segments: [{ ...window, size: 4 }] },
    'ERR_VALUE',
    'bias[0].segments[0].size',
    '4',
  ],
  [
    'window: weights',
    { type: 'window', segments: [{ ...window, weights: floats([1, 4]) }] },
    'ERR_TERM',
    '"weights"',
  ],

  ['denoising: Q ≠ K', { type: 'denoising', groups: 1, groupSize: 1 }, 'ERR_SHAPE', 'bias[0]'],
  [
    'denoising: boolean',
    { type: 'denoising', groups: 1, groupSize: 1, groupsSeeMatching: 1 },
    'ERR_VALUE',
    'bias[0].groupsSeeMatching',
  ],
  [
    'shiftedWindow: window',
    { type: 'shiftedWindow', resolution: [8, 8], window: [3, 3], shift: [1, 1] },
    'ERR_VALUE',
    'bias[0].resolution',
  ],
  [
    'shiftedWindow: shift',
    { type: 'shiftedWindow', resolution: [4, 4], window: [2, 2], shift: [2, 0] },
    'ERR_VALUE',
    'bias[0].shift',
  ],
  [
    'relativePosition: Q ≠ K',
    { type: 'relativePosition', window: [2, 2], table: floats([9, 2]) },
    'ERR_SHAPE',
    'bias[0].window',
  ],
  [
    'lowRank: rank',
    { type: 'lowRank', queryFactors: floats([1, 1, 4, 3]), keyFactors: floats([1, 1, 8, 2]) },
    'ERR_SHAPE',
    'bias[0].keyFactors',
  ],
  [
    'lowRank: scale',
    { type: 'lowRank', queryFactors: floats([1, 1, 4, 3]), keyFactors: floats([1, 1, 8, 3]), scale: NaN },
    'ERR_VALUE',
    'bias[0].scale',
  ],
  ['alibi: shape', { type: 'alibi', slopes: floats([3]) }, 'ERR_SHAPE', 'bias[0].slopes', '[3]'],
  [
    'alibi: too steep',
    { type: 'alibi', slopes: floats([2], -1e38) },
    'ERR_VALUE',
    'bias[0].slopes',
    '-9.99999968e+37',
  ],
  ['alibi: NaN', { type: 'alibi', slopes: floats([2], NaN) }, 'ERR_VALUE', 'bias[0].slopes'],
];

describe('a bad term', () => {
  let device: Device;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 1 });
  });
  afterAll(() => {
    device.close();
  });

  test.each(bad)('%s', async (_, term, code, ...words) => {
    const bias = [term] as BiasTerm[];
    await expectError(() => device.bias({ shape: [1, 2, 4, 8], bias }), code, ...words);
    await expectError(
      () =>
        device.attention({
          query: floats([1, 2, 4, 3]),
          key: floats([1, 2, 8, 3]),
          value: floats([1, 2, 8, 3]),
          bias,
        }),
      code,
      ...words,
    );
  });

  test('is named by its place', async () => {
    const bias = [{ type: 'causal' }, { type: 'alibi', slopes: floats([9]) }] as BiasTerm[];
    await expectError(() => device.bias({ shape: [1, 2, 4, 8], bias }), 'ERR_SHAPE', 'bias[1].slopes');
  });

  test('slopes may be as steep as float32 allows', async () => {
    const slopes = { data: Float32Array.of(-4.86e37), shape: [1] }; // 7 times that is 3.402e38
    const bias: BiasTerm[] = [{ type: 'alibi', slopes }];
    const { data } = await device.bias({ shape: [1, 1, 4, 8], bias });
    expect(data.every(Number.isFinite)).toBe(true);
    expect(Math.max(...data)).toBe(Math.fround(7 * Math.fround(4.86e37)));
  });

  test('65 terms', async () => {
    const bias = new Array<BiasTerm>(65).fill({ type: 'causal' });
    await expectError(() => device.bias({ shape: [1, 2, 4, 8], bias }), 'ERR_TERM', 'at most 64 terms');
  });

  test('a field that is undefined counts as absent', async () => {
    const bias = [{ type: 'causal', align: undefined, strength: undefined }] as unknown as BiasTerm[];
    expect((await device.bias({ shape: [1, 1, 2, 2], bias })).data).toEqual(
      Float32Array.of(0, -Infinity, 0, 0),
    );
  });
});
