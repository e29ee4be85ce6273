// BEiT's relative position bias over 14 × 14 patches and a class token. A random table stands for a checkpoint's.
//
//   node examples/beit.mjs
import { open } from 'attention-bias';
import { beitTerms, relativePositionRows } from 'attention-bias/presets';

const [window, heads, headDim] = [[14, 14], 12, 64];
const tokens = 1 + window[0] * window[1];
const random = (shape) => ({
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => Math.random() - 0.5),
  shape,
});
const table = random([relativePositionRows(window, true), heads]); // relative_position_bias_table, [732, 12]

const device = await open();
const [query, key, value] = [0, 1, 2].map(() => random([1, heads, tokens, headDim]));
const { out } = await device.attention({ query, key, value, bias: beitTerms({ window, table }) });
console.log(JSON.stringify({ out: out.shape }));
device.close();
