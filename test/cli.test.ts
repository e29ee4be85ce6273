/** The command line as a process: usage, exit codes, doctor, smoke. What `run` and `frame` do is tested with them. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Diagnosis } from '../lib/cli/doctor.js';
import type { SmokeRow } from '../lib/cli/smoke.js';

const root = join(__dirname, '..');
const command = join(root, 'dist/cli/main.js');

function cli(args: readonly string[], options: { env?: NodeJS.ProcessEnv; command?: string } = {}) {
  const env = { ...process.env, ...options.env };
  return spawnSync(process.execPath, [options.command ?? command, ...args], { encoding: 'utf8', env });
}

test('--help lists the commands, and each has its own', () => {
  const { status, stdout } = cli(['--help']);
  expect(status).toBe(0);
  for (const name of ['run', 'frame', 'demo', 'report', 'smoke', 'doctor', 'completion']) {
    expect(stdout).toContain(`attention-bias ${name}`);
    expect(cli([name, '--help'])).toMatchObject({
      status: 0,
      stdout: expect.stringContaining(name) as string,
    });
  }
});

test.each<[string[], RegExp]>([
  [[], /expected a command/],
  [['rum'], /Did you mean run\?/],
  [['run'], /need at least 1/],
  [['run', 'job.json'], /Missing required argument: out/],
  [['run', 'job.json', '--out'], /Not enough arguments following: out/],
  [['run', 'job.json', '--out', 'o', '--device'], /Not enough arguments following: device/],
  [['run', 'job.json', '--out', 'o', '--precision', 'f64'], /Invalid values.*precision/],
  [['run', 'job.json', '--out.x', 'o'], /out/],
  [['run', 'job.json', '--out', 'o', '--bogus', '1'], /Unknown argument: bogus/],
  [['run', '\u001b[31m\u2028.json', '--out', 'o'], /\\u001b\[31m\\u2028\.json/],
])('%j is refused in one line', (args, words) => {
  // Messages are English wherever it runs.
  const { status, stdout, stderr } = cli(args, { env: { LC_ALL: 'de_DE.UTF-8', LANG: 'de_DE.UTF-8' } });
  expect({ status, stdout, lines: stderr.split('\n').length }).toEqual({
    status: args.includes('\u001b[31m\u2028.json') ? 4 : 2,
    stdout: '',
    lines: 2,
  });
  expect(stderr).toMatch(words);
});

test('of an option given twice the last counts', () => {
  expect(cli(['run', 'nowhere.json', '--out', 'a', '--out', 'b'])).toMatchObject({
    status: 4,
    stderr: expect.stringContaining('nowhere.json') as string,
  });
});

test('smoke passes on every instruction set, under 10 s', () => {
  const start = performance.now();
  const { status, stdout } = cli(['smoke', '--json']);
  expect(performance.now() - start).toBeLessThan(10_000);
  const { passed, results } = JSON.parse(stdout) as { passed: boolean; results: SmokeRow[] };
  expect({ status, passed }).toEqual({ status: 0, passed: true });
  const diagnosis = JSON.parse(cli(['doctor', '--json']).stdout) as Diagnosis;
  for (const level of diagnosis.isas!.flatMap((isa) => [`${isa} f32`, `${isa} bf16`])) {
    const names = results
      .filter(({ device }) => device === `cpu ${level}`)
      .map(({ name }) => name.split(' ')[0]);
    expect(new Set(names)).toEqual(
      new Set([
        'attention',
        'attentionBackward',
        'bias',
        'linear',
        'multihead',
        'router',
        'routerBackward',
        'project',
        'deformable',
        'deformable-backward',
      ]),
    );
  }
  expect(cli(['smoke'])).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/ passed, 0 failed\n$/) as string,
  });
});

describe('doctor', () => {
  test('tells what this machine is', () => {
    const { status, stdout } = cli(['doctor', '--json'], { env: { ATTENTION_BIAS_THREADS: '1' } });
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      node: process.version,
      threads: 1,
      failures: [],
      cuda: { built: expect.any(Boolean) as boolean, reason: expect.any(String) as string },
    });
    expect(cli(['doctor']).stdout).toMatch(/^package .*\nsystem .*\naddon .*\nprocessor .*\nCPU .*\nCUDA /);
  });

  test('says what is wrong, and how to mend it, where the addon is not built', () => {
    const folder = mkdtempSync(join(tmpdir(), 'attention-bias-cli-'));
    try {
      cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true });
      cpSync(join(root, 'package.json'), join(folder, 'package.json'));
      symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
      const elsewhere = join(folder, 'dist/cli/main.js');
      const { status, stdout } = cli(['doctor'], { command: elsewhere });
      expect(status).toBe(3);
      expect(stdout).toMatch(
        /addon +FAILED: the native addon was not built .* Run: node ".*scripts\/install\.js"/,
      );
      expect(cli(['smoke'], { command: elsewhere })).toMatchObject({
        status: 3,
        stdout: '',
        stderr: expect.stringMatching(/^attention-bias: the native addon was not built.*\n$/) as string,
      });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
