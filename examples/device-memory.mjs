// A stack that never leaves the GPU: router, attention and a second attention on the first one's result. What is uploaded
// once is used again; only the last result comes back. On a machine without a GPU the same program runs on the CPU, where
// device memory is the host's.
//
//   node examples/device-memory.mjs
import { open } from 'attention-bias';

const device = await open();
const random = (shape) => {
  const tensor = device.tensor(shape, { memory: 'pinned' }); // host memory that a GPU copies by itself
  for (let i = 0; i < tensor.size; ++i) tensor.data[i] = Math.random() - 0.5;
  return tensor;
};
const upload = async (shape) => {
  const host = random(shape);
  const copy = await device.toDevice(host);
  host.dispose();
  return copy;
};

const [heads, queries, keys, headDim] = [8, 100, 5000, 32];
const key = await upload([1, heads, keys, headDim]);
const value = await upload([1, heads, keys, headDim]);
const router = { weight: await upload([2, 64]), bias: await upload([2]) };

for (let frame = 0; frame < 3; ++frame) {
  const query = await upload([1, heads, queries, headDim]);
  const features = await upload([1, queries, 64]);
  const weights = await device.router({ features, ...router, outputsFirst: true }); // [2, 1, queries]
  const bias = [
    {
      type: 'modality',
      segments: [
        { start: 0, length: 3000, weights: weights.at(0) },
        { start: 3000, length: 2000, weights: weights.at(1) },
      ],
    },
  ];
  const first = await device.attention({ query, key, value, bias }); // in device memory, as its query is
  const second = await device.attention({ query: first.out, key, value, bias });
  const out = await device.toHost(second.out);
  console.log(JSON.stringify({ frame, shape: out.shape, finite: out.data.every(Number.isFinite) }));
  // The pool keeps the memory for the next frame. TypeScript and later versions of Node have `using` for this.
  const made = [query, features, weights, first.out, first.lse, second.out, second.lse, out];
  for (const tensor of made) tensor.dispose();
}
console.error(`${device.info.name}: ${device.memory().usedBytes} bytes in use`);
device.close();
