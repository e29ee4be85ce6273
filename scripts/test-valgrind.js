// Runs native tests, and the addon in Node, under valgrind: memcheck with its leak check. Valgrind knows no AVX-512, so the
// kernels are those of x86-64-v3 and below. Arguments: names of native tests, or `node`; without any, all of the below.
//
//   node scripts/test-valgrind.js core_test
'use strict';

const { spawnSync } = require('node:child_process');
const { availableParallelism } = require('node:os');
const { join } = require('node:path');

const root = join(__dirname, '..');
const folder = join(root, 'build-tests');
const programs = ['core_test', 'runtime_test', 'deformable_test', 'backward_test', 'cpu_test'];
const known = [...programs, 'node'];

function run(command, args, env = {}) {
  const began = performance.now();
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return { status, seconds: ((performance.now() - began) / 1000).toFixed(0) };
}

function must(command, args) {
  const { status } = run(command, args);
  if (status !== 0) process.exit(1);
}

const memcheck = [
  '--quiet',
  '--error-exitcode=9',
  '--leak-check=full',
  '--errors-for-leak-kinds=definite,indirect',
  '--show-leak-kinds=definite,indirect',
  // The emulator's threads have stacks 256 KiB apart: a jump as far is from one to another, no frame of one.
  '--max-stackframe=100000',
];

/** What each name stands for: the command that runs under valgrind. */
function command(name) {
  if (name !== 'node') return { args: [join(folder, name), 'quick'] };
  // Code that V8 has just written is not what valgrind translated, unless it looks; without a compiler there is less of it.
  return {
    args: ['--smc-check=all-non-file', process.execPath, '--jitless', 'test/process/valgrind.cjs'],
    env: { ATTENTION_BIAS_DEVICE: 'cpu' },
  };
}

function main(wanted) {
  const names = wanted.length > 0 ? wanted : known;
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    console.error(`expected some of ${known.join(', ')} for the arguments but received ${unknown}`);
    return 2;
  }
  const targets = names.filter((name) => name !== 'node');
  if (targets.length > 0) {
    must('cmake', ['-S', root, '-B', folder, '-DATTENTION_BIAS_TESTS=ON', '-DATTENTION_BIAS_CUDA=off']);
    const jobs = ['--parallel', String(availableParallelism())];
    must('cmake', ['--build', folder, ...jobs, '--target', ...targets]);
  }
  let failed = 0;
  for (const name of names) {
    const { args, env } = command(name);
    const { status, seconds } = run('valgrind', [...memcheck, ...args], env);
    console.log(`valgrind ${name}: ${status === 0 ? 'clean' : `exit code ${status}`}, ${seconds} s`);
    if (status !== 0) ++failed;
  }
  return failed > 0 ? 1 : 0;
}

process.exitCode = main(process.argv.slice(2));
