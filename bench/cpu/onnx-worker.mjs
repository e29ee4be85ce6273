// ONNX Runtime as a participant: its MultiHeadAttention (com.microsoft) with the bias as attention_bias, in a model of one
// node that is written here.
import { createRequire } from 'node:module';
import { openInputs } from './inputs.mjs';
import { serve } from './serve.mjs';

const require = createRequire(import.meta.url);
const FLOAT = 1; // TensorProto.DataType
const INT_ATTRIBUTE = 2; // AttributeProto.AttributeType

/** The part of onnx.proto that such a model needs, by field number. */
const field = (id, type, repeated = false) => ({ id, type, ...(repeated && { rule: 'repeated' }) });
const schema = {
  Opset: { domain: field(1, 'string'), version: field(2, 'int64') },
  Attribute: { name: field(1, 'string'), i: field(3, 'int64'), type: field(20, 'int32') },
  Dimension: { value: field(1, 'int64') },
  Shape: { dim: field(1, 'Dimension', true) },
  Tensor: { elemType: field(1, 'int32'), shape: field(2, 'Shape') },
  Type: { tensor: field(1, 'Tensor') },
  Value: { name: field(1, 'string'), type: field(2, 'Type') },
  Node: {
    input: field(1, 'string', true),
    output: field(2, 'string', true),
    opType: field(4, 'string'),
    attribute: field(5, 'Attribute', true),
    domain: field(7, 'string'),
  },
  Graph: {
    node: field(1, 'Node', true),
    name: field(2, 'string'),
    input: field(11, 'Value', true),
    output: field(12, 'Value', true),
  },
  Model: { irVersion: field(1, 'int64'), graph: field(7, 'Graph'), opset: field(8, 'Opset', true) },
};

function modelBytes(protobuf, heads, shapes) {
  const nested = Object.fromEntries(Object.entries(schema).map(([name, fields]) => [name, { fields }]));
  const Model = protobuf.Root.fromJSON({ nested }).lookupType('Model');
  const value = (name) => ({
    name,
    type: { tensor: { elemType: FLOAT, shape: { dim: shapes[name].map((size) => ({ value: size })) } } },
  });
  const node = {
    // Between value and attention_bias: bias and key_padding_mask, left out.
    input: ['query', 'key', 'value', '', '', 'attention_bias'],
    output: ['out'],
    opType: 'MultiHeadAttention',
    attribute: [{ name: 'num_heads', i: heads, type: INT_ATTRIBUTE }],
    domain: 'com.microsoft',
  };
  const model = {
    irVersion: 8,
    opset: [
      { domain: '', version: 17 },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: 'attention',
      node: [node],
      input: ['query', 'key', 'value', 'attention_bias'].map(value),
      output: [value('out')],
    },
  };
  return Model.encode(Model.fromObject(model)).finish();
}

/** [B, H, N, D] as [B, N, H·D], or back. */
function swapHeads(data, [b, h, n, d], back = false) {
  const swapped = new Float32Array(data.length);
  for (let row = 0; row < b * h * n; ++row) {
    const [batch, head, token] = [Math.floor(row / (h * n)), Math.floor(row / n) % h, row % n];
    const other = ((batch * n + token) * h + head) * d;
    const [to, from] = back ? [row * d, other] : [other, row * d];
    swapped.set(data.subarray(from, from + d), to);
  }
  return swapped;
}

function load(name) {
  try {
    return require(name);
  } catch {
    throw new Error(`${name} is not installed`);
  }
}

await serve(async ({ case: item, inputs, threads }) => {
  const [ort, protobuf] = [load('onnxruntime-node'), load('protobufjs')];
  const { open } = require('../../dist/index.js');
  const [b, h, q, k, d] = item.shape;
  const { given, bias } = await openInputs(inputs, item);
  const device = await open({ device: 'cpu', threads });
  const mask = (await device.bias({ shape: [1, 1, q, k], bias })).data.slice();
  device.close();
  const shapes = {
    query: [b, q, h * d],
    key: [b, k, h * d],
    value: [b, k, h * d],
    attention_bias: [1, 1, q, k],
    out: [b, q, h * d],
  };
  const feeds = { attention_bias: new ort.Tensor('float32', mask, shapes.attention_bias) };
  for (const name of ['query', 'key', 'value']) {
    const { data, shape } = given[name];
    feeds[name] = new ort.Tensor('float32', swapHeads(data, shape), shapes[name]);
  }
  const session = await ort.InferenceSession.create(modelBytes(protobuf, h, shapes), {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    extra: { session: { 'intra_op.allow_spinning': '0' } },
  });
  let out;
  return {
    version: ort.env.versions?.node,
    async run() {
      const start = performance.now();
      ({ out } = await session.run(feeds));
      return performance.now() - start;
    },
    values: () => swapHeads(out.data, [b, h, q, d], true),
    outputBytes: 4 * b * q * h * d,
    release: () => session.release(),
  };
});
