// One decoder layer of a LiDAR-camera detector (CMT, MoME): 900 queries over 180 × 180 BEV cells and 6 × 40 × 100 image
// cells, biased by how much each query trusts each sensor and by where it projects to. Random features stand for a model's.
//
//   node examples/cmt-bias.mjs
import { open } from 'attention-bias';

const heads = 8;
const headDim = 32;
const queries = 900;
const bev = [180, 180];
const cameras = [6, 40, 100];
const lidarKeys = bev[0] * bev[1];
const cameraKeys = cameras[0] * cameras[1] * cameras[2];

const device = await open();
console.error(`on ${device.info.name}`);

const random = (shape, scale = 1) => {
  const tensor = device.tensor(shape);
  for (let i = 0; i < tensor.size; ++i) tensor.data[i] = (Math.random() - 0.5) * scale;
  return tensor;
};

// The adaptive query router: two weights a query, LiDAR and camera, in (0, 1). Fresh: bias 1.5.
const router = { weight: random([2, 256], 0.2), bias: device.from(new Float32Array([1.5, 1.5])) };
const features = random([1, queries, 256]);
const weights = await device.router({ features, ...router, outputsFirst: true }); // [2, 1, queries]
const [lidar, camera] = [weights.at(0), weights.at(1)];

// Six pinhole cameras in a ring, 60° apart, on a car; x forward, y left, z up, in metres.
const lidar2img = device.tensor([1, 6, 4, 4]);
for (let view = 0; view < 6; ++view) {
  const [c, s] = [Math.cos((view * Math.PI) / 3), Math.sin((view * Math.PI) / 3)];
  const focal = 1300;
  const matrix = [
    [800 * c + focal * s, 800 * s - focal * c, 0, 0],
    [320 * c, 320 * s, -focal, 0],
    [c, s, 0, 0],
    [0, 0, 0, 1],
  ];
  lidar2img.data.set(matrix.flat(), view * 16);
}
const referencePoints = device.tensor([1, queries, 3]);
referencePoints.data.forEach((_, i) => (referencePoints.data[i] = i % 3 === 2 ? 0.5 : Math.random()));
const { bevCenters, cameraCenters } = await device.project({
  referencePoints,
  pointCloudRange: [-54, -54, -5, 54, 54, 3],
  lidar2img,
  imageShape: [640, 1600],
  featureShape: [40, 100],
  bevShape: bev,
});

// The whole bias: 14,400 numbers instead of a 900 × 56,400 matrix.
const bias = [
  {
    type: 'modality',
    segments: [
      { start: 0, length: lidarKeys, weights: lidar },
      { start: lidarKeys, length: cameraKeys, weights: camera },
    ],
  },
  {
    type: 'spatial',
    segments: [
      { start: 0, grid: bev, centers: bevCenters, radius: 8, weights: lidar },
      { start: lidarKeys, grid: cameras, centers: cameraCenters, radius: 8, weights: camera },
    ],
  },
];

const keys = lidarKeys + cameraKeys;
const [query, key, value] = [queries, keys, keys].map((length) => random([1, heads, length, headDim]));
const start = performance.now();
const { out, lse } = await device.attention({ query, key, value, bias });
console.error(`attention over ${keys} keys: ${(performance.now() - start).toFixed(0)} ms`);
console.log(JSON.stringify({ shape: out.shape, first: [...out.data.subarray(0, 4)] }));

// Native memory is freed with the garbage, or at once where it matters, as for results of a frame.
for (const tensor of [query, key, value, out, lse]) tensor.dispose();
device.close();
