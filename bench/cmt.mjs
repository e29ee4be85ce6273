// Attention at the CMT shape (1×8×900×56,400×32, float32) with the two-segment modality bias, on the CPU: what the peers
// in bench/peers do too. Prints one JSON line: medians in milliseconds, and the memory beyond inputs and outputs.
//
//   node bench/cmt.mjs [--threads 2] [--runs 7]
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { open } from 'attention-bias';

const { values } = parseArgs({
  options: { threads: { type: 'string', default: '2' }, runs: { type: 'string', default: '7' } },
});
const [heads, queries, keys, dim, lidarKeys] = [8, 900, 56_400, 32, 32_400];
const device = await open({ device: 'cpu', threads: Number(values.threads) });

/** Roughly normal numbers; any will do. */
function fill(shape) {
  const tensor = device.tensor(shape);
  for (let i = 0; i < tensor.size; ++i) tensor.data[i] = Math.random() + Math.random() + Math.random() - 1.5;
  return tensor;
}

function weights() {
  const tensor = device.tensor([1, queries]);
  tensor.data.forEach((_, i) => (tensor.data[i] = Math.random()));
  return tensor;
}

const peakBytes = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;

const query = fill([1, heads, queries, dim]);
const [key, value] = [fill([1, heads, keys, dim]), fill([1, heads, keys, dim])];
const [out, lse] = [fill([1, heads, queries, dim]), fill([1, heads, queries])];
const bias = [
  {
    type: 'modality',
    segments: [
      { start: 0, length: lidarKeys, weights: weights() },
      { start: lidarKeys, length: keys - lidarKeys, weights: weights() },
    ],
  },
];

const before = process.memoryUsage().rss;
const times = [];
for (let i = 0; i <= Number(values.runs); ++i) {
  const start = performance.now();
  await device.attention({ query, key, value, bias, out, lse });
  times.push(performance.now() - start);
}
const sorted = times.slice(1).sort((a, b) => a - b); // the first is the warm-up
console.log(
  JSON.stringify({
    name: `attention-bias on ${device.info.isa}`,
    processor: device.info.name,
    threads: device.info.threads,
    attention_ms: sorted[Math.floor(sorted.length / 2)],
    extra_mib: (peakBytes() - before) / 2 ** 20,
  }),
);
device.close();
