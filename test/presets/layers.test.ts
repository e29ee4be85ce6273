// The layers of CMT and Deformable DETR on a device, beside the same operations in plain loops.
import { deformableAttention, freshDeformable, petrAttention } from '../../lib/presets/index.js';
import { random, relativeError, uniform } from '../support.js';
import { referenceOperations } from './operations.js';
import { useDevice } from './presets.js';

describe('on a device', () => {
  const device = useDevice();

  test('Deformable DETR', async () => {
    const next = random(1);
    const spatialShapes: [number, number][] = [
      [6, 9],
      [3, 5],
    ];
    const args = {
      ...freshDeformable({ embed: 32, heads: 4, levels: 2, points: 3, random: next }),
      query: uniform(next, [2, 7, 32]),
      referencePoints: uniform(next, [2, 7, 2, 2], 0, 1),
      input: uniform(next, [2, 69, 32]),
      spatialShapes,
      heads: 4,
      points: 3,
    };
    const out = await deformableAttention(device(), args);
    const want = await deformableAttention(referenceOperations, args);
    expect(out.shape).toEqual([2, 7, 32]);
    expect(relativeError(out.data, want.data)).toBeLessThan(2e-5);
  });

  test.each([true, false])('PETR, with a bias %p', async (biased) => {
    const next = random(2);
    const args = {
      query: uniform(next, [2, 7, 32]),
      queryPos: uniform(next, [2, 7, 32]),
      key: uniform(next, [2, 20, 32]),
      keyPos: uniform(next, [2, 20, 32]),
      identity: uniform(next, [2, 7, 32]),
      heads: 4,
      inProjWeight: uniform(next, [96, 32]),
      inProjBias: uniform(next, [96]),
      outProjWeight: uniform(next, [32, 32]),
      outProjBias: uniform(next, [32]),
      ...(biased ? { bias: [{ type: 'slidingWindow' as const, left: 3, right: 3 }] } : {}),
    };
    const out = await petrAttention(device(), args);
    const want = await petrAttention(referenceOperations, args);
    expect(relativeError(out.data, want.data)).toBeLessThan(1e-5);
  });
});
