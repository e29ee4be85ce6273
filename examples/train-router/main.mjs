// Trains an adaptive query router in Node.js, by attentionBackward, routerBackward and Adam alone: which sensor does each
// query trust when one fails? docs/training.md has the story and the table. Built package needed (npm run build).
//
//   node examples/train-router/main.mjs [--frame FRAME.json] [--json] [--out DIR] [--steps N] [--quick] [--seed N]
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { open } from 'attention-bias';
import { freshAqrRouter } from 'attention-bias/presets';

import { FAILURES } from './failures.mjs';
import { weightsPicture } from './picture.mjs';
import { summarise, table } from './report.mjs';
import { featureScale, FEATURES, makeSample, placeProposals, standardise } from './samples.mjs';
import { readScene, syntheticScenes } from './scenes.mjs';
import { evaluate, makeBatch, train } from './training.mjs';

const { values: options } = parseArgs({
  options: {
    frame: { type: 'string' }, // a real frame, held out too
    json: { type: 'boolean', default: false },
    out: { type: 'string', default: join('out', 'train-router') },
    steps: { type: 'string' },
    quick: { type: 'boolean', default: false }, // fewer scenes, queries and steps
    seed: { type: 'string', default: '1' },
  },
});
const integer = (name, text, least) => {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least) return value;
  throw new RangeError(`expected an integer of at least ${least} for --${name} but received ${text}`);
};
const seed = integer('seed', options.seed, 0);
const size = options.quick
  ? { training: 3, heldOut: 2, variants: 1, queries: 100, steps: 100 }
  : { training: 6, heldOut: 3, variants: 2, queries: 200, steps: 200 };
if (options.steps !== undefined) size.steps = integer('steps', options.steps, 1);

const started = performance.now();
const say = (text) => process.stderr.write(`${text}\n`);
const device = await open({ device: 'cpu' });

// Scenes that train the router, scenes that it never sees, and the failures of each.
const seeds = (first, count) => Array.from({ length: count }, (_, i) => first + i);
const scenes = {
  training: await syntheticScenes(seeds(1000 * seed, size.training)),
  'held-out scenes': await syntheticScenes(seeds(1000 * seed + 500, size.heldOut)),
};
if (options.frame !== undefined) scenes['--frame'] = [await readScene(options.frame, 'the frame given')];

/** By failure: samples of all scenes, in as many variants (which sector, which camera). */
async function samplesOf(list, first) {
  const samples = Object.fromEntries(Object.keys(FAILURES).map((failure) => [failure, []]));
  for (const [i, scene] of list.entries()) {
    const proposals = await placeProposals(device, scene, size.queries, first + i);
    Object.keys(FAILURES).forEach((failure, f) => {
      for (let v = 0; v < size.variants; ++v) {
        const own = first + 97 * (i + list.length * (f + Object.keys(FAILURES).length * v));
        samples[failure].push(makeSample(scene, proposals, failure, size.queries, own));
      }
    });
  }
  return samples;
}
const samples = {};
for (const [i, [name, list]] of Object.entries(scenes).entries()) {
  samples[name] = await samplesOf(list, 1e6 * (seed + 1) + 1e4 * i);
}
const scale = featureScale(Object.values(samples.training).flat());
for (const sample of Object.values(samples).flatMap((byFailure) => Object.values(byFailure).flat())) {
  standardise(sample, scale);
}
const prepared = performance.now();

const losses = [];
const router = await train(device, samples.training, { steps: size.steps, seed }, (i, loss) => {
  losses.push(loss);
  if (i % 50 === 0 || i === 10 || i === 25 || i === size.steps - 1) say(`step ${i}: loss ${loss.toFixed(4)}`);
});
const trained = performance.now();

// The fixed bias is the fresh router's: 0.8176 for both sensors of every query.
const routers = { fixed: freshAqrRouter(FEATURES.length), trained: router };
const results = [];
const pictured = [];
for (const [name, byFailure] of Object.entries(samples).slice(1)) {
  const batch = makeBatch(device, byFailure.none, 1);
  for (const [failure, list] of Object.entries(byFailure)) {
    const runs = [];
    for (const sample of list) {
      const run = { sample };
      for (const [which, of] of Object.entries(routers))
        run[which] = await evaluate(device, of, batch, sample);
      runs.push(run);
    }
    results.push({ frames: name, ...summarise(failure, runs) });
    // The picture is of the real frame, where there is one.
    if (failure !== 'none' && name === (options.frame === undefined ? 'held-out scenes' : '--frame')) {
      pictured.push({ failure, ...runs[0] });
    }
  }
}
await mkdir(options.out, { recursive: true });
const picture = join(options.out, 'weights.png');
await writeFile(picture, await weightsPicture(pictured));

const round = (value) => Number(value.toPrecision(6));
const summary = {
  device: device.info,
  settings: { ...size, seed },
  router: {
    features: FEATURES.map((name, e) => ({
      name,
      mean: round(scale[e].mean),
      deviation: round(scale[e].deviation),
    })),
    // rows: LiDAR, camera
    weight: [0, 1].map((m) => [
      ...router.weight.data.subarray(m * FEATURES.length, (m + 1) * FEATURES.length),
    ]),
    bias: [...router.bias.data],
  },
  loss: { first: losses[0], last: losses.at(-1) },
  results,
  seconds: {
    scenes: round((prepared - started) / 1000),
    training: round((trained - prepared) / 1000),
    total: round((performance.now() - started) / 1000),
  },
  picture,
};
device.close();
say(`\n${table(results)}`);
say(
  `${size.steps} steps in ${summary.seconds.training.toFixed(1)} s, ${summary.seconds.total.toFixed(1)} s in all; ${picture}`,
);
if (options.json) process.stdout.write(`${JSON.stringify(summary, null, 1)}\n`);
