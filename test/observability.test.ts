/** The programs of docs/observability.md print what it says. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = join(__dirname, '..');
const text = readFileSync(join(root, 'docs/observability.md'), 'utf8');
const snippets = [...text.matchAll(/^```js\n(.*?)^```\n\n```text\n(.*?)^```$/gms)].map(
  ([, program, output], i) => [i + 1, program!, output!] as const,
);

test('every program is followed by what it prints', () => {
  expect(snippets.length).toBeGreaterThan(0);
  expect(text.match(/^```js$/gm)).toHaveLength(snippets.length);
});

test.each(snippets)('program %i', async (_, program, output) => {
  // Run here, the package is found by its own name.
  const { stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', program], {
    cwd: root,
  });
  expect(`${stdout}${stderr}`.trimEnd()).toBe(output.trimEnd());
});
