// A CMT decoder layer's cross-attention over LiDAR and cameras, biased by a router's weights (AQR): projections, attention
// under the bias and identity in one call. Random features and weights stand for a model's.
//
//   node examples/cmt.mjs
import { open } from 'attention-bias';
import { aqrTerms, cmtAttention, sensorKeys } from 'attention-bias/presets';

const grids = { bev: [60, 60], cameras: [6, 20, 50] };
const { bevKeys, cameraKeys } = sensorKeys(grids);
const [heads, embed, queries] = [8, 256, 100];

const device = await open();
const random = (shape, low = -0.5) => ({
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => Math.random() + low),
  shape,
});
const { crossAttention } = aqrTerms({
  grids,
  mode: 'global',
  lidar: random([1, queries], 0),
  camera: random([1, queries], 0),
});
const out = await cmtAttention(device, {
  query: random([1, queries, embed]),
  queryPos: random([1, queries, embed]),
  bev: random([1, bevKeys, embed]),
  bevPos: random([1, bevKeys, embed]),
  cameras: random([1, cameraKeys, embed]),
  camerasPos: random([1, cameraKeys, embed]),
  heads,
  inProjWeight: random([3 * embed, embed]),
  inProjBias: random([3 * embed]),
  outProjWeight: random([embed, embed]),
  outProjBias: random([embed]),
  bias: crossAttention,
});
console.log(JSON.stringify({ out: out.shape }));
device.close();
