/** Deformable attention through the API: what the native tests can't see. */
import { referenceDeformable } from '../lib/reference.js';
import { open } from '../lib/index.js';
import { expectError, narrowed, random, relativeError, uniform, widened } from './support.js';
import type { DeformableBackwardArgs, Device, TensorLike } from '../lib/index.js';

const names = ['value', 'samplingLocations', 'attentionWeights'] as const;

function forward() {
  const next = random(11);
  return {
    value: uniform(next, [2, 26, 3, 8]),
    spatialShapes: [
      [4, 5],
      [2, 3],
    ] as const,
    samplingLocations: uniform(next, [2, 7, 3, 2, 4, 2], -0.2, 1.2),
    attentionWeights: uniform(next, [2, 7, 3, 2, 4]),
  };
}

const inputs = () => ({ ...forward(), gradOut: uniform(random(12), [2, 7, 24]) });

describe('deformable', () => {
  let device: Device;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 2 });
  });
  afterAll(() => {
    device.close();
  });

  test('out and gradients have their shapes, and agree with the float64 reference', async () => {
    const out = await device.deformable(forward());
    const want = referenceDeformable(inputs());
    expect(out.shape).toEqual([2, 7, 24]);
    expect(relativeError(out.data, want.out)).toBeLessThan(1e-6);
    for (const deterministic of [undefined, false, true]) {
      const grads = await device.deformableBackward({ ...inputs(), deterministic });
      for (const name of names) {
        expect(grads[name].shape).toEqual(inputs()[name].shape);
        expect(relativeError(grads[name].data, want[name])).toBeLessThan(1e-6);
      }
    }
  });

  test('a value in bfloat16 is the float32 that it stands for', async () => {
    const value = narrowed(inputs().value);
    const [low, high] = [
      await device.deformable({ ...forward(), value }),
      await device.deformable({ ...forward(), value: widened(value) }),
    ];
    expect(low.data).toEqual(high.data);
    const [grads, want] = [
      await device.deformableBackward({ ...inputs(), value }),
      await device.deformableBackward({ ...inputs(), value: widened(value) }),
    ];
    for (const name of names) expect(grads[name].data).toEqual(want[name].data);
  });

  test('a precision of the device changes nothing', async () => {
    using low = await open({ device: 'cpu', threads: 2, precision: 'bf16' });
    expect((await low.deformable(forward())).data).toEqual((await device.deformable(forward())).data);
  });

  test('an output of the caller is written to', async () => {
    const out = device.tensor([2, 7, 24]);
    const result = await device.deformable({ ...forward(), out });
    expect(result).toBe(out);
    expect(out.data).toEqual((await device.deformable(forward())).data);
    const { value } = forward();
    const overlapping = { data: value.data.subarray(0, 2 * 7 * 24), shape: [2, 7, 24] };
    await expectError(
      () => device.deformable({ ...forward(), value, out: overlapping }),
      'ERR_VALUE',
      'memory of its own',
      'out',
    );
  });

  test('a signal stops it', async () => {
    const signal = AbortSignal.abort(new Error('late'));
    await expectError(() => device.deformable({ ...forward(), signal }), 'ERR_ABORTED');
    await expectError(() => device.deformableBackward({ ...inputs(), signal }), 'ERR_ABORTED');
  });

  const refused: [object, string, ...string[]][] = [
    [{ spatialShapes: undefined }, 'ERR_VALUE', 'spatialShapes', 'undefined'],
    [{ spatialShapes: '4x5' }, 'ERR_VALUE', 'spatialShapes', '"4x5"'],
    [{ spatialShapes: [] }, 'ERR_VALUE', 'at least one [h, w]', 'spatialShapes'],
    [{ spatialShapes: [[4, 5], 6] }, 'ERR_VALUE', 'an array of integers', 'spatialShapes[1]', '6'],
    [
      {
        spatialShapes: [
          [4, 5],
          [2, 1.5],
        ],
      },
      'ERR_VALUE',
      'an array of integers',
      'spatialShapes[1]',
    ],
    [{ spatialShapes: [[4, 5], [6]] }, 'ERR_VALUE', '[h, w]', 'spatialShapes', '[[4, 5], [6]]'],
    [
      {
        spatialShapes: [
          [4, 5],
          [0, 6],
        ],
      },
      'ERR_VALUE',
      'at least 1',
      'spatialShapes',
    ],
    [
      {
        spatialShapes: [
          [4, 5],
          [2, 4],
        ],
      },
      'ERR_VALUE',
      "value's 26 pixels",
      'spatialShapes',
      '[[4, 5], [2, 4]]',
    ],
    [
      {
        spatialShapes: [
          [4, 5],
          [2, 2],
        ],
      },
      'ERR_VALUE',
      "value's 26 pixels",
      'spatialShapes',
      'have 24',
    ],
    [{ spatialShapes: [[2, 13]] }, 'ERR_SHAPE', '[2, 7, 3, 1, 4, 2]', 'samplingLocations'],
    [{ spatialShapes: new Array(65).fill([1, 1]) }, 'ERR_VALUE', 'at most 64', 'spatialShapes'],
    [
      { attentionWeights: uniform(random(1), [2, 7, 3, 8]) },
      'ERR_SHAPE',
      '[B, Q, H, L, P]',
      'attentionWeights',
    ],
    [
      { samplingLocations: uniform(random(1), [2, 7, 3, 2, 8]) },
      'ERR_SHAPE',
      'samplingLocations',
      '[2, 7, 3, 2, 8]',
    ],
    [
      { value: { data: new Int32Array(24), shape: [1, 2, 3, 4] } },
      'ERR_DTYPE',
      'float32 or bfloat16',
      'value',
      'int32',
    ],
    [{ gradOut: uniform(random(1), [2, 7, 3, 8]) }, 'ERR_SHAPE', '[B, Q, H·D] = [2, 7, 24]', 'gradOut'],
    [{ gradOut: undefined }, 'ERR_VALUE', 'gradOut', 'undefined'],
    [{ deterministic: 1 }, 'ERR_VALUE', 'true or false', 'deterministic', '1'],
    [{ points: 4 }, 'ERR_VALUE', 'no other fields', '"points"'],
  ];
  // Named by what the error says, since tensors are long.
  test.each(
    refused.map(([changes, ...says]): [string, object, ...string[]] => [says.join(', '), changes, ...says]),
  )('refuses by %s', async (_, changes, code, ...words) => {
    const args = { ...inputs(), ...changes } as DeformableBackwardArgs;
    await expectError(() => device.deformableBackward(args), code as 'ERR_VALUE', ...words);
  });

  test('deterministic and gradOut are of the gradients alone', async () => {
    const args = { ...forward(), deterministic: true } as { value: TensorLike };
    await expectError(
      () => device.deformable(args as never),
      'ERR_VALUE',
      'no other fields',
      'deterministic',
    );
  });
});
