// Follows docs/add-a-bias-term.md: applies its blocks to a copy of the tracked files, builds the addon and the native tests there,
// and runs the tests that meet the new term. The copy goes, unless a folder is named.
//   node scripts/test-tutorial.js [folder]
'use strict';

const { execFileSync } = require('node:child_process');
const { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } = require('node:fs');
const { availableParallelism, tmpdir } = require('node:os');
const { dirname, join } = require('node:path');

const root = join(__dirname, '..');

/** The blocks of the tutorial, as one patch. */
function tutorialPatch() {
  const text = readFileSync(join(root, 'docs/add-a-bias-term.md'), 'utf8');
  return [...text.matchAll(/^```diff\n(.*?)^```$/gms)].map(([, block]) => block).join('');
}

function main([folder = mkdtempSync(join(tmpdir(), 'attention-bias-tutorial-'))]) {
  const env = { ...process.env, ATTENTION_BIAS_CUDA: 'off' };
  const run = (command, ...args) => {
    console.log(`$ ${command} ${args.join(' ')}`);
    execFileSync(command, args, { cwd: folder, env, stdio: 'inherit' });
  };
  const tracked = execFileSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8' });
  for (const file of tracked.split('\0').filter((name) => name !== '')) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    cpSync(join(root, file), join(folder, file));
  }
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  // What the document names and no more: test/tutorial.test.ts.
  execFileSync('git', ['apply', '-'], {
    cwd: folder,
    input: tutorialPatch(),
    stdio: ['pipe', 'inherit', 'inherit'],
  });

  run('npx', 'tsc', '--noEmit', '-p', '.');
  run('npx', 'eslint', 'lib', 'test');
  run(process.execPath, 'scripts/install.js');
  run(process.execPath, 'scripts/build-emulated.js');
  run('npm', 'run', '--silent', 'build:ts');
  run(
    'npx',
    'jest',
    'test/terms.test.ts',
    'test/run.test.ts',
    'test/operations.test.ts',
    'test/arguments.test.ts',
  );
  run('cmake', '-S', '.', '-B', 'build-tests', '-DATTENTION_BIAS_TESTS=ON', '-DATTENTION_BIAS_CUDA=off');
  const tests = ['core_test', 'cpu_test', 'backward_test', 'cuda_test', 'cuda_backward_test'];
  run('cmake', '--build', 'build-tests', '--parallel', String(availableParallelism()), '--target', ...tests);
  for (const test of tests) run(join('build-tests', test), 'quick');
  rmSync(folder, { recursive: true });
  console.log('the tutorial: its term is built, and agrees with the reference');
}

module.exports = { tutorialPatch };
if (require.main === module) main(process.argv.slice(2));
