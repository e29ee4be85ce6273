// Multi-scale deformable attention (Deformable DETR) with the published initialisation: 8 heads, 4 levels, 4 points. Random
// features stand for a backbone's.
//
//   node examples/deformable-detr.mjs
import { open } from 'attention-bias';
import { deformableAttention, freshDeformable } from 'attention-bias/presets';

const [heads, embed, queries] = [8, 256, 300];
const spatialShapes = [
  [40, 60],
  [20, 30],
  [10, 15],
  [5, 8],
];
const cells = spatialShapes.reduce((sum, [h, w]) => sum + h * w, 0);
const random = (shape) => ({
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => Math.random()),
  shape,
});

const device = await open();
const out = await deformableAttention(device, {
  ...freshDeformable(), // or a checkpoint's weights
  query: random([1, queries, embed]),
  referencePoints: random([1, queries, spatialShapes.length, 2]),
  input: random([1, cells, embed]),
  spatialShapes,
  heads,
});
console.log(JSON.stringify({ out: out.shape }));
device.close();
