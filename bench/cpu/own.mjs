// How this package does each kind of case.
import { createRequire } from 'node:module';
import { fromBfloat16, sizeOf } from '../cases.mjs';

const require = createRequire(import.meta.url);
const { gradientsWithPath } = require('../../dist/gradients.js');

const kinds = {
  attention,
  'attention-backward': attentionBackward,
  multihead,
  bias: dense,
  deformable,
  'deformable-backward': deformableBackward,
};

/**
 * A promise of { run, values, outputBytes } of a case on a device: run() gives milliseconds, values() the last output as a
 * Float32Array, outputBytes what of it run() allocates itself. `given`, `bias`: the tensors by name, and the terms with theirs.
 */
export const prepareOwn = async (device, item, given, bias) => kinds[item.kind](device, item, given, bias);

async function timed(call) {
  const start = performance.now();
  await call();
  return performance.now() - start;
}

function attention(device, { shape: [b, h, q, , d], precision }, { query, key, value }, bias) {
  const out = device.tensor([b, h, q, d]);
  const lse = device.tensor([b, h, q]);
  out.data.fill(1); // mapped before the clock starts
  lse.data.fill(1);
  return {
    run: () => timed(() => device.attention({ query, key, value, bias, precision, out, lse })),
    values: () => out.data,
    outputBytes: 0,
  };
}

/** One after the other. */
function joined(tensors) {
  const all = new Float32Array(tensors.reduce((sum, { data }) => sum + data.length, 0));
  let at = 0;
  for (const { data } of tensors) {
    all.set(data, at);
    at += data.length;
  }
  return all;
}

/** The forward's results are at hand, as in training. Its outputs are new memory each time, as PyTorch's are. */
async function attentionBackward(device, item, given, bias) {
  const { query, key, value, gradOut } = given;
  const args = { query, key, value, bias };
  const { out, lse } = await device.attention(args);
  let grads;
  return {
    run() {
      grads?.dispose();
      return timed(async () => (grads = await device.attentionBackward({ ...args, gradOut, out, lse })));
    },
    values: () => joined(gradientsWithPath(grads).map(([, tensor]) => tensor)),
    outputBytes: 4 * sizeOf(item.shape),
  };
}

function deformable(device, { shape, levels }, given) {
  const { value, samplingLocations, attentionWeights } = given;
  const args = { value, samplingLocations, attentionWeights, spatialShapes: levels };
  const out = device.tensor(shape);
  out.data.fill(1);
  return {
    run: () => timed(() => device.deformable({ ...args, out })),
    values: () => out.data,
    outputBytes: 0,
  };
}

/** Its outputs are new memory each time, as PyTorch's are. */
function deformableBackward(device, { shape, levels }, given) {
  let grads = {};
  return {
    run() {
      for (const grad of Object.values(grads)) grad.dispose();
      return timed(
        async () => (grads = await device.deformableBackward({ ...given, spatialShapes: levels })),
      );
    },
    values: () => joined([grads.value, grads.samplingLocations, grads.attentionWeights]),
    outputBytes: 4 * sizeOf(shape),
  };
}

function multihead(device, { shape: [b, h, q, , d] }, given, bias) {
  const { query, key, value, keyPos, inProjWeight, inProjBias, outProjWeight, outProjBias } = given;
  const weights = { inProjWeight, inProjBias, outProjWeight, outProjBias };
  const out = device.tensor([b, q, h * d]);
  out.data.fill(1);
  const args = { query, key, value, keyPos, heads: h, ...weights, bias, identity: true, out };
  return { run: () => timed(() => device.multihead(args)), values: () => out.data, outputBytes: 0 };
}

function dense(device, { shape, dtype, fresh }, _, bias) {
  let out;
  if (!fresh) {
    out = device.tensor(shape, { dtype });
    out.data.fill(1);
  }
  return {
    async run() {
      if (!fresh) return timed(() => device.bias({ shape, bias, dtype, out }));
      out?.dispose();
      return timed(async () => (out = await device.bias({ shape, bias, dtype })));
    },
    values: () => (dtype === 'bfloat16' ? fromBfloat16(out.data) : out.data),
    outputBytes: fresh ? sizeOf(shape) * (dtype === 'bfloat16' ? 2 : 4) : 0,
  };
}
