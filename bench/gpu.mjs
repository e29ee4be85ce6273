// Kernel times on cuda:0 (device events, copies left out): medians over runs with fresh random inputs. Prints JSON.
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

const require = createRequire(import.meta.url);
const { open } = require('../dist/index.js');

const { values } = parseArgs({
  options: { runs: { type: 'string', default: '9' }, small: { type: 'boolean' } },
});
const runs = Number(values.runs);
const shrink = values.small ? 16 : 1; // to try this program where it is slow
const size = (n) => Math.max(1, Math.floor(n / shrink));

const count = (shape) => shape.reduce((a, b) => a * b, 1);
function random(shape, low = -1.7, high = 1.7) {
  const data = new Float32Array(count(shape));
  for (let i = 0; i < data.length; ++i) data[i] = low + (high - low) * Math.random();
  return { data, shape };
}

const [bev, cameras] = [
  [180, 180],
  [6, 40, 100],
];
const lidarKeys = count(bev);
const keys = lidarKeys + count(cameras);
function cmt(queries) {
  const centers = (grid) => {
    const tensor = random([1, queries, grid.length], 0, 1);
    tensor.data.forEach((value, i) => (tensor.data[i] = Math.floor(value * grid[i % grid.length])));
    return tensor;
  };
  const [lidar, camera] = [random([1, queries], 0, 1), random([1, queries], 0, 1)];
  const cells = [
    { start: 0, grid: bev, centers: centers(bev) },
    { start: lidarKeys, grid: cameras, centers: centers(cameras) },
  ];
  return {
    modality: {
      type: 'modality',
      segments: [
        { start: 0, length: lidarKeys, weights: lidar },
        { start: lidarKeys, length: keys - lidarKeys, weights: camera },
      ],
    },
    spatial: {
      type: 'spatial',
      segments: [
        { ...cells[0], radius: 3, weights: lidar },
        { ...cells[1], radius: 8, weights: camera },
      ],
    },
    window: {
      type: 'window',
      segments: [
        { ...cells[0], size: 5 },
        { ...cells[1], size: 15 },
      ],
    },
  };
}

/** Each makes inputs anew. */
const cases = [];
const attention = (name, [b, h, q, k, d], bias) =>
  cases.push({
    name,
    run: (device) =>
      device.attention({
        query: random([b, h, q, d]),
        key: random([b, h, k, d]),
        value: random([b, h, k, d]),
        bias: bias(),
      }),
  });

const queries = size(900);
attention('cmt no bias', [1, 8, queries, keys, 32], () => []);
attention('cmt modality', [1, 8, queries, keys, 32], () => [cmt(queries).modality]);
attention('cmt modality + spatial', [1, 8, queries, keys, 32], () => {
  const { modality, spatial } = cmt(queries);
  return [modality, spatial];
});
attention('cmt LAM windows', [1, 8, queries, keys, 32], () => [cmt(queries).window]);
const dn = size(1500);
attention('DN self-attention', [1, 8, dn, dn, 32], () => [
  { type: 'denoising', groups: 5, groupSize: size(120) },
]);
for (const [length, dim] of [
  [4096, 64],
  [4096, 128],
  [16384, 64],
]) {
  const n = size(length);
  attention(`causal ALiBi ${length} × ${dim}`, [1, 16, n, n, dim], () => [
    { type: 'causal' },
    {
      type: 'alibi',
      slopes: { data: Float32Array.from({ length: 16 }, (_, i) => 2 ** (-(i + 1) / 2)), shape: [16] },
    },
  ]);
}
const windows = values.small ? 64 : 4096;
attention('Swin', [windows, 3, 49, 49, 32], () => [
  { type: 'relativePosition', window: [7, 7], table: random([169, 3]) },
  { type: 'shiftedWindow', resolution: values.small ? [56, 56] : [448, 448], window: [7, 7], shift: [3, 3] },
]);
cases.push({
  name: 'dense bias',
  run: (device) => {
    const { modality, spatial } = cmt(queries);
    return device.bias({ shape: [1, 1, queries, keys], bias: [modality, spatial] });
  },
});

const results = [];
for (const precision of ['f32', 'tf32', 'bf16']) {
  const device = await open({ device: 'cuda', precision });
  for (const { name, run } of cases) {
    if (name === 'dense bias' && precision !== 'f32') continue;
    const times = [];
    for (let i = 0; i <= runs; ++i) {
      const result = await run(device);
      times.push(device.kernelMs);
      for (const tensor of [result.out, result.lse, result]) tensor?.dispose?.();
    }
    times.splice(0, 1); // the warm-up
    times.sort((a, b) => a - b);
    results.push({
      name,
      precision,
      ms: times[Math.floor(times.length / 2)],
      least: times[0],
      most: times.at(-1),
    });
    console.error(`${name}, ${precision}: ${results.at(-1).ms.toFixed(4)} ms`);
  }
  device.close();
}
console.log(JSON.stringify(results));
