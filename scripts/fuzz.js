// Fuzzing (docs/fuzzing.md): runs targets for some seconds each, and keeps every input that fails.
//   node scripts/fuzz.js [--target all] [--seconds 60] [--seed N] [--plain] [--jobs 1]
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const { mkdirSync, readFileSync, openSync, closeSync } = require('node:fs');
const { availableParallelism } = require('node:os');
const { join, relative } = require('node:path');
const { parseArgs } = require('node:util');

const root = join(__dirname, '..');
const nativeTargets = ['terms', 'kernels'];
const formats = ['safetensors', 'npy', 'npz', 'job', 'manifest'];
const all = [...nativeTargets, ...formats];

function fail(text) {
  console.error(`fuzz: ${text}`);
  process.exit(2);
}

function natural(text, name) {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  return fail(`expected an integer of at least 0 for --${name} but received ${text}`);
}

function options() {
  let values;
  try {
    ({ values } = parseArgs({
      options: {
        target: { type: 'string', default: 'all' },
        seconds: { type: 'string', default: '60' },
        seed: { type: 'string' },
        plain: { type: 'boolean', default: false },
        jobs: { type: 'string', default: '1' },
      },
    }));
  } catch (error) {
    return fail(error.message);
  }
  const targets = values.target.split(',').flatMap((name) => (name === 'all' ? all : [name]));
  const unknown = targets.find((name) => ![...all, 'formats'].includes(name));
  if (unknown !== undefined) {
    return fail(`expected all, formats or some of ${all.join(',')} for --target but received ${unknown}`);
  }
  return {
    targets: [...new Set(targets)],
    seconds: natural(values.seconds, 'seconds'),
    seed: natural(values.seed ?? String(Date.now() % 1_000_000_000), 'seed'),
    plain: values.plain,
    jobs: Math.max(1, natural(values.jobs, 'jobs')),
  };
}

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] });
  if (error) fail(`${command} does not start: ${error.message}`);
  if (status !== 0) fail(`${command} ${args.join(' ')} ended with ${status}`);
}

/** Builds native targets; the folder that they are in. Plain ones share the objects of the native tests. */
function build(targets, plain) {
  const folder = plain ? 'build-tests' : 'build-fuzz';
  const compiler = plain ? [] : ['-DCMAKE_CXX_COMPILER=clang++'];
  if (!plain && spawnSync('clang++', ['--version'], { stdio: 'ignore' }).status !== 0) {
    fail('guided fuzzing needs clang (apt-get install clang libclang-rt-14-dev); --plain does without');
  }
  run(
    'cmake',
    '-S',
    root,
    '-B',
    folder,
    '-DATTENTION_BIAS_FUZZ=ON',
    '-DATTENTION_BIAS_CUDA=off',
    ...compiler,
  );
  const names = targets.map((target) => `fuzz_${target}`);
  run('cmake', '--build', folder, '--parallel', String(availableParallelism()), '--target', ...names);
  return folder;
}

/** The command of a target, what it prints of its inputs, and where it keeps those that fail. */
function command(target, { seconds, seed, plain }, folder) {
  const keep = join('out', 'fuzz', target);
  mkdirSync(join(root, keep), { recursive: true });
  const corpus = join('test', 'fuzz', 'corpus', target);
  if (!nativeTargets.includes(target)) {
    const args = ['--format', target === 'formats' ? 'all' : target, '--seconds', seconds, '--seed', seed];
    return { file: process.execPath, args: ['test/fuzz/formats.cjs', ...args, '--keep', keep], keep };
  }
  const file = join(root, folder, `fuzz_${target}`);
  if (plain) return { file, args: [`-seed=${seed}`, `-seconds=${seconds}`, `-keep=${keep}`, corpus], keep };
  // libFuzzer adds what it finds to the first folder.
  const found = join(keep, 'found');
  mkdirSync(join(root, found), { recursive: true });
  const limits = [`-max_total_time=${seconds}`, '-max_len=512', '-timeout=60', '-rss_limit_mb=4096'];
  const words = ['-print_final_stats=1', `-artifact_prefix=${keep}/`, `-seed=${seed || 1}`];
  return { file, args: [...limits, ...words, found, corpus], keep };
}

function inputsOf(log) {
  const guided = /number_of_executed_units: (\d+)/.exec(log);
  return guided ? `${guided[1]} inputs` : (log.trim().split('\n').at(-1) ?? 'nothing');
}

/** Runs a target; whether it found nothing. */
async function fuzz(target, settings, folder) {
  const { file, args, keep } = command(target, settings, folder);
  const logPath = join(root, keep, 'log.txt');
  const log = openSync(logPath, 'w');
  const started = Date.now();
  const child = spawn(file, args.map(String), { cwd: root, stdio: ['ignore', log, log] });
  const [status, signal] = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, name) => resolve([code, name]));
  });
  closeSync(log);
  const text = readFileSync(logPath, 'utf8');
  const seconds = ((Date.now() - started) / 1000).toFixed(0);
  const good = status === 0;
  console.log(`${target}: ${inputsOf(text)}, ${seconds} s: ${good ? 'passed' : 'FAILED'}`);
  if (good) return true;
  console.error(text.trimEnd().split('\n').slice(-40).join('\n'));
  const how = signal ? `was ended by ${signal}` : `ended with ${status}`;
  console.error(
    `${target} ${how}; the input and the log are in ${relative(process.cwd(), join(root, keep))}`,
  );
  return false;
}

async function main() {
  const settings = options();
  const native = settings.targets.filter((target) => nativeTargets.includes(target));
  const folder = native.length > 0 ? build(native, settings.plain) : undefined;
  console.log(`seed ${settings.seed}, ${settings.seconds} s each, ${settings.plain ? 'plain' : 'guided'}`);
  const waiting = [...settings.targets];
  let failed = 0;
  await Promise.all(
    Array.from({ length: settings.jobs }, async () => {
      for (let target = waiting.shift(); target !== undefined; target = waiting.shift()) {
        if (!(await fuzz(target, settings, folder))) failed += 1;
      }
    }),
  );
  process.exitCode = failed === 0 ? 0 : 1;
}

void main();
