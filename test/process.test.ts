// What can only be seen from outside: how processes and worker threads end, what stays in memory, what waits. Each
// program of test/process runs on the built package (dist/).
import { execFile, spawnSync } from 'node:child_process';
import { join } from 'node:path';

interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  seconds: number;
}

async function run(
  program: string,
  args: string[] = [],
  nodeArgs: string[] = [],
  env: NodeJS.ProcessEnv = {},
): Promise<Ended> {
  const start = performance.now();
  return new Promise((resolve) => {
    const file = join(__dirname, 'process', program);
    const child = execFile(
      process.execPath,
      [...nodeArgs, file, ...args],
      { timeout: 120_000, env: { ...process.env, ...env } },
      (_, stdout, stderr) => {
        resolve({
          code: child.exitCode,
          signal: child.signalCode,
          stdout,
          stderr,
          seconds: (performance.now() - start) / 1000,
        });
      },
    );
  });
}

/** The JSON that a program printed. One that failed fails the test with what it said. */
async function report<T>(program: string, args: string[] = [], nodeArgs: string[] = []): Promise<T> {
  const { code, signal, stdout, stderr } = await run(program, args, nodeArgs);
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
  return JSON.parse(stdout) as T;
}

jest.setTimeout(150_000);

test.each(['dispose', 'gc'])('1,000 attention calls leave memory flat (%s)', async (how) => {
  const result = await report<{ rss: [number, number]; before: Memory; after: Memory }>(
    'leak.cjs',
    [how],
    ['--expose-gc'],
  );
  const [early, late] = result.rss;
  expect(late - early).toBeLessThan(8 * 2 ** 20); // one result is 0.9 MiB
  expect(result.after).toEqual(result.before);
});
interface Memory {
  bytes: number;
  blocks: number;
}

test('an attention of half a second leaves the event loop free', async () => {
  const { seconds, p99, samples } = await report<{ seconds: number; p99: number; samples: number }>(
    'event-loop.cjs',
  );
  expect(seconds).toBeGreaterThan(0.2);
  expect(samples).toBeGreaterThan(50);
  expect(p99).toBeLessThan(10);
});

test('an idle device does not keep the process, an operation does', async () => {
  expect(await report('idle.cjs')).toEqual({ shape: [1, 8, 100, 32] });
});

test('process.exit in the middle of an operation', async () => {
  const { code, signal, stdout, seconds } = await run('exit.cjs', ['exit']);
  expect({ code, signal, stdout }).toEqual({ code: 7, signal: null, stdout: 'ending\n' });
  expect(seconds).toBeLessThan(10); // the operation takes 20
});

test('an uncaught error in the middle of an operation', async () => {
  const { code, signal, stderr } = await run('exit.cjs', ['throw']);
  expect({ code, signal }).toEqual({ code: 1, signal: null });
  expect(stderr).toContain('Error: thrown on purpose');
});

test('a signal in the middle of an operation', async () => {
  expect(await run('exit.cjs', ['kill'])).toMatchObject({ signal: 'SIGTERM', stderr: '' });
});

test('worker threads terminated in the middle of an operation', async () => {
  const { times } = await report<{ times: number[] }>('terminate.cjs');
  expect(times).toHaveLength(5);
  expect(Math.max(...times)).toBeLessThan(2000); // ms; the operation takes 20 s
});

const emulated = join(__dirname, '../build-emulated/Release/attention_bias.node');
const emulates = spawnSync('cmake', ['--version']).status === 0;
describe.each(emulates ? ['cpu', 'cuda'] : ['cpu'])('with every operation under way on %s', (device) => {
  const env = device === 'cuda' ? { ATTENTION_BIAS_BINARY: emulated } : {};
  test.each([
    ['terminate', 0, ''],
    ['exit', 7, ''],
    ['throw', 1, 'Error: thrown on purpose'],
  ])('%s', async (how, code, words) => {
    const ended = await run('teardown.cjs', [device, how], [], env);
    expect(ended).toMatchObject({ code, signal: null, stdout: 'ok\n' });
    if (words === '') expect(ended.stderr).toBe('');
    else expect(ended.stderr).toContain(words);
  });
});

test('worker threads side by side', async () => {
  const { sums } = await report<{ sums: number[][] }>('workers.cjs');
  const all = sums.flat();
  expect(all).toHaveLength(18);
  expect(new Set(all).size).toBe(1);
  expect(Number.isFinite(all[0])).toBe(true);
});

test('inputs transferred away and collected while an operation reads them', async () => {
  const { codes } = await report<{ codes: string[] }>('transfer.cjs', [], ['--expose-gc']);
  expect(codes).toEqual(['ERR_VALUE', 'ERR_VALUE', 'ERR_VALUE']);
});
