// A Swin V2 block's attention from a map and back: shifted windows, a table from the position MLP, cosine attention. Random
// features and weights stand for a model's.
//
//   node examples/swin-v2.mjs
import { open } from 'attention-bias';
import {
  mergeHeads,
  splitHeads,
  swinTerms,
  swinV2Cosine,
  swinV2Table,
  swinWindow,
  windowPartition,
  windowReverse,
} from 'attention-bias/presets';

const [heads, headDim, hidden] = [3, 32, 512];
const layout = swinWindow({ resolution: [32, 32], window: [8, 8], shift: [4, 4] });
const random = (shape, scale = 1) => ({
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => (Math.random() - 0.5) * scale),
  shape,
});

// Once, after loading: `cpb_mlp` of a checkpoint, pre-trained with windows of 8 × 8.
const table = swinV2Table({
  window: layout.window,
  pretrainedWindow: [8, 8],
  weight1: random([hidden, 2]),
  bias1: random([hidden]),
  weight2: random([heads, hidden], 0.1),
});
const bias = swinTerms({ ...layout, table });

const device = await open();
// Query, key and value of a map, as a block's linear layer makes them.
const [query, key, value] = [0, 1, 2].map(() => {
  const map = random([1, ...layout.resolution, heads * headDim]);
  return splitHeads(windowPartition(map, layout), heads); // [16, 3, 64, 32]
});
const logitScale = { data: new Float32Array(heads).fill(Math.log(10)), shape: [heads] };
const { out } = await device.attention({ ...swinV2Cosine({ query, key, logitScale }), value, bias });
const map = windowReverse(mergeHeads(out), layout);
console.log(JSON.stringify({ windows: out.shape, map: map.shape }));
device.close();
