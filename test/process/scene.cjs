// What the programs of this folder share: the built package, and attentions of a chosen length.
'use strict';
const path = require('node:path');

const dist = process.env.ATTENTION_BIAS_TEST_DIST ?? path.join(__dirname, '../../dist');
exports.attentionBias = require(path.join(dist, 'index.js'));
exports.memory = () => require(path.join(dist, 'native.js')).native().memory();

/** Arguments of an attention of queries × keys, 8 heads of 32, with the two-segment modality bias of CMT. */
exports.attentionArgs = (device, queries, keys) => {
  const tensor = (shape) => {
    const t = device.tensor(shape);
    const period = Math.min(t.size, 8191);
    for (let i = 0; i < period; ++i) t.data[i] = Math.sin(i * 12.9898);
    for (let i = period; i < t.size; i += period) t.data.copyWithin(i, 0, Math.min(period, t.size - i));
    return t;
  };
  const weights = { data: new Float32Array(queries).fill(0.8176), shape: [1, queries] };
  const half = Math.floor(keys / 2);
  return {
    query: tensor([1, 8, queries, 32]),
    key: tensor([1, 8, keys, 32]),
    value: tensor([1, 8, keys, 32]),
    bias: [
      {
        type: 'modality',
        segments: [
          { start: 0, length: half, weights },
          { start: half, length: keys - half, weights },
        ],
      },
    ],
  };
};

/** About `seconds` of attention on this machine with this device: grown from a measured call. */
exports.attentionOf = async (device, seconds) => {
  const probe = exports.attentionArgs(device, 128, 2048);
  let best = Infinity;
  for (let i = 0; i < 5; ++i) {
    const start = performance.now();
    await device.attention(probe);
    best = Math.min(best, (performance.now() - start) / 1000);
  }
  const pairs = (128 * 2048 * seconds) / best;
  const keys = 16384;
  return exports.attentionArgs(device, Math.max(1, Math.round(pairs / keys)), keys);
};
