// Builds the addon with the CUDA part upon an emulator (test/native/emulator.h) into build-emulated/, for the conformance
// tests, where CMake is there.
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const { availableParallelism } = require('node:os');
const { join } = require('node:path');

const root = join(__dirname, '..');
const folder = join(root, 'build-emulated');

if (spawnSync('cmake', ['--version'], { stdio: 'ignore' }).status !== 0) {
  console.log('emulated CUDA: not built, since CMake is not installed (apt-get install cmake)');
} else {
  const options = ['--directory', root, '--out', folder, '--parallel', String(availableParallelism())];
  const flags = ['--CDATTENTION_BIAS_EMULATED=ON', '--CDATTENTION_BIAS_CUDA=off'];
  // What is there is brought up to date; `rebuild` would begin anew.
  const command = existsSync(join(folder, 'CMakeCache.txt')) ? 'build' : 'rebuild';
  const script = require.resolve('cmake-js/bin/cmake-js');
  const { status } = spawnSync(process.execPath, [script, command, ...options, ...flags], {
    cwd: root,
    stdio: 'inherit',
  });
  process.exit(status ?? 1);
}
