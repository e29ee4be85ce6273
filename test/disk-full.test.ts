// What the command line does on a disk that has no room, and once it has: a small tmpfs, which takes root.
import { spawnSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { writeNpy } from '../lib/formats/npy.js';
import { writeSyntheticScene } from '../lib/frame/synthetic.js';
import { temporaryFolder } from './formats/temporary.js';
import { digests } from './pipeline-run.js';
import { writePipelineFolder } from './report-folder.js';
import { random, uniform } from './support.js';

const command = join(__dirname, '../dist/cli/main.js');
const clean = Object.fromEntries(
  Object.entries(process.env).filter(
    ([name]) => !/^(SLURM_|JOB_|RANK$|WORLD_SIZE$|ATTENTION_BIAS_)/.test(name),
  ),
);

const cli = (...args: string[]) =>
  spawnSync(process.execPath, [command, ...args, '--device', 'cpu'], { encoding: 'utf8', env: clean });

/** A file system of so many bytes, gone with its block. */
async function smallDisk(bytes: number) {
  const path = await mkdtemp(join(tmpdir(), 'attention-bias-disk-'));
  const mount = (options: string): boolean =>
    spawnSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', path]).status === 0;
  const mounted = mount(`size=${bytes}`);
  return {
    mounted,
    file: (name: string): string => join(path, name),
    /** every file, logs and the run's own description left out */
    files: async (): Promise<string[]> => {
      const entries = await readdir(path, { recursive: true, withFileTypes: true });
      const names = entries.filter((entry) => entry.isFile()).map(({ name }) => name);
      return names.filter((name) => !name.endsWith('.jsonl') && name !== 'run.json').sort();
    },
    grow: (to: number): boolean => mount(`remount,size=${to}`),
    async [Symbol.asyncDispose](): Promise<void> {
      if (mounted) spawnSync('umount', [path]);
      await rm(path, { recursive: true, force: true });
    },
  };
}

/** A job whose outputs take 240 KB, and a manifest with it four times. */
async function writeJobs(at: (name: string) => string): Promise<void> {
  const next = random(3);
  await writeNpy(at('k.npy'), uniform(next, [1, 2, 33, 12]));
  await writeNpy(at('v.npy'), uniform(next, [1, 2, 33, 100]));
  await writeNpy(at('q.npy'), uniform(next, [1, 2, 300, 12]));
  const tensors = { q: 'q.npy', k: 'k.npy', v: 'v.npy' };
  const job = { op: 'attention', tensors, query: 'q', key: 'k', value: 'v' };
  await writeFile(at('job.json'), JSON.stringify(job));
  const lines = [0, 1, 2, 3].map((i) => JSON.stringify({ job: 'job.json', key: `item${i}` }));
  await writeFile(at('jobs.jsonl'), `${lines.join('\n')}\n`);
}

const ENOSPC = 'but received ENOSPC: no space left on device';
let mounts = false;
beforeAll(async () => {
  await using disk = await smallDisk(4096);
  mounts = disk.mounted;
  if (!mounts) console.warn('not run where no tmpfs can be mounted: what a full disk comes to');
});
jest.setTimeout(60_000);

test('run --out', async () => {
  if (!mounts) return;
  await using folder = await temporaryFolder();
  await writeJobs(folder.file);
  await using disk = await smallDisk(100_000);
  const out = disk.file('out.safetensors');
  const { status, stderr } = cli('run', folder.file('job.json'), '--out', out);
  expect({ status, stderr }).toEqual({
    status: 4,
    stderr: `attention-bias: expected a file that can be written for ${out} ${ENOSPC}\n`,
  });
  expect(await disk.files()).toEqual([]);
  expect(disk.grow(1_000_000)).toBe(true);
  expect(cli('run', folder.file('job.json'), '--out', out)).toMatchObject({ status: 0 });
  const elsewhere = folder.file('out.safetensors');
  expect(cli('run', folder.file('job.json'), '--out', elsewhere)).toMatchObject({ status: 0 });
  expect((await readFile(out)).equals(await readFile(elsewhere))).toBe(true);
});

test.each(['tar', 'safetensors', 'npz'])('pipeline, shards as %s', async (format) => {
  if (!mounts) return;
  await using folder = await temporaryFolder();
  await writeJobs(folder.file);
  // Room for the first shard, not for the second.
  await using disk = await smallDisk(800_000);
  const args = (out: string): string[] =>
    ['pipeline', folder.file('jobs.jsonl'), '--out', out].concat('--format', format, '--shard-size', '2');
  const { status, stderr } = cli(...args(disk.file('out')));
  expect({ status, last: stderr.trim().split('\n').at(-1) }).toEqual({
    status: 4,
    last: expect.stringMatching(
      new RegExp(`^attention-bias: expected .* for ${disk.file('out')}.* ${ENOSPC}$`),
    ) as string,
  });
  expect(stderr).not.toContain('"attempt":2'); // a full disk is no better a while later
  const left = await disk.files();
  expect(left.filter((name) => name.includes('tmp') || name.includes('width'))).toEqual([]);
  expect(left.some((name) => name.startsWith('000001'))).toBe(false);
  expect(disk.grow(8_000_000)).toBe(true);
  expect(cli(...args(disk.file('out')))).toMatchObject({ status: 0 });
  expect(cli(...args(folder.file('out')))).toMatchObject({ status: 0 });
  expect(await digests(disk.file('out'))).toEqual(await digests(folder.file('out')));
});

test('frame: its tensors, its pictures', async () => {
  if (!mounts) return;
  await using folder = await temporaryFolder();
  const frame = await writeSyntheticScene(folder.file('scene'), 1);
  const args = (out: string): string[] => ['frame', frame, '--out', out, '--queries', '20', '--window'];
  expect(cli(...args(folder.file('out')))).toMatchObject({ status: 0 });
  const whole = await readdir(folder.file('out'));
  for (const bytes of [20_000, 200_000]) {
    await using disk = await smallDisk(bytes);
    const { status, stderr } = cli(...args(disk.file('out')));
    expect({ status, last: stderr.trim().split('\n').at(-1) }).toEqual({
      status: 4,
      last: expect.stringContaining(ENOSPC) as string,
    });
    // What is there is whole.
    for (const name of await disk.files()) {
      expect(whole).toContain(name);
      if (!name.endsWith('.json')) {
        const [a, b] = [await readFile(disk.file(`out/${name}`)), await readFile(folder.file(`out/${name}`))];
        expect({ name, same: a.equals(b) }).toEqual({ name, same: true });
      }
    }
    expect((await disk.files()).length).toBeLessThan(whole.length);
  }
});

test('report', async () => {
  if (!mounts) return;
  await using folder = await temporaryFolder();
  await writePipelineFolder(folder.file('run'), { items: 400 });
  await using disk = await smallDisk(100_000);
  const args = ['report', folder.file('run'), '--out', disk.file('report.html')];
  const report = () => spawnSync(process.execPath, [command, ...args], { encoding: 'utf8', env: clean });
  const { status, stderr } = report();
  expect({ status, stderr }).toEqual({
    status: 4,
    stderr: `attention-bias: expected a file that can be written for ${disk.file('report.html')} ${ENOSPC}\n`,
  });
  expect(await disk.files()).toEqual([]);
  expect(disk.grow(8_000_000)).toBe(true);
  expect(report()).toMatchObject({ status: 0 });
});

test('stdout', () => {
  const full = openSync('/dev/full', 'w');
  try {
    const { status, stderr } = spawnSync(process.execPath, [command, 'doctor', '--json'], {
      stdio: ['ignore', full, 'pipe'],
      encoding: 'utf8',
      env: clean,
    });
    expect({ status, stderr }).toEqual({
      status: 4,
      stderr: `attention-bias: expected an output that can be written for stdout ${ENOSPC}\n`,
    });
  } finally {
    closeSync(full);
  }
});
