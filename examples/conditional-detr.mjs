// Conditional DETR's cross-attention: content and spatial parts of queries and keys, the spatial part as a bias of low rank.
// Random features stand for projected ones.
//
//   node examples/conditional-detr.mjs
import { open } from 'attention-bias';
import { conditionalAttention, conditionalSpatialQuery, splitHeads } from 'attention-bias/presets';

const [heads, embed, queries, keys] = [8, 256, 300, 25 * 38];
const random = (shape) => ({
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => Math.random()),
  shape,
});

// Reference points (x, y) in [0, 1], times what an MLP makes of the decoder embedding.
const spatialQuery = conditionalSpatialQuery({
  points: random([1, queries, 2]),
  transformation: random([1, queries, embed]),
});
const attention = conditionalAttention({
  heads,
  contentQuery: random([1, queries, embed]),
  contentKey: random([1, keys, embed]),
  spatialQuery,
  spatialKey: random([1, keys, embed]),
});

const device = await open();
const value = splitHeads(random([1, keys, embed]), heads);
const { out } = await device.attention({ ...attention, value });
console.log(JSON.stringify({ out: out.shape, scale: attention.scale })); // scale 1/√(2·32)
device.close();
