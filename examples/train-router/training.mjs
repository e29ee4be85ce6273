// The router, from features to weights to attention to the loss, and back again: attentionBackward, routerBackward, Adam.
import { Adam } from 'attention-bias';
import { aqrTerms, freshAqrRouter } from 'attention-bias/presets';
import { randomSource } from '../../dist/random.js';

import { BEV_SHAPE, FEATURE_SHAPE, FEATURES, HEAD_DIM, positionKeys, VALUE_DIM } from './samples.mjs';

const RADIUS = { bev: 2, camera: 4 }; // cells, of the spatial term
const LEARNING_RATE = 0.05;

/** The samples of a batch side by side: [B, …] of each tensor. */
class Batch {
  constructor(device, size, queries, views, keys) {
    const rows = positionKeys(views);
    this.views = views;
    this.query = device.tensor([size, 1, queries, HEAD_DIM]);
    this.key = device.tensor([size, 1, keys, HEAD_DIM]);
    for (let b = 0; b < size; ++b) this.key.data.set(rows, b * rows.length); // the same in each
    this.value = device.tensor([size, 1, keys, VALUE_DIM]);
    this.features = device.tensor([size, queries, FEATURES.length]);
    this.bevCenters = device.tensor([size, queries, 2]);
    this.cameraCenters = device.tensor([size, queries, 3]);
    this.target = device.tensor([size, 1, queries, VALUE_DIM]);
    this.scored = device.tensor([size, queries]);
    this.gradOut = device.tensor([size, 1, queries, VALUE_DIM]);
    this.gradWeights = device.tensor([2, size, queries]);
  }

  load(samples) {
    for (const field of ['query', 'value', 'features', 'bevCenters', 'cameraCenters', 'target', 'scored']) {
      const { data } = this[field];
      const part = data.length / samples.length;
      samples.forEach((sample, b) => data.set(sample[field], b * part));
    }
  }
}

export const makeBatch = (device, samples, size) => {
  const [{ query, value, scene }] = samples;
  const keys = value.length / VALUE_DIM;
  return new Batch(device, size, query.length / HEAD_DIM, scene.images.length, keys);
};

/** Router and attention: the weights [2, B, Q], the bias they make, and the output. */
async function forward(device, router, batch) {
  const weights = await device.router({ features: batch.features, ...router, outputsFirst: true });
  const bias = aqrTerms({
    grids: { bev: BEV_SHAPE, cameras: [batch.views, ...FEATURE_SHAPE] },
    lidar: weights.at(0),
    camera: weights.at(1),
    bevCenters: batch.bevCenters,
    cameraCenters: batch.cameraCenters,
    radius: RADIUS,
  }).crossAttention;
  const { query, key, value } = batch;
  const { out, lse } = await device.attention({ query, key, value, bias });
  return { weights, bias, out, lse };
}

/** Squared error of each query, [B·Q]: the mean over its channels. */
function squaredErrors(out, target) {
  const errors = new Float64Array(out.size / VALUE_DIM);
  out.data.forEach((value, i) => {
    errors[Math.floor(i / VALUE_DIM)] += (value - target.data[i]) ** 2 / VALUE_DIM;
  });
  return errors;
}

/** Of one sample: the squared error of each query, and the router's weights [2, Q]. */
export async function evaluate(device, router, batch, sample) {
  batch.load([sample]);
  const { weights, out, lse } = await forward(device, router, batch);
  const result = { errors: squaredErrors(out, batch.target), weights: weights.data.slice() };
  for (const tensor of [weights, out, lse]) tensor.dispose();
  return result;
}

/** One step; returns the loss before it: the mean squared error over the queries that count. */
async function step(device, router, adam, batch) {
  const { weights, bias, out, lse } = await forward(device, router, batch);
  const { query, key, value, target, scored, gradOut, gradWeights, features } = batch;
  const count = scored.data.reduce((a, b) => a + b, 0);
  const loss = squaredErrors(out, target).reduce((sum, error, i) => sum + scored.data[i] * error, 0) / count;

  // Of the loss by the output, …
  gradOut.data.forEach((_, i) => {
    const counts = scored.data[Math.floor(i / VALUE_DIM)];
    gradOut.data[i] = (2 * counts * (out.data[i] - target.data[i])) / (count * VALUE_DIM);
  });
  // … by the weights, which stand in both terms, …
  const gradients = await device.attentionBackward({ query, key, value, bias, gradOut, out, lse });
  [0, 1].forEach((sensor) => {
    const parts = gradients.terms.map(({ segments }) => segments[sensor].weights.data);
    const sum = gradWeights.at(sensor).data;
    sum.forEach((_, i) => (sum[i] = parts[0][i] + parts[1][i]));
  });
  // … and by the router's own numbers.
  const own = await device.routerBackward({
    features,
    ...router,
    gradOut: gradWeights,
    outputsFirst: true,
  });
  adam.step([own.weight, own.bias]);
  for (const tensor of [weights, out, lse, gradients, own]) tensor.dispose();
  return loss;
}

/**
 * Trains a fresh router: each step takes one sample of every kind of failure, drawn at random.
 *
 * @param samples by failure, a list of each
 * @param report called with the step and its loss
 */
export async function train(device, samples, { steps, seed }, report) {
  const router = freshAqrRouter(FEATURES.length);
  const adam = new Adam([router.weight, router.bias], { learningRate: LEARNING_RATE });
  const random = randomSource(seed);
  const kinds = Object.values(samples);
  const batch = makeBatch(device, kinds[0], kinds.length);
  for (let i = 0; i < steps; ++i) {
    batch.load(kinds.map((list) => list[Math.floor(random() * list.length)]));
    report(i, await step(device, router, adam, batch));
  }
  return router;
}
