/** The CPU's benchmark: its command line at small sizes, its arithmetic on made-up figures, and CI's check of ratios. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { native } from '../lib/native.js';

const root = join(__dirname, '..');

/** A result of `expression` over bench/FILE, which is an ES module that jest can't import. */
function evaluate(file: string, expression: string): unknown {
  const url = `file://${join(root, 'bench', file)}`;
  const script = `import * as m from ${JSON.stringify(url)}; console.log(JSON.stringify(${expression}) ?? 'null');`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
    encoding: 'utf8',
    cwd: root,
  });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

const bench = (...args: string[]) =>
  spawnSync(process.execPath, [join(root, 'dist/cli/main.js'), 'bench', ...args], { encoding: 'utf8' });

interface Figure {
  case: string;
  who: string;
  way: string;
  version?: string;
  times?: number[];
  skip?: string;
  wrong?: boolean;
}

test('a small run times every instruction set in every round, and outputs agree', () => {
  const args = ['--small', '--rounds', '3', '--threads', '2', '--case', 'cmt modality', 'dense modality'];
  const { status, stdout, stderr } = bench(...args);
  expect({ status, stderr }).toMatchObject({ status: 0 });
  const { figures, machine, peaks } = JSON.parse(stdout) as {
    figures: Figure[];
    machine: { processor: string };
    peaks: Record<string, { fmaGflops: number }>;
  };
  const own = figures.filter(({ way }) => way === 'own');
  const isas = native().info().isas.slice(-2).reverse();
  expect(own.map(({ case: name, who }) => [name, who])).toEqual(
    ['cmt modality', 'dense modality'].flatMap((name) => isas.map((isa) => [name, isa])),
  );
  for (const { who, version, times, wrong } of own) {
    expect(version).toBe(who);
    expect(times).toHaveLength(3);
    expect(wrong).toBeUndefined();
  }
  expect(Object.keys(peaks)).toEqual(isas);
  for (const isa of isas) expect(peaks[isa]?.fmaGflops).toBeGreaterThan(0);
  expect(stderr).toContain(machine.processor);
});

test('a Python that is not there is said, and the rest runs', () => {
  const { status, stdout } = bench('--small', '--case', 'Swin', '--python', '/nonexistent/python');
  expect(status).toBe(0);
  const { figures } = JSON.parse(stdout) as { figures: Figure[] };
  const torch = figures.filter(({ who }) => who === 'PyTorch');
  expect(torch).toHaveLength(2);
  for (const { skip } of torch) expect(skip).toContain('/nonexistent/python');
});

test.each([
  [['--case', 'nonsense'], 'expected one of "cmt none", '],
  [['--rounds', '0'], 'expected an integer from 1 to 1000 for --rounds but received "0"'],
  [['--threads', 'many'], 'expected an integer from 1 to 1024 for --threads but received "many"'],
  [['--nonsense'], 'Unknown argument: nonsense'],
])('%j is a usage error', (args, message) => {
  const { status, stdout, stderr } = bench(...args);
  expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
  expect(stderr).toContain(message);
});

test('medians of odd and even counts', () => {
  expect(evaluate('cpu/rounds.mjs', 'm.summary([3, 1, 2])')).toEqual({ ms: 2, min: 1, max: 3 });
  expect(evaluate('cpu/rounds.mjs', 'm.summary([4, 1, 2, 3])')).toEqual({ ms: 2.5, min: 1, max: 4 });
});

test('outputs that differ are far apart', () => {
  const distance = (a: string, b: string) =>
    evaluate('cpu/rounds.mjs', `String(m.distance([${a}], [${b}]).relative)`);
  expect(distance('3, 4, -Infinity', '3, 4, -Infinity')).toBe('0');
  expect(distance('3, 5', '3, 4')).toBe('0.2');
  expect(distance('3, 0', '3, -Infinity')).toBe('Infinity');
  expect(distance('3, NaN', '3, 4')).toBe('Infinity');
  expect(distance('3', '3, 4')).toBe('Infinity');
});

interface Goal {
  what: string;
  met?: boolean;
  near?: boolean;
  why?: string;
}

test('goals: met, just missed, missed, wrong, not run', () => {
  const judge = (builtMs: number, more = '{}') => {
    const figures = `[
      { case: 'cmt modality', who: 'x86-64-v4', way: 'own', ms: 100 },
      { case: 'cmt modality', who: 'PyTorch', way: 'built', ms: ${builtMs}, ...${more} }]`;
    const goals = evaluate(
      'cpu/goals.mjs',
      `m.judge({ figures: ${figures}, peaks: {}, cases: [] })`,
    ) as Goal[];
    return goals.find(({ what }) => what === 'cmt modality, x86-64-v4, over PyTorch built');
  };
  expect(judge(200)).toMatchObject({ met: true, near: true });
  expect(judge(181)).toMatchObject({ met: false, near: true });
  expect(judge(179)).toMatchObject({ met: false, near: false });
  expect(judge(200, '{ wrong: true }')?.why).toContain('wrong output');
  expect(judge(200, '{ ms: undefined, skip: "no torch" }')?.why).toBe('no torch');
});

test("CI's check passes at the floors and fails what is slower, by either ratio", () => {
  const floors = evaluate('check.mjs', 'm.floors') as Record<
    string,
    { overReference: number; ofPeak?: number }
  >;
  for (const [name, { overReference, ofPeak = 0 }] of Object.entries(floors)) {
    const slow = (own: number, peak: number) =>
      evaluate(
        'check.mjs',
        `m.slow(${JSON.stringify(name)}, { own: ${own}, reference: ${overReference}, peak: ${peak} })`,
      ) as string[];
    expect(slow(0.999, ofPeak)).toEqual([]);
    expect(slow(1.01, 1.01 * ofPeak).join()).toContain(`${name}: overReference is`);
    if (ofPeak > 0) expect(slow(0.999, 0.9 * ofPeak).join()).toContain(`${name}: ofPeak is`);
  }
});
