// examples/train-router as a user runs it, with few scenes and steps: the router learns which sensor to trust.
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

interface Weights {
  queries: number;
  lidar: { fixed: number; trained: number };
  camera: { fixed: number; trained: number };
}
interface Result {
  failure: string;
  loss: { fixed: number; trained: number; ratio: number };
  lidarLost: Weights;
  cameraLost: Weights;
  others: Weights;
}
interface Summary {
  loss: { first: number; last: number };
  results: Result[];
  picture: string;
}

const out = mkdtempSync(join(tmpdir(), 'train-router-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const run = (...args: string[]): Promise<{ error: Error | null; stdout: string; stderr: string }> =>
  new Promise((resolve) => {
    execFile(
      process.execPath,
      [join('examples', 'train-router', 'main.mjs'), ...args],
      { cwd: join(__dirname, '..') },
      (error, stdout, stderr) => resolve({ error, stdout, stderr }),
    );
  });

const quick = ['--quick', '--steps', '60'];
let text: string;
let summary: Summary;
beforeAll(async () => {
  const { error, stdout, stderr } = await run(...quick, '--json', '--out', out);
  expect(error).toBeNull();
  text = stderr;
  summary = JSON.parse(stdout) as Summary;
}, 120_000);

/** How far w_lidar − w_camera moved: above 0 to LiDAR. */
const move = ({ lidar, camera }: Weights): number =>
  lidar.trained - camera.trained - (lidar.fixed - camera.fixed);

const FAILURES = ['LiDAR sector', 'LiDAR off', 'beams 32 to 4', 'camera off', 'fog'];
const of = (failure: string): Result => {
  const found = summary.results.find((result) => result.failure === failure);
  if (!found) throw new Error(`no result of ${failure}`);
  return found;
};

test('the loss on scenes that were held out falls to a tenth or less under every failure', () => {
  expect(summary.results.map(({ failure }) => failure)).toEqual(['none', ...FAILURES]);
  expect(summary.loss.last).toBeLessThan(summary.loss.first / 10);
  for (const failure of FAILURES) {
    const { loss } = of(failure);
    expect({ failure, ratio: loss.ratio }).toEqual({ failure, ratio: loss.fixed / loss.trained });
    expect({ failure, enough: loss.ratio >= 10, loss }).toEqual({ failure, enough: true, loss });
  }
});

test('where no sensor fails, neither the loss nor the weights go far', () => {
  const { loss, others } = of('none');
  expect(loss.trained).toBeLessThan(0.01); // of codes whose mean square is 1
  expect(Math.abs(move(others))).toBeLessThan(0.2);
});

test.each(['LiDAR sector', 'LiDAR off', 'beams 32 to 4'])(
  '%s: queries that lost LiDAR go to the cameras',
  (failure) => {
    const { lidarLost, cameraLost } = of(failure);
    expect(lidarLost.queries).toBeGreaterThan(20);
    expect(cameraLost.queries).toBe(0);
    expect(lidarLost.lidar.trained).toBeLessThan(lidarLost.lidar.fixed - 0.15);
    expect(lidarLost.camera.trained).toBeGreaterThan(lidarLost.camera.fixed + 0.05);
  },
);

test.each(['camera off', 'fog'])('%s: queries that lost their camera go to LiDAR', (failure) => {
  const { lidarLost, cameraLost } = of(failure);
  expect(cameraLost.queries).toBeGreaterThan(10);
  expect(lidarLost.queries).toBe(0);
  expect(cameraLost.camera.trained).toBeLessThan(cameraLost.camera.fixed - 0.15);
  expect(cameraLost.lidar.trained).toBeGreaterThan(cameraLost.lidar.fixed + 0.05);
});

test.each([
  ['LiDAR sector', 'lidarLost'],
  ['camera off', 'cameraLost'],
] as const)('%s: the others move less than half as far', (failure, group) => {
  const result = of(failure);
  expect(result.others.queries).toBeGreaterThan(100);
  expect(Math.abs(move(result.others))).toBeLessThan(Math.abs(move(result[group])) / 2);
});

test('the weights before training are those of the fixed bias', () => {
  for (const { others } of summary.results.filter((result) => result.others.queries > 0)) {
    expect(others.lidar.fixed).toBeCloseTo(1 / (1 + Math.exp(-1.5)), 6);
    expect(others.camera.fixed).toBeCloseTo(1 / (1 + Math.exp(-1.5)), 6);
  }
});

test('a picture is drawn', () => {
  expect(summary.picture).toBe(join(out, 'weights.png'));
  const png = readFileSync(summary.picture);
  expect(png.subarray(0, 8)).toEqual(Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'));
  expect(png.length).toBeGreaterThan(100_000);
});

test('without --json stdout is empty, and a second run says the same', async () => {
  const again = await run(...quick, '--out', out);
  expect(again.error).toBeNull();
  expect(again.stdout).toBe('');
  const timeless = (words: string): string => words.replace(/^60 steps in .*$/m, '');
  expect(timeless(text)).toContain('held-out scenes');
  expect(timeless(again.stderr)).toBe(timeless(text));
}, 120_000);
