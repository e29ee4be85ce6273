// Every operation of a device with small inputs, by name: for tests of what happens in the middle of one.
'use strict';

const tensor = (shape, low = -1, high = 1) => {
  const data = new Float32Array(shape.reduce((product, size) => product * size, 1));
  let state = shape.length + data.length;
  for (let i = 0; i < data.length; ++i) {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    data[i] = low + ((high - low) * state) / 2 ** 31;
  }
  return { data, shape };
};

/** { [operation]: arguments }, of about `size` queries. */
exports.operations = (size) => {
  const keys = 2 * size;
  const bias = [
    {
      type: 'modality',
      segments: [{ start: 0, length: size, weights: tensor([2, size], 0, 1) }],
    },
    { type: 'padding', ignore: { data: new Uint8Array(2 * keys), shape: [2, keys] } },
  ];
  const heads = {
    query: tensor([2, 2, size, 8]),
    key: tensor([2, 2, keys, 8]),
    value: tensor([2, 2, keys, 8]),
    bias,
  };
  const router = { features: tensor([2, size, 16]), weight: tensor([3, 16]), bias: tensor([3]) };
  const deformable = {
    value: tensor([2, 40, 2, 8]),
    spatialShapes: [
      [4, 8],
      [2, 4],
    ],
    samplingLocations: tensor([2, size, 2, 2, 3, 2], 0, 1),
    attentionWeights: tensor([2, size, 2, 2, 3]),
  };
  return {
    attention: heads,
    attentionBackward: { ...heads, gradOut: tensor([2, 2, size, 8]) },
    bias: { shape: [2, 2, size, keys], bias },
    linear: { input: tensor([2, size, 16]), weight: tensor([24, 16]), bias: tensor([24]) },
    multihead: {
      query: tensor([2, size, 16]),
      key: tensor([2, keys, 16]),
      value: tensor([2, keys, 16]),
      heads: 2,
      inProjWeight: tensor([48, 16]),
      outProjWeight: tensor([16, 16]),
      bias,
    },
    router,
    routerBackward: { ...router, gradOut: tensor([2, size, 3]) },
    project: {
      referencePoints: tensor([2, size, 3], 0, 1),
      pointCloudRange: [-50, -50, -5, 50, 50, 3],
      lidar2img: tensor([2, 3, 4, 4]),
      imageShape: [256, 704],
      featureShape: [16, 44],
      bevShape: [180, 180],
    },
    deformable,
    deformableBackward: { ...deformable, gradOut: tensor([2, size, 16]) },
    toDevice: tensor([size, 100]),
  };
};
