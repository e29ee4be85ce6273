/** `attention-bias pipeline` as a process, and which part of a run a process takes. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { PipelineSummary } from '../lib/cli/pipeline.js';
import type { Plan } from '../lib/cli/plan.js';
import { duration, perSecond } from '../lib/cli/words.js';
import { partOf } from '../lib/pipeline/part.js';
import { rateOf, type FolderStatus } from '../lib/pipeline/status.js';
import { temporaryFolder } from './formats/temporary.js';
import { digests, writeJobs } from './pipeline-run.js';
import { expectError } from './support.js';

const command = join(__dirname, '../dist/cli/main.js');
/** Nothing of the machine that the tests run on. */
const clean = Object.fromEntries(
  Object.entries(process.env).filter(
    ([name]) => !/^(SLURM_|JOB_|RANK$|WORLD_SIZE$|ATTENTION_BIAS_)/.test(name),
  ),
);
const fast = ['--device', 'cpu', '--threads', '1'];

function cli(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  return spawnSync(process.execPath, [command, 'pipeline', ...args], {
    encoding: 'utf8',
    env: { ...clean, ...env },
  });
}

test("the package's root loads what runs are made of when they begin", () => {
  const script = `
    const api = require(${JSON.stringify(join(__dirname, '../dist/index.js'))});
    const loaded = () => Object.keys(require.cache).some((file) => /[\\\\/](sharp|zod|piscina)[\\\\/]/.test(file));
    const before = loaded();
    api.planRun({ manifest: 'nowhere', out: 'nowhere' }).catch(({ code }) => console.log(before, loaded(), code));
  `;
  expect(spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' }).stdout).toBe(
    'false true ERR_IO\n',
  );
});

describe('the part of a run', () => {
  test.each<[string | undefined, Record<string, string>, [number, number, string | undefined]]>([
    [undefined, {}, [0, 1, undefined]],
    ['3/16', {}, [3, 16, '--shard']],
    ['0/1', { RANK: '1', WORLD_SIZE: '2' }, [0, 1, '--shard']],
    [
      undefined,
      { SLURM_ARRAY_TASK_ID: '5', SLURM_ARRAY_TASK_COUNT: '8', SLURM_ARRAY_TASK_MIN: '1' },
      [4, 8, 'SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT and SLURM_ARRAY_TASK_MIN'],
    ],
    [
      undefined,
      {
        ...{ SLURM_ARRAY_TASK_ID: '12', SLURM_ARRAY_TASK_COUNT: '4', SLURM_ARRAY_TASK_MIN: '0' },
        SLURM_ARRAY_TASK_STEP: '4',
      },
      [3, 4, 'SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT and SLURM_ARRAY_TASK_MIN'],
    ],
    [
      undefined,
      { JOB_COMPLETION_INDEX: '7', ATTENTION_BIAS_SHARD_COUNT: '8' },
      [7, 8, 'JOB_COMPLETION_INDEX and ATTENTION_BIAS_SHARD_COUNT'],
    ],
    [undefined, { RANK: '0', WORLD_SIZE: '4' }, [0, 4, 'RANK and WORLD_SIZE']],
    // One process of torchrun in a pod: the pods divide.
    [
      undefined,
      { JOB_COMPLETION_INDEX: '1', ATTENTION_BIAS_SHARD_COUNT: '2', RANK: '0', WORLD_SIZE: '1' },
      [1, 2, 'JOB_COMPLETION_INDEX and ATTENTION_BIAS_SHARD_COUNT'],
    ],
    [undefined, { RANK: '', JOB_COMPLETION_INDEX: '' }, [0, 1, undefined]],
  ])('%j in %j is %j', (option, env, [index, count, source]) => {
    expect(partOf(option, env)).toEqual({ index, count, source });
  });

  const slurm = { SLURM_ARRAY_TASK_ID: '5', SLURM_ARRAY_TASK_COUNT: '3', SLURM_ARRAY_TASK_MIN: '1' };
  test.each<[string | undefined, Record<string, string>, string]>([
    ['3', {}, 'expected i/n, as in 0/8, for --shard but received "3"'],
    ['-1/3', {}, '--shard'],
    ['1/x', {}, '--shard'],
    ['3/3', {}, 'expected a part from 0 to 2 of 3 for --shard but received 3'],
    ['0/0', {}, 'a number of parts from 1 to 1000000 for --shard but received 0'],
    [undefined, slurm, 'a task of an array without gaps'], // --array=1,5,9
    [undefined, { ...slurm, SLURM_ARRAY_TASK_COUNT: '' }, 'for SLURM_ARRAY_TASK_COUNT but received nothing'],
    [
      undefined,
      { SLURM_ARRAY_TASK_ID: 'x', SLURM_ARRAY_TASK_COUNT: '1', SLURM_ARRAY_TASK_MIN: '0' },
      'received "x"',
    ],
    [undefined, { JOB_COMPLETION_INDEX: '1' }, 'set ATTENTION_BIAS_SHARD_COUNT beside JOB_COMPLETION_INDEX'],
    [undefined, { JOB_COMPLETION_INDEX: '4', ATTENTION_BIAS_SHARD_COUNT: '4' }, 'a part from 0 to 3 of 4'],
    [undefined, { RANK: '1' }, 'for WORLD_SIZE but received nothing'],
    [
      undefined,
      { RANK: '2', WORLD_SIZE: '2' },
      'a part from 0 to 1 of 2 for RANK and WORLD_SIZE but received 2',
    ],
    [
      undefined,
      { JOB_COMPLETION_INDEX: '1', ATTENTION_BIAS_SHARD_COUNT: '2', RANK: '1', WORLD_SIZE: '4' },
      'JOB_COMPLETION_INDEX and ATTENTION_BIAS_SHARD_COUNT (1/2) beside RANK and WORLD_SIZE (1/4): say which with --shard i/n',
    ],
  ])('%j in %j is refused: %s', async (option, env, words) => {
    await expectError(() => partOf(option, env), 'ERR_VALUE', words);
  });
});

test('the rate is that of all processes over the last of their work', () => {
  const every = (ms: number, from: number, count: number) =>
    Array.from({ length: count }, (_, i) => from + i * ms);
  const tail = (times: number[], cut = false) => ({ times, cut });
  expect(rateOf([])).toBeNull();
  expect(rateOf([tail([5])])).toBeNull();
  expect(rateOf([tail(every(100, 0, 101))])).toBeCloseTo(10);
  expect(rateOf([tail(every(100, 0, 101)), tail(every(100, 50, 101))])).toBeCloseTo(20, 0);
  // Yesterday's work says nothing of today's.
  expect(rateOf([tail(every(1, 0, 1000)), tail(every(1000, 86_400_000, 11))])).toBeCloseTo(1);
  // Where one log's end alone was read, the time before is not known.
  expect(rateOf([tail(every(10, 200_000, 1001), true), tail(every(100, 0, 2101))])).toBeCloseTo(110, 0);
});

test.each([
  [0.04, '0.0 s'],
  [9.94, '9.9 s'],
  [59.4, '59 s'],
  [60, '1 min'],
  [119.6, '2 min'],
  [3725, '1 h 2 min'],
  [90_000, '1 d 1 h'],
])('%d seconds are %s', (seconds, words) => expect(duration(seconds)).toBe(words));

test.each([
  [0.267, '0.27/s'],
  [9.94, '9.9/s'],
  [1234.5, '1,235/s'],
])('a rate of %d is %s', (rate, words) => expect(perSecond(rate)).toBe(words));

describe('attention-bias pipeline', () => {
  test('computes a manifest in parts, goes on where it was, and says how far it is', async () => {
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 10);
    const out = folder.file('out');
    const args = [manifest, '--out', out, '--shard-size', '4', ...fast];
    const part = cli([...args, '--json'], { RANK: '1', WORLD_SIZE: '2' });
    expect(part.status).toBe(0);
    expect(JSON.parse(part.stdout)).toMatchObject({
      part: { index: 1, count: 2 },
      shards: { total: 1, computed: 1, finishedBefore: 0 },
      items: { total: 4, failed: 0 },
      device: { backend: 'cpu', threads: 1 },
    } satisfies Partial<Record<keyof PipelineSummary, unknown>>);
    const lines = part.stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { msg: string });
    expect(lines.map(({ msg }) => msg)).toEqual(['part of the run', 'run', 'shard', 'done']);
    expect(lines[0]).toMatchObject({ part: '1/2', source: 'RANK and WORLD_SIZE' });

    const status = JSON.parse(cli(['--out', out, '--status', '--json']).stdout) as FolderStatus;
    expect(status).toMatchObject({
      shards: { total: 3, finished: 1 },
      items: { total: 10, finished: 4, failed: 0 },
      itemsPerSecond: expect.any(Number) as number,
      secondsLeft: expect.any(Number) as number,
    });

    const whole = cli([...args, '--json']);
    expect(JSON.parse(whole.stdout)).toMatchObject({
      part: { index: 0, count: 1 },
      shards: { total: 3, computed: 2, finishedBefore: 1 },
    });
    const finished = cli(['--out', out, '--status']);
    expect(finished.stderr).toMatch(/3 of 3 shards, 10 of 10 items, 0 failed\n\d\S*\/s up to .* ago\n$/);
    const logs = await readdir(join(out, 'logs'));
    expect(logs).toHaveLength(2);
    const texts = await Promise.all(logs.map((name) => readFile(join(out, 'logs', name), 'utf8')));
    const logged = texts
      .flatMap((text) => text.trim().split('\n'))
      .map((line) => JSON.parse(line) as { msg: string });
    expect(logged.filter(({ msg }) => msg === 'item')).toHaveLength(10);
  });

  test('failed items: 0 with words, 5 when all failed or --strict; wrong input as everywhere', async () => {
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 2);
    await appendFile(manifest, '{"job":"nowhere.json","key":"bad"}\n');
    const args = [manifest, '--out', folder.file('out'), ...fast];
    const some = cli([...args, '--json']);
    expect(some.status).toBe(0);
    expect(JSON.parse(some.stdout)).toMatchObject({
      items: { total: 3, failed: 1 },
      failures: [{ key: 'bad', stage: 'read', code: 'ERR_IO' }],
    });
    expect(some.stderr).toContain('"msg":"item failed"');
    expect(cli([...args, '--strict']).status).toBe(5); // also of a shard that was finished before
    await writeFile(folder.file('bad.jsonl'), '{"job":"nowhere.json"}\n');
    expect(cli([folder.file('bad.jsonl'), '--out', folder.file('all'), ...fast]).status).toBe(5);

    await writeFile(folder.file('wrong.jsonl'), '{"job":"a"}\n{"jop":"b"}\n');
    for (const [wrong, code, words] of [
      [[folder.file('wrong.jsonl'), '--out', folder.file('o')], 2, 'wrong.jsonl:2'],
      [[manifest, '--out', folder.file('out'), '--dtype', 'f16'], 2, 'dtype "f32" in place of "f16"'],
      [[manifest, '--out', folder.file('o'), '--device', 'cuda:99'], 3, 'cuda:99'],
      [['--out', folder.file('o')], 2, 'the path of a manifest'],
      [['--out', folder.file('o'), '--status'], 4, 'run.json'],
    ] as [string[], number, string][]) {
      const { status, stderr, stdout } = cli(wrong);
      expect({ wrong, status, stdout }).toEqual({ wrong, status: code, stdout: '' });
      expect(stderr).toContain(words);
    }
  });

  test('--plan says what a run would take, and writes nothing', async () => {
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 6);
    const before = await folder.names();
    const args = [
      manifest,
      '--plan',
      '--sample',
      '4',
      '--frames',
      '1000000',
      '--hours',
      '0.5',
      '--json',
      ...fast,
    ];
    const { status, stdout, stderr } = cli(args);
    expect(status).toBe(0);
    const plan = JSON.parse(stdout) as Plan;
    expect(plan).toMatchObject({
      items: 1_000_000,
      sample: 4,
      failedShare: 0,
      unit: 'core',
      device: { threads: 1 },
    });
    expect(plan.totalMs.value).toBeCloseTo(plan.itemMs.value * 1e6, -3);
    expect(plan.deviceHours.value).toBeCloseTo(plan.totalMs.value / 3_600_000, 5);
    expect(plan.needed).toMatchObject({ deadlineMs: 1_800_000, unit: 'cores' });
    expect(stderr).toMatch(
      /^1,000,000 items on cpu .*\n.* an item of the 4 measured, .* core hours; .*\nwithin 30 min: /,
    );
    expect(stderr).toContain('taken for granted:');
    expect(await folder.names()).toEqual(before);
  });

  test('stops at SIGTERM by that signal: finished shards stay, and nothing half written', async () => {
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 100);
    const out = folder.file('out');
    const args = [command, 'pipeline', manifest, '--out', out, '--shard-size', '5', ...fast];
    const child = spawn(process.execPath, args, { env: clean, stdio: ['ignore', 'ignore', 'pipe'] });
    child.stderr.setEncoding('utf8');
    let said = '';
    for await (const text of child.stderr) {
      said += String(text);
      if (said.includes('"shard":0')) break; // the first shard is done
    }
    child.kill('SIGTERM');
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    expect({ code, signal }).toEqual({ code: null, signal: 'SIGTERM' });
    const files = Object.keys(await digests(out));
    expect(files.filter((name) => name.endsWith('.tmp'))).toEqual([]);
    const shards = files.filter((name) => name.endsWith('.tar')).length;
    expect(shards).toBeGreaterThanOrEqual(1);
    expect(shards).toBeLessThan(20);
    const rest = cli([...args.slice(2), '--json']);
    expect(JSON.parse(rest.stdout)).toMatchObject({ shards: { total: 20, finishedBefore: shards } });
  });
});
