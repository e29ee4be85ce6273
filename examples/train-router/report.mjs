// What the router learned, in numbers.
import { LOST } from './samples.mjs';

const mean = (values) => (values.length === 0 ? null : values.reduce((a, b) => a + b, 0) / values.length);

/** Queries by what the failure took from them. */
const GROUPS = {
  lidarLost: ({ lidar, camera }) => lidar < LOST && camera >= LOST,
  cameraLost: ({ lidar, camera }) => camera < LOST && lidar >= LOST,
  others: ({ lidar, camera }) => lidar >= LOST && camera >= LOST,
};

/**
 * Losses and mean weights under one failure.
 *
 * @param runs { sample, fixed, trained }, the last two with the errors and the weights of each query
 */
export function summarise(failure, runs) {
  const queries = runs.flatMap(({ sample, fixed, trained }) =>
    sample.shares.map((share, q) => {
      const of = ({ errors, weights }) => ({
        error: errors[q],
        lidar: weights[q],
        camera: weights[weights.length / 2 + q],
      });
      return { share, scored: sample.scored[q] === 1, fixed: of(fixed), trained: of(trained) };
    }),
  );
  const scored = queries.filter((query) => query.scored);
  const loss = Object.fromEntries(
    ['fixed', 'trained'].map((which) => [which, mean(scored.map((query) => query[which].error))]),
  );
  const groups = Object.fromEntries(
    Object.entries(GROUPS).map(([name, belongs]) => {
      const members = queries.filter(({ share }) => belongs(share));
      const weight = (sensor) => ({
        fixed: mean(members.map(({ fixed }) => fixed[sensor])),
        trained: mean(members.map(({ trained }) => trained[sensor])),
      });
      return [name, { queries: members.length, lidar: weight('lidar'), camera: weight('camera') }];
    }),
  );
  return {
    failure,
    queries: queries.length,
    scored: scored.length,
    loss: { ...loss, ratio: loss.fixed / loss.trained },
    ...groups,
  };
}

/** The results as lines of text. */
export function table(results) {
  const weights = ({ queries, lidar, camera }) =>
    queries === 0 ? '-' : `${lidar.trained.toFixed(2)} / ${camera.trained.toFixed(2)} (${queries})`;
  const rows = results.map(({ frames, failure, scored, loss, lidarLost, cameraLost, others }) => [
    frames,
    failure,
    scored.toString(),
    loss.fixed.toFixed(4),
    loss.trained.toFixed(4),
    `${loss.ratio.toFixed(1)}x`,
    weights(lidarLost),
    weights(cameraLost),
    weights(others),
  ]);
  const head = [
    'frames',
    'failure',
    'queries',
    'fixed',
    'trained',
    'ratio',
    'LiDAR lost',
    'camera lost',
    'others',
  ];
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)));
  const line = (row) =>
    row
      .map((text, i) => text.padEnd(widths[i]))
      .join('  ')
      .trimEnd();
  const fixed = results[0].others.lidar.fixed ?? results[0].lidarLost.lidar.fixed;
  return [
    'Mean squared error with the fixed bias and with the trained router; then its mean LiDAR / camera weight (queries) by what',
    `the failure took from a query. The fixed weights are ${fixed.toFixed(4)} / ${fixed.toFixed(4)}.`,
    line(head),
    ...rows.map(line),
  ].join('\n');
}
