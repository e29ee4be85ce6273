// Builds the native tests and runs them with ctest, where CMake is there. Options are passed on to CMake:
//   node scripts/test-native.js -DATTENTION_BIAS_SANITIZE=address   (or thread)
'use strict';

const { spawnSync } = require('node:child_process');
const { availableParallelism } = require('node:os');
const { join } = require('node:path');

const root = join(__dirname, '..');
const options = process.argv.slice(2);
const [, sanitizer] = /SANITIZE=(\w+)/.exec(options.join(' ')) ?? [];
const folders = { ON: 'build-sanitize', address: 'build-sanitize', thread: 'build-tsan' };
const folder = join(root, folders[sanitizer] ?? 'build-tests');
const jobs = String(availableParallelism());

function run(command, ...args) {
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

if (spawnSync('cmake', ['--version'], { stdio: 'ignore' }).status !== 0) {
  console.log('native tests: not run, since CMake is not installed (apt-get install cmake)');
} else {
  run(
    'cmake',
    '-S',
    root,
    '-B',
    folder,
    '-DATTENTION_BIAS_TESTS=ON',
    '-DATTENTION_BIAS_CUDA=off',
    ...options,
  );
  run('cmake', '--build', folder, '--parallel', jobs);
  run('ctest', '--test-dir', folder, '--parallel', '2', '--output-on-failure', '--no-tests=error');
}
