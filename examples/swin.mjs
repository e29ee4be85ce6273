// Shifted-window attention of Swin: all windows of a 56 × 56 map as one batch, with the relative position table and the
// shift mask as terms. Random features stand for a model's.
//
//   node examples/swin.mjs
import { open } from 'attention-bias';

const resolution = [56, 56];
const window = [7, 7];
const shift = [3, 3];
const heads = 3;
const headDim = 32;
const tokens = window[0] * window[1];
const windows = (resolution[0] / window[0]) * (resolution[1] / window[1]);

const device = await open();
const random = (shape) => {
  const tensor = device.tensor(shape);
  for (let i = 0; i < tensor.size; ++i) tensor.data[i] = Math.random() - 0.5;
  return tensor;
};
const [query, key, value] = [0, 1, 2].map(() => random([windows, heads, tokens, headDim]));
const table = random([(2 * window[0] - 1) * (2 * window[1] - 1), heads]);

const bias = [
  { type: 'relativePosition', window, table },
  { type: 'shiftedWindow', resolution, window, shift },
];
const { out, lse } = await device.attention({ query, key, value, bias });
console.log(JSON.stringify({ out: out.shape, lse: lse.shape }));

// The same bias as a matrix, to look at: the last window holds tokens of four regions of the image.
const dense = await device.bias({ shape: [windows, heads, tokens, tokens], bias });
const last = dense.data.subarray((windows - 1) * heads * tokens * tokens);
console.log(`window ${windows}: token 1 sees token 49 with a bias of ${last[tokens - 1].toFixed(1)}`);
device.close();
