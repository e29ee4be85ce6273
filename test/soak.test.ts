/** The soak (test/process/soak.cjs) for a few seconds, without a fault and with each that it must find. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

const soak = (...args: string[]): Promise<Ended> =>
  new Promise((resolve) => {
    const file = join(__dirname, 'process/soak.cjs');
    const child = execFile(process.execPath, [file, ...args], (_, stdout, stderr) => {
      resolve({ code: child.exitCode, stdout, stderr });
    });
  });

jest.setTimeout(300_000);

test('a short soak finds nothing, and computes every case', async () => {
  // The resident set settles only after minutes: CI's soak is held to it.
  const { code, stdout, stderr } = await soak('--seconds', '4', '--allowance', '1000');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { checked, samples } = JSON.parse(stdout) as { checked: Record<string, number>; samples: object[] };
  expect(Object.keys(checked)).toHaveLength(16);
  // By the main thread and four workers, at least.
  expect(Math.min(...Object.values(checked))).toBeGreaterThanOrEqual(5);
  expect(samples).toHaveLength(12);
});

test.each([
  ['flip', 'soak: expected the bits of the first run for attention, '],
  ['tensor', 'soak: expected no native memory in use at rest but received 40 bytes in 1 blocks'],
  ['memory', 'of growth for the resident set but received'],
  ['fd', 'soak: expected no growth for files but received'],
  ['thread', 'soak: expected no growth for threads but received'],
])('a planted fault is found: %s', async (fault, words) => {
  const { code, stdout, stderr } = await soak('--seconds', '3', '--plant', fault);
  expect(stderr).toContain(words);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
});
