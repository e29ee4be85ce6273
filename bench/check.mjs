// Whether the CPU's kernels are still as fast as they were, for CI: by ratios to the float64 reference of this build and to the
// multiply-add peak of this machine, measured in the same run on one thread; never by absolute times.
//
//   npm run bench:check
//
// Other work on a machine only ever makes a kernel look slower: the fastest of many runs counts, and a case below its floor is
// measured again, reference and peak too. Exit code 1: a case stays below. Processors without AVX2 have no floors, and it
// says so.
import { realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { withTensors } from './cases.mjs';
import { cpuCases } from './cpu/cases.mjs';
import { makeDraw, withoutTerms } from './cpu/inputs.mjs';
import { prepareOwn } from './cpu/own.mjs';

const TRIES = 5;
const TRY_MS = 300; // of runs that a try takes the fastest of

// The reference takes a fraction of a second at these.
const changed = {
  queries: 96,
  bevSide: 60,
  cameraHeight: 20,
  cameraWidth: 20,
  lidarKeys: 3600,
  cameraKeys: 2400,
  keys: 6000,
  swinWindows: 64,
  swinSide: 56,
};

/**
 * The least that each case must reach: how many times as fast as the reference, and of the peak of multiply-adds. Half of what an
 * AMD EPYC (family 25, model 17) reaches on x86-64-v3, the slower of its two levels; of gradients and multihead, less than half of
 * what one of family 26, model 2 reached on either, where the new memory of their results was dear.
 */
export const floors = {
  'cmt modality': { overReference: 12, ofPeak: 0.33 },
  'cmt modality + spatial': { overReference: 11, ofPeak: 0.24 },
  'cmt LAM windows': { overReference: 28 },
  Swin: { overReference: 9, ofPeak: 0.22 },
  'dense modality': { overReference: 20 },
  'cmt modality backward': { overReference: 14 },
  'Swin backward': { overReference: 2 },
  multihead: { overReference: 40, ofPeak: 0.18 },
  'deformable backward': { overReference: 6 },
};

/**
 * What is wrong with a case's times, in words; empty where nothing is.
 *
 * @param ms { own, reference } of one run each, and `peak`, what the multiply-adds alone would take at the peak
 */
export function slow(name, ms) {
  const reached = { overReference: ms.reference / ms.own, ofPeak: ms.peak / ms.own };
  return Object.entries(floors[name])
    .filter(([ratio, floor]) => !(reached[ratio] >= floor))
    .map(([ratio, floor]) => `${name}: ${ratio} is ${reached[ratio].toFixed(3)}, below ${floor}`);
}

/** What the float64 reference does for each kind of case. */
const references = {
  attention: (api, _, args) => api.referenceAttention(args),
  'attention-backward': (api, _, args) => api.referenceBackward(args),
  bias: (api, { shape }, { bias }) => api.referenceBias({ shape, bias }),
  multihead: (api, { shape }, args) => api.referenceMultihead({ ...args, heads: shape[1], identity: true }),
  'deformable-backward': (api, { levels: spatialShapes }, { bias: _, ...args }) =>
    api.referenceDeformable({ ...args, spatialShapes }),
};

/** The fastest of runs for a while, at least one. */
async function fastest(run, forMs) {
  let least = Infinity;
  const end = performance.now() + forMs;
  do {
    const start = performance.now();
    await run();
    least = Math.min(least, performance.now() - start);
  } while (performance.now() < end);
  return least;
}

async function main() {
  const require = createRequire(import.meta.url);
  const { open } = require('../dist/index.js');
  const { native } = require('../dist/native.js');
  const api = require('../dist/reference.js');
  const device = await open({ device: 'cpu', threads: 1 });
  const { isa } = device.info;
  const judged = isa === 'x86-64-v3' || isa === 'x86-64-v4';
  if (!judged) console.log(`${isa} has no floors: nothing is judged`);
  const { cases, tensors } = cpuCases({ changed });
  const judgedCases = cases.filter(({ name }) => floors[name]);
  const draw = makeDraw(judgedCases, tensors);
  const problems = [];
  for (const item of judgedCases) {
    const { name } = item;
    const drawn = draw(item);
    const bias = withTensors(item.bias, drawn);
    const given = withoutTerms(item, drawn);
    const { run: own } = await prepareOwn(device, item, given, bias);
    const reference = () => references[item.kind](api, item, { ...given, bias });
    const flops = floors[name].ofPeak && item.flops;
    await own();
    let ms;
    let wrong;
    for (let i = 0; i < TRIES && (wrong === undefined || wrong.length > 0); ++i) {
      const peak = flops && flops / native().measurePeaks(1, isa).fmaGflops / 1e6;
      ms = { own: await fastest(own, TRY_MS), reference: await fastest(reference, TRY_MS), peak };
      wrong = slow(name, ms);
    }
    const ofPeak = ms.peak === undefined ? '' : `, ${((100 * ms.peak) / ms.own).toFixed(0)} % of the peak`;
    const times = (ms.reference / ms.own).toFixed(1);
    console.log(`${name}, ${isa}: ${ms.own.toFixed(3)} ms, ${times}× the reference's speed${ofPeak}`);
    if (judged) problems.push(...wrong);
  }
  device.close();
  for (const problem of problems) console.error(problem);
  return problems.length > 0 ? 1 : 0;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = await main();
}
