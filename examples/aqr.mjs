// The bias of a LiDAR-camera decoder layer from a router's weights (AQR): how far a camera that fails is left out. Random
// features stand for a model's.
//
//   node examples/aqr.mjs
import { open } from 'attention-bias';
import { aqrTerms, freshAqrRouter, sensorKeys } from 'attention-bias/presets';

const grids = { bev: [60, 60], cameras: [6, 20, 50] };
const { bevKeys, keys } = sensorKeys(grids);
const [heads, queries, headDim, embed] = [8, 100, 32, 256];

const device = await open();
const random = (shape) => {
  const tensor = device.tensor(shape);
  for (let i = 0; i < tensor.size; ++i) tensor.data[i] = Math.random() - 0.5;
  return tensor;
};

// A fresh router trusts both sensors alike. This one has learnt that channel 0 means "the cameras are dark".
const router = freshAqrRouter(embed);
router.weight.data[embed] = -8;
const features = random([1, queries, embed]);
for (let q = 0; q < queries; ++q) features.data[q * embed] = q < queries / 2 ? 0 : 1;
const weights = await device.router({ features, ...router, outputsFirst: true }); // [2, 1, queries]

const [query, key] = [random([1, heads, queries, headDim]), random([1, heads, keys, headDim])];
const { crossAttention } = aqrTerms({ grids, mode: 'global', lidar: weights.at(0), camera: weights.at(1) });

// Values that say which sensor a key is of: the output is the share of attention that each gets.
const value = device.tensor([1, heads, keys, 1]);
value.data.forEach((_, i) => (value.data[i] = i % keys < bevKeys ? 0 : 1));
const { out } = await device.attention({ query, key, value, bias: crossAttention });
for (const [what, q] of [
  ['cameras work', 0],
  ['cameras are dark', queries - 1],
])
  console.log(`${what}: ${(100 * out.data[q]).toFixed(0)} % of the attention goes to them`);
device.close();
