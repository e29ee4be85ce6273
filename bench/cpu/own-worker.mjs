// This package as a participant; ATTENTION_BIAS_ISA picks the instruction set.
import { createRequire } from 'node:module';
import { fromBfloat16, sizeOf } from '../cases.mjs';
import { openInputs } from './inputs.mjs';
import { serve } from './serve.mjs';

const require = createRequire(import.meta.url);
const { open } = require('../../dist/index.js');

const kinds = { attention, multihead, bias: dense };

await serve(async ({ case: item, inputs, threads }) => {
  const device = await open({ device: 'cpu', threads });
  try {
    const { given, bias } = await openInputs(inputs, item);
    const kinds = {
      attention,
      multihead,
      bias: dense,
      deformable,
      'deformable-backward': deformableBackward,
    };
    const { run, values, outputBytes } = kinds[item.kind](device, item, given, bias);
    return { version: device.info.isa, run, values, outputBytes, release: () => device.close() };
  } catch (error) {
    device.close();
    throw error;
  }
});

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
    values() {
      const all = new Float32Array(sizeOf(shape));
      let at = 0;
      for (const { data } of [grads.value, grads.samplingLocations, grads.attentionWeights]) {
        all.set(data, at);
        at += data.length;
      }
      return all;
    },
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
