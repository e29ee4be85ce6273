/**
 * What scripts/gpu-check makes of its parts' outputs: the goals' arithmetic, and exit codes. The figures are made up, so that
 * every goal is just met; each test changes one thing.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { temporaryFolder } from './formats/temporary.js';

const root = join(__dirname, '..');

interface Figure {
  kind: string;
  name: string;
  precision: string;
  peer?: string;
  ms?: number;
  inputs?: string;
  notRun?: string;
  problems?: string[];
}
interface Part {
  part: string;
  status?: number;
  start?: number;
  end?: number;
  limit?: number;
  notRun?: string;
}
interface Goal {
  what: string;
  goal: string;
  reached?: number;
  met?: boolean;
  why?: string;
}
interface GpuRecord {
  measured: string;
  goals: Goal[];
  wrong: string[];
  missing: string[];
  sanitizer: Record<string, string>;
  clocks: {
    during: Record<string, { samples: number; sm: { least: number; median: number; most: number } }>;
  };
  conformance: { passed: number; failed: number; done: boolean };
  peers: Figure[];
  profile: Record<string, string>[] | null;
}

const own = (name: string, precision: string, ms: number): Figure => ({
  kind: precision.includes('float') ? 'bias' : 'attention',
  name,
  precision,
  ms,
  inputs: precision === 'bf16' ? 'bfloat16' : 'float32',
});
const peer = (name: string, precision: string, way: string, ms: number): Figure => ({
  kind: 'peer',
  name,
  precision,
  peer: way,
  ms,
});
const lengths = ['4096×64', '4096×128', '16384×64', '16384×128'].map((size) => `causal ALiBi ${size}`);

/** The parts of a check in which every goal is met, with nothing to spare. */
function parts() {
  const clean = (tool: string) => [
    '========= COMPUTE-SANITIZER',
    `========= ${tool === 'racecheck' ? 'RACECHECK SUMMARY: 0 hazards displayed' : 'ERROR SUMMARY: 0 errors'}`,
  ];
  return {
    device: { version: '0.0.0', measured: 'gpu', backend: 'cuda', name: 'made up' },
    conformance: [
      { precision: 'f32', name: 'one', problems: [] as string[] },
      { precision: 'bf16', name: 'one', problems: [] as string[] },
      { done: true },
    ] as { precision?: string; name?: string; problems?: string[]; done?: boolean }[],
    logs: { memcheck: clean('memcheck'), racecheck: clean('racecheck') },
    own: [
      own('cmt none', 'bf16', 0.16),
      own('cmt modality', 'bf16', 0.16),
      own('cmt modality + spatial', 'bf16', 0.16 * 1.15),
      own('cmt LAM windows', 'bf16', 0.02),
      own('cmt modality', 'tf32', 0.26),
      own('cmt modality', 'f32', 0.6),
      own('cmt modality backward', 'f32', 1.5),
      ...lengths.map((name) => own(name, 'bf16', 1)),
      own('Swin', 'bf16', 0.5),
      own('dense modality + spatial', 'float32', 0.1),
      own('dense modality + spatial', 'bfloat16', 0.05),
    ],
    peers: [
      peer('cmt modality', 'bf16', 'flex', 0.48),
      peer('cmt modality training', 'f32', 'flex', 6.3),
      peer('cmt modality', 'bf16', 'sdpa given', 3),
      peer('cmt modality', 'bf16', 'efficient given', 0.96),
      peer('cmt modality', 'bf16', 'sdpa built', 1.28),
      ...lengths.flatMap((name) => [
        peer(name, 'bf16', 'flash unbiased', 0.85),
        peer(name, 'bf16', 'flex', 1.2),
      ]),
      peer('Swin', 'bf16', 'sdpa given', 2),
      peer('dense modality + spatial', 'float32', 'cudaMemset', 0.09),
      peer('dense modality + spatial', 'bfloat16', 'cudaMemset', 0.045),
    ],
    parts: ['conformance', 'memcheck', 'racecheck', 'own', 'peers', 'again'].map((part, i): Part => ({
      part,
      status: 0,
      start: 1000 + 10 * i,
      end: 1010 + 10 * i,
      limit: 60,
    })),
    peersTail: '',
    profile: '',
  };
}
type Parts = ReturnType<typeof parts>;

async function record(change: (parts: Parts) => void, ...options: string[]) {
  await using folder = await temporaryFolder();
  const given = parts();
  change(given);
  const lines = (list: readonly object[]): string => list.map((item) => `${JSON.stringify(item)}\n`).join('');
  const done = { done: true, passed: 3, failed: 0 };
  const sample = (seconds: number, mhz: number): string => {
    const at = new Date(seconds * 1000);
    const two = (n: number): string => String(n).padStart(2, '0');
    const date = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join('/');
    const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(':');
    return `${date} ${time}.000, ${mhz}, 2619, 40, 300.5\n`;
  };
  const files = {
    'device.json': lines([given.device]),
    'gpu.csv': 'made up, 0.0, 1 MiB\n',
    'conformance.jsonl': lines(given.conformance),
    'memcheck.log': given.logs.memcheck.join('\n'),
    'racecheck.log': given.logs.racecheck.join('\n'),
    'memcheck.jsonl': lines([done]),
    'racecheck.jsonl': lines([done]),
    'own.jsonl': lines(given.own),
    'peers.jsonl': lines(given.peers) + given.peersTail,
    'parts.jsonl': lines(given.parts),
    'clocks.csv': [sample(900, 300), sample(1032, 1900), sample(1035, 1980), sample(1038, 1950)].join(''),
    'profile.csv': given.profile,
  };
  for (const [name, text] of Object.entries(files)) await writeFile(folder.file(name), text);
  const path = folder.file('records/record.json');
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(root, 'bench/gpu-record.mjs'), folder.path, path, ...options],
    { encoding: 'utf8' },
  );
  expect(stderr).toBe('');
  return { status, stdout, record: JSON.parse(readFileSync(path, 'utf8')) as GpuRecord };
}

const find = (figures: Figure[], name: string, way?: string): Figure =>
  figures.find((figure) => figure.name === name && figure.peer === way) ?? own('none', 'f32', NaN);
const goal = (goals: Goal[], what: string): Goal =>
  goals.find((item) => item.what === what) ?? { what: 'none', goal: '' };
const nothing = (): void => undefined;

test('every goal met, with nothing to spare', async () => {
  const { status, stdout, record: made } = await record(nothing);
  expect(made.goals.map(({ what, reached }) => [what, Number(reached?.toFixed(6))])).toEqual([
    ['(a) CMT, modality, bf16', 160],
    ['(a) over FlexAttention', 3],
    ['(a) over SDPA, bias given', 6],
    ['(a) over SDPA, bias built', 8],
    ['bias cost, modality, bf16', 0],
    ['bias cost, modality + spatial, bf16', 15],
    ['(a) CMT, modality, tf32', 260],
    ['(a) CMT, modality, f32', 600],
    ['LAM windows over own dense, bf16', 8],
    ...lengths.flatMap((name) => [
      [`(c) ${name}, of unbiased FlashAttention`, 85],
      [`(c) ${name}, over FlexAttention`, 1.2],
    ]),
    ['backward of (a), f32, of its forward', 2.5],
    ['forward and backward of (a), f32, over FlexAttention', 3],
    ['(d) Swin over SDPA, expanded mask', 4],
    ['(e) dense bias, float32, of cudaMemset', 90],
    ['(e) dense bias, bfloat16, of cudaMemset', 90],
  ]);
  expect({ status, wrong: made.wrong, missing: made.missing }).toEqual({ status: 0, wrong: [], missing: [] });
  expect(made.sanitizer).toMatchObject({ memcheck: 'clean, 3 cases', racecheck: 'clean, 3 cases' });
  expect(made.clocks.during.own).toMatchObject({ samples: 3, sm: { least: 1900, median: 1950, most: 1980 } });
  expect(stdout).toContain('result: proven, and every goal met');
});

test('a goal that is missed: 5', async () => {
  const {
    status,
    stdout,
    record: made,
  } = await record(({ own: list }) => {
    find(list, 'cmt modality').ms = 0.1601;
  });
  expect(status).toBe(5);
  const over = made.goals.filter(({ met }) => met === false).map(({ what }) => what);
  expect(over).toEqual([
    '(a) CMT, modality, bf16',
    '(a) over FlexAttention',
    '(a) over SDPA, bias given',
    '(a) over SDPA, bias built',
  ]);
  expect(stdout).toMatch(/\(a\) CMT, modality, bf16 +≤ 160 µs +160\.1 µs +MISSED/);
});

test('a bias that costs: relative to no bias', async () => {
  const { record: made } = await record(({ own: list }) => {
    find(list, 'cmt none').ms = 0.15;
  });
  expect(goal(made.goals, 'bias cost, modality, bf16')).toMatchObject({ met: false });
  expect(goal(made.goals, 'bias cost, modality, bf16').reached).toBeCloseTo(100 / 15);
});

describe('something wrong: 1', () => {
  const cases: [string, (parts: Parts) => void, string][] = [
    [
      'a case of the conformance vectors',
      ({ conformance }) => conformance[1]?.problems?.push('out: off'),
      'conformance: bf16 one: out: off',
    ],
    [
      'conformance that ended before its last case',
      (given) => {
        given.conformance.pop();
        given.parts[0] = { part: 'conformance', status: 139, start: 0, end: 1, limit: 60 };
      },
      'conformance: ended with 139',
    ],
    [
      'a sanitizer that found an error',
      (given) => {
        given.logs.memcheck = [
          '========= COMPUTE-SANITIZER',
          '========= Invalid __global__ write of size 4 bytes',
          '=========     at attention_kernel',
          '========= ERROR SUMMARY: 1 error',
        ];
        given.parts[1] = { part: 'memcheck', status: 9, start: 0, end: 1, limit: 60 };
      },
      'memcheck: Invalid __global__ write of size 4 bytes | at attention_kernel',
    ],
    [
      'a sanitizer whose time was up after an error',
      (given) => {
        given.logs.racecheck = [
          '========= COMPUTE-SANITIZER',
          '========= Error: Race reported between accesses',
        ];
        given.parts[2] = { part: 'racecheck', status: 124, start: 0, end: 1, limit: 60 };
      },
      'racecheck: Error: Race reported between accesses',
    ],
    [
      'a clean sanitizer whose program failed',
      (given) => {
        given.parts[2] = { part: 'racecheck', status: 1, start: 0, end: 1, limit: 60 };
      },
      'racecheck: no error found, but the program ended with 1',
    ],
    [
      'an output of ours',
      ({ own: list }) => (find(list, 'Swin').problems = ['out: off']),
      'own: Swin, bf16: out: off',
    ],
    [
      "a peer's output",
      ({ peers }) => (find(peers, 'Swin', 'sdpa given').problems = ['relative error 1']),
      'peers: Swin, bf16, sdpa given: relative error 1',
    ],
    [
      'benchmarks that crashed',
      (given) => {
        given.parts[3] = { part: 'own', status: 134, start: 0, end: 1, limit: 60 };
      },
      'own: ended with 134',
    ],
  ];
  test.each(cases)('%s', async (_, change, line) => {
    const { status, stdout, record: made } = await record(change);
    expect(made.wrong.map((text) => text.slice(0, line.length))).toContain(line);
    expect(status).toBe(1);
    expect(stdout).toContain(`WRONG    ${line}`);
    expect(stdout).toContain('result: WRONG');
  });

  test('and no time of a wrong output counts', async () => {
    const { record: made } = await record(({ own: list }) => {
      find(list, 'Swin').problems = ['out: off'];
    });
    expect(goal(made.goals, '(d) Swin over SDPA, expanded mask').met).toBeUndefined();
  });
});

describe('something missing: 4', () => {
  const cases: [string, (parts: Parts) => void, string][] = [
    [
      'compute-sanitizer',
      (given) => (given.parts[1] = { part: 'memcheck', notRun: 'compute-sanitizer is not installed' }),
      'memcheck: not run: compute-sanitizer is not installed',
    ],
    [
      'a sanitizer that can do nothing here',
      (given) => {
        given.logs.memcheck = ['========= COMPUTE-SANITIZER', '========= Device not supported'];
        given.parts[1] = { part: 'memcheck', status: 255, start: 0, end: 1, limit: 60 };
      },
      'memcheck: not run: ended with 255: Device not supported',
    ],
    [
      'a sanitizer whose time was up',
      (given) => {
        given.logs.racecheck = ['========= COMPUTE-SANITIZER'];
        given.parts[2] = { part: 'racecheck', status: 124, start: 0, end: 1, limit: 60 };
      },
      'racecheck: not done within 60 s',
    ],
    [
      'a peer that refused',
      ({ peers }) => {
        const refused = find(peers, 'cmt modality', 'flex');
        delete refused.ms;
        refused.notRun = 'RuntimeError: no';
      },
      '(a) over FlexAttention: flex, cmt modality: RuntimeError: no',
    ],
    ['a part that was not begun', (given) => given.parts.pop(), 'again: not run: not begun'],
    [
      'a GPU',
      (given) => {
        given.device.measured = 'emulated';
      },
      '',
    ],
  ];
  test.each(cases)('%s', async (_, change, line) => {
    const { status, record: made } = await record(change);
    if (line) expect(made.missing).toContain(line);
    expect({ status, wrong: made.wrong }).toEqual({ status: 4, wrong: [] });
  });

  test('what the peers measured before their time was up is kept', async () => {
    const { status, record: made } = await record((given) => {
      given.peers = given.peers.slice(0, 2);
      given.peersTail = '{"kind":"peer","na';
      given.parts[4] = { part: 'peers', status: 124, start: 0, end: 1, limit: 170 };
    });
    expect(status).toBe(4);
    expect(made.peers).toHaveLength(2);
    expect(goal(made.goals, '(a) over FlexAttention')).toMatchObject({ met: true });
    expect(made.missing).toContain('peers: not done within 170 s');
  });
});

test('a short check misses neither sanitizers nor peers, and judges no goal', async () => {
  const { status, stdout } = await record((given) => {
    given.peers = [];
    given.parts = given.parts.filter(({ part }) => ['conformance', 'own'].includes(part));
  }, '--quick');
  expect({ status, last: stdout.trim().split('\n').at(-1) }).toEqual({
    status: 0,
    last: 'result: nothing wrong in the short check',
  });
});

test("Nsight Compute's metrics, by kernel", async () => {
  const change = (given: Parts): void => {
    given.parts.push({ part: 'profile', status: 0, start: 0, end: 1, limit: 40 });
    given.profile = [
      '==PROF== Connected',
      '"ID","Kernel Name","dram__throughput.avg.pct_of_peak_sustained_elapsed","other"',
      '"","","%",""',
      '"0","attention_kernel<32, 2>(AttentionArguments)","41.5","7"',
    ].join('\n');
  };
  const { status, record: made } = await record(change, '--profile');
  expect(made.profile).toEqual([
    {
      kernel: 'attention_kernel<32, 2>(AttentionArguments)',
      'dram__throughput.avg.pct_of_peak_sustained_elapsed': '41.5 %',
    },
  ]);
  expect(status).toBe(0);
  expect(await record(nothing, '--profile')).toMatchObject({ status: 4 });
});

describe('scripts/gpu-check', () => {
  const check = (path: string, ...options: string[]) =>
    spawnSync('bash', [join(root, 'scripts/gpu-check'), ...options], {
      encoding: 'utf8',
      cwd: '/',
      timeout: 50_000,
      env: { ...process.env, NODE: process.execPath, PATH: path },
    });

  test('refuses where nvidia-smi sees no GPU: 3', async () => {
    await using folder = await temporaryFolder();
    const bin = folder.file('bin');
    await mkdir(bin);
    await writeFile(join(bin, 'nvidia-smi'), '#!/bin/sh\necho "No devices were found"\nexit 6\n');
    await chmod(join(bin, 'nvidia-smi'), 0o755);
    const { status, stderr } = check(`${bin}:${process.env.PATH ?? ''}`, folder.file('record.json'));
    expect({ status, stderr }).toEqual({
      status: 3,
      stderr: 'gpu-check: no NVIDIA GPU: nvidia-smi says: No devices were found\n',
    });
  });

  test('refuses a wrong option: 2', () => {
    const { status, stderr } = check(process.env.PATH ?? '', '--fast');
    expect({ status, stderr }).toEqual({ status: 2, stderr: 'gpu-check: unknown option --fast\n' });
  });
});
