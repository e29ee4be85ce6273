/** The declarations of the package as TypeScript finds them from outside: what test/types/usage.mts says of them holds. */
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const folder = join(__dirname, 'types');
const usage = readFileSync(join(folder, 'usage.mts'), 'utf8');
const commonJs = join(folder, 'usage.cts');
const wrong = join(folder, 'wrong.mts');
afterEach(() => {
  for (const file of [commonJs, wrong]) rmSync(file, { force: true });
});

/** What tsc says of a program of these files; nothing where they are right. */
function compile(...files: string[]): string {
  const options = [
    '--strict',
    '--skipLibCheck',
    '--noEmit',
    '--module',
    'node16',
    '--target',
    'es2022',
    '--types',
    'node',
  ];
  const tsc = require.resolve('typescript/bin/tsc');
  const libraries = ['--ignoreConfig', '--lib', 'ES2022,ESNext.Disposable'];
  const { stdout, stderr } = spawnSync(process.execPath, [tsc, ...options, ...libraries, ...files], {
    cwd: folder,
    encoding: 'utf8',
  });
  return stdout + stderr;
}

test('usage holds, as ESM and as CommonJS', () => {
  writeFileSync(commonJs, usage);
  expect(compile('usage.mts', 'usage.cts')).toBe('');
});

test('what is wrong is noticed', () => {
  writeFileSync(
    wrong,
    usage.replace("'ERR_SHAPE'", "'ERR_SHAPES'").replace('Same<A, B>): void', 'boolean): void'),
  );
  expect(compile('wrong.mts')).toMatch(/^wrong\.mts.*ERR_SHAPES/m);
});
