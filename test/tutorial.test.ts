/** docs/add-a-bias-term.md fits the code: scripts/test-tutorial.js builds what it describes. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const root = join(__dirname, '..');
const { tutorialPatch } = createRequire(__filename)('../scripts/test-tutorial.js') as {
  tutorialPatch: () => string;
};
const check = (patch: string) =>
  execFileSync('git', ['apply', '--check', '--numstat', '-'], {
    cwd: root,
    input: patch,
    encoding: 'utf8',
    stdio: 'pipe',
  });

test('its blocks apply, to the files that its headings name and no other', () => {
  const changed = check(tutorialPatch())
    .trim()
    .split('\n')
    .map((line) => line.split('\t')[2]!);
  const text = readFileSync(join(root, 'docs/add-a-bias-term.md'), 'utf8').replaceAll(
    /^```diff.*?^```$/gms,
    '',
  );
  const headings = text.split('\n').filter((line) => line.startsWith('## '));
  const named = headings.flatMap((line) => line.replace(/.*: /, '').split(/, | and /));
  expect(changed.sort()).toEqual(named.sort());
});

test('a block that does not fit is noticed', () => {
  expect(() => check(tutorialPatch().replace(/^ .*kWholeRow.*$/m, ' constexpr int kOther = 1;'))).toThrow();
});
