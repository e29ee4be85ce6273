// What the soak computes: one case for every operation, small, with inputs that are the same wherever they are made, and what
// the float64 reference says of those that it has.
'use strict';
const assert = require('node:assert');
const { mkdir } = require('node:fs/promises');
const { join } = require('node:path');
const {
  openSafetensors,
  readNpy,
  readNpz,
  writeNpy,
  writeNpz,
  writeSafetensors,
} = require('../../dist/formats/index.js');
const { gradientsWithPath } = require('../../dist/gradients.js');
const { GRADIENT_TOLERANCES, TOLERANCES } = require('../../dist/conformance.js');
const { DEFORMABLE_TOLERANCE } = require('../../dist/compare.js');
const { normalFrom, randomSource } = require('../../dist/random.js');
const reference = require('../../dist/reference.js');

/** ‖got − want‖ / ‖want‖; NaN where they are not of one length or not finite. */
function relativeError(got, want) {
  if (got.length !== want.length) return NaN;
  let [difference, norm] = [0, 0];
  for (let i = 0; i < want.length; ++i) {
    difference += (got[i] - want[i]) ** 2;
    norm += want[i] ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** The cases: { run(device, options): tensors by name, args, want?: { values by name, tolerance } }. */
exports.soakCases = () => {
  const random = randomSource(20);
  const tensor = (shape, next = () => normalFrom(random)) => ({
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, next),
    shape,
  });
  const weights = (queries) => tensor([1, queries], random);
  const inputs = ([b, h, q, k], dim = 16) => ({
    query: tensor([b, h, q, dim]),
    key: tensor([b, h, k, dim]),
    value: tensor([b, h, k, dim]),
  });
  /** Over 8×8 cells of a bird's-eye view and two cameras of 4×8. */
  const aqr = (queries) => {
    const segments = [
      { start: 0, length: 64, weights: weights(queries) },
      { start: 64, length: 64, weights: weights(queries) },
    ];
    const bev = tensor([1, queries, 2], () => Math.floor(8 * random()));
    const camera = tensor([1, queries, 3], (_, i) => Math.floor([2, 4, 8][i % 3] * random()));
    const places = [
      { start: 0, grid: [8, 8], centers: bev, radius: 2.5, weights: segments[0].weights },
      { start: 64, grid: [2, 4, 8], centers: camera, radius: 2.5, weights: segments[1].weights },
    ];
    return [
      { type: 'modality', segments },
      { type: 'spatial', segments: places },
    ];
  };
  const windows = (queries) => {
    const centers = tensor([1, queries, 2], () => Math.floor(20 * random()));
    return [{ type: 'window', segments: [{ start: 0, grid: [20, 20], centers, size: 3 }] }];
  };
  const swin = (heads) => [
    { type: 'relativePosition', window: [4, 4], table: tensor([49, heads]) },
    { type: 'shiftedWindow', resolution: [8, 8], window: [4, 4], shift: [2, 2] },
  ];
  const alibi = [
    { type: 'alibi', slopes: { data: Float32Array.of(0.5, 0.25), shape: [2] } },
    { type: 'causal' },
  ];
  const attention = (shape, bias, precision = 'f32') => {
    const args = { ...inputs(shape), bias };
    const { out, lse } = reference.referenceAttention(args);
    return {
      args: { ...args, precision },
      run: (device, given) => device.attention(given),
      want: { values: { out, lse }, tolerance: TOLERANCES[precision] },
    };
  };
  const backward = (shape, bias) => {
    const args = { ...inputs(shape), bias };
    args.gradOut = tensor(args.query.shape);
    return {
      args,
      run: async (device, given) =>
        Object.fromEntries(gradientsWithPath(await device.attentionBackward(given))),
      want: { values: reference.referenceBackward(args), tolerance: GRADIENT_TOLERANCES.f32 },
    };
  };
  const one = (method, args, want) => ({
    args,
    run: async (device, given) => ({ out: await device[method](given) }),
    want,
  });
  const biasArgs = { shape: [1, 1, 40, 128], bias: aqr(40) };
  const multiheadArgs = {
    query: tensor([1, 20, 32]),
    key: tensor([1, 128, 32]),
    value: tensor([1, 128, 32]),
    keyPos: tensor([1, 128, 32]),
    heads: 2,
    inProjWeight: tensor([96, 32], () => normalFrom(random) / 6),
    inProjBias: tensor([96]),
    outProjWeight: tensor([32, 32], () => normalFrom(random) / 6),
    bias: aqr(20),
    identity: true,
  };
  const sampled = {
    value: tensor([1, 35, 2, 8]),
    spatialShapes: [
      [4, 5],
      [3, 5],
    ],
    samplingLocations: tensor([1, 12, 2, 2, 3, 2], () => 1.4 * random() - 0.2),
    attentionWeights: tensor([1, 12, 2, 2, 3]),
  };
  const gradOut = tensor([1, 12, 16]);
  const { out: sampledOut, ...sampledGradients } = reference.referenceDeformable({ ...sampled, gradOut });
  const routed = { features: tensor([1, 40, 16]), weight: tensor([2, 16]), bias: tensor([2]) };
  return {
    'attention, AQR': attention([1, 2, 40, 128], aqr(40)),
    'attention, bf16': attention([1, 2, 40, 128], aqr(40), 'bf16'),
    'attention, windows': attention([1, 2, 30, 400], windows(30)),
    'attention, Swin': attention([8, 2, 16, 16], swin(2)),
    'attention, ALiBi': attention([1, 2, 70, 70], alibi),
    'attention, few queries': attention([1, 1, 3, 700], []),
    'backward, AQR': backward([1, 2, 40, 128], aqr(40)),
    'backward, Swin': backward([8, 2, 16, 16], swin(2)),
    bias: one('bias', biasArgs, { values: { out: reference.referenceBias(biasArgs) }, tolerance: 1e-6 }),
    multihead: one('multihead', multiheadArgs, {
      values: { out: reference.referenceMultihead(multiheadArgs) },
      tolerance: GRADIENT_TOLERANCES.f32,
    }),
    deformable: one('deformable', sampled, {
      values: { out: sampledOut },
      tolerance: DEFORMABLE_TOLERANCE,
    }),
    'deformable backward': {
      args: { ...sampled, gradOut, deterministic: true },
      run: async (device, given) => ({ ...(await device.deformableBackward(given)) }),
      want: { values: sampledGradients, tolerance: DEFORMABLE_TOLERANCE },
    },
    // The self-test, with which a run begins, holds these against their formulas.
    linear: one('linear', { input: routed.features, weight: routed.weight, bias: routed.bias }),
    router: one('router', routed),
    'router backward': {
      args: { ...routed, gradOut: tensor([1, 40, 2]) },
      run: async (device, given) => {
        const { features, weight, bias } = await device.routerBackward(given);
        return { features, weight, bias };
      },
    },
    project: {
      args: {
        referencePoints: tensor([1, 40, 3], random),
        pointCloudRange: [-50, -50, -5, 50, 50, 3],
        lidar2img: {
          data: Float32Array.of(800, -1000, 0, 0, 450, 0, -1000, 0, 1, 0, 0, 0, 0, 0, 0, 1),
          shape: [1, 1, 4, 4],
        },
        imageShape: [900, 1600],
        featureShape: [40, 100],
        bevShape: [100, 100],
      },
      run: async (device, given) => ({ ...(await device.project(given)) }),
    },
  };
};

/** The bytes of a case's tensors by name; the tensors are disposed, or else left to the garbage collector. */
exports.bytesOf = async (device, tensors, dispose) => {
  const bytes = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    const host = tensor.memory === 'device' ? await device.toHost(tensor) : tensor;
    const { buffer, byteOffset, byteLength } = host.data;
    bytes[name] = Buffer.from(Buffer.from(buffer, byteOffset, byteLength));
    if (dispose) for (const one of new Set([host, tensor])) one.dispose();
  }
  return bytes;
};

/** Throws where a case's tensors are not what the reference says. */
exports.compareWithReference = (name, { want }, tensors) => {
  for (const [field, values] of Object.entries(want?.values ?? {})) {
    const error = relativeError(tensors[field].data, values);
    assert.ok(
      error <= want.tolerance,
      `expected at most ${want.tolerance} for the error of ${name}, ${field} but received ${error}`,
    );
  }
};

/** Writes tensors to a file of each format, and reads them back: check(what, got, want). */
exports.throughFiles = async (folder, tensors, check) => {
  await mkdir(folder, { recursive: true });
  const [path, npz, npy] = ['a.safetensors', 'a.npz', 'a.npy'].map((name) => join(folder, name));
  await Promise.all([writeSafetensors(path, tensors), writeNpz(npz, tensors)]);
  const file = await openSafetensors(path);
  try {
    const arrays = await readNpz(npz);
    for (const [name, { data }] of Object.entries(tensors)) {
      check(`${name} of safetensors`, (await file.read(name)).data, data);
      check(`${name} of npz`, arrays.get(name).data, data);
    }
  } finally {
    await file.close();
  }
  const [first] = Object.values(tensors);
  await writeNpy(npy, first);
  check('npy', (await readNpy(npy)).data, first.data);
};
