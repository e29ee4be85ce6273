// MoME: each query sees both sensors, LiDAR alone or the cameras alone, as the router decides from what is round it.
//
//   node examples/mome.mjs
import { open } from 'attention-bias';
import { momeExperts, momeExpertTerms, momeLocalMask, momeRoute, sensorKeys } from 'attention-bias/presets';

const grids = { bev: [60, 60], cameras: [6, 20, 50] };
const { keys } = sensorKeys(grids);
const [heads, queries, headDim] = [8, 100, 32];

const device = await open();
const random = (shape, scale = 1) => {
  const tensor = device.tensor(shape);
  for (let i = 0; i < tensor.size; ++i) tensor.data[i] = (Math.random() - 0.5) * scale;
  return tensor;
};
const cells = (shape, sizes) => {
  const tensor = device.tensor(shape);
  tensor.data.forEach((_, i) => (tensor.data[i] = Math.floor(Math.random() * sizes[i % sizes.length])));
  return tensor;
};
const bevCenters = cells([1, queries, 2], grids.bev); // device.project gives them
const cameraCenters = cells([1, queries, 3], grids.cameras);
const [query, key, value] = [queries, keys, keys].map((n) => random([1, heads, n, headDim]));

// The router looks at 5 × 5 BEV cells and 15 × 15 image cells round a query …
const local = await device.attention({
  query,
  key,
  value,
  bias: [momeLocalMask({ grids, bevCenters, cameraCenters })],
});
// … and a linear layer behind it picks the expert. Random logits stand for it.
const experts = momeRoute(random([1, queries, 3]));
const { crossAttention, selfAttention } = momeExpertTerms({ grids, experts });
const among = await device.attention({ query, key: query, value: query, bias: selfAttention });
const { out } = await device.attention({ query: among.out, key, value, bias: crossAttention });

const counts = momeExperts.map((_, id) => experts.data.filter((expert) => expert === id).length);
console.log(
  JSON.stringify({ local: local.out.shape, out: out.shape, queries: counts.reduce((a, b) => a + b) }),
);
device.close();
