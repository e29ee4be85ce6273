// Builds the addon, unless the platform's prebuilt package is installed and loads: with cmake-js where CMake is there (CUDA too where a toolkit works), else with npm's own node-gyp and
// binding.gyp (CPU backend only). Downloads nothing. ATTENTION_BIAS_BUILD=cmake|gyp|skip forces a way;
// ATTENTION_BIAS_CUDA=on|off makes CUDA a must, or leaves it out; ATTENTION_BIAS_CUDA_ARCHITECTURES=90-real, say, compiles
// for one architecture instead of all.
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync, realpathSync } = require('node:fs');
const { availableParallelism } = require('node:os');
const { dirname, join } = require('node:path');

const root = join(__dirname, '..');
const say = (text) => process.stderr.write(`attention-bias: ${text}\n`);

function fail(text) {
  say(text);
  process.exit(1);
}

/** The first line that a command prints; undefined where it fails. The command is words, since CXX may be "ccache g++". */
function firstLine(command) {
  const [program, ...words] = command.trim().split(/\s+/);
  const { status, stdout } = spawnSync(program, words, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return status === 0 ? stdout.split('\n')[0] : undefined;
}

/** Whether there is a CMake of at least 3.18. */
function hasCmake() {
  const [, major, minor] = /(\d+)\.(\d+)/.exec(firstLine('cmake --version') ?? '') ?? [];
  return Number(major) > 3 || (Number(major) === 3 && Number(minor) >= 18);
}

function run(command, args) {
  const result = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (result.error) return result.error.message;
  return result.status === 0 ? undefined : `exit code ${result.status ?? result.signal}`;
}

/** node-gyp as npm brings it: npm names its script in lifecycle scripts; otherwise it lies beside npm. */
function nodeGyp() {
  const candidates = [
    process.env.npm_config_node_gyp,
    process.env.npm_execpath &&
      join(dirname(process.env.npm_execpath), '../node_modules/node-gyp/bin/node-gyp.js'),
    join(dirname(process.execPath), '../lib/node_modules/npm/node_modules/node-gyp/bin/node-gyp.js'),
  ];
  return candidates.find((path) => path && existsSync(path));
}

/** Where node's headers lie on this machine, so that node-gyp does not download them. */
function nodeDirectory() {
  const candidates = [process.env.npm_config_nodedir, join(dirname(realpathSync(process.execPath)), '..')];
  return candidates.find((folder) => folder && existsSync(join(folder, 'include/node/node_api.h')));
}

function withCmake() {
  const cmakeJs = require.resolve('cmake-js/bin/cmake-js');
  const jobs = String(availableParallelism());
  // `rebuild`, since `build` reuses a stale cache: of another Node.js, or of a toolkit that is gone.
  const variables = ['CUDA', 'CUDA_ARCHITECTURES', 'CUDA_REPORT'].map((name) => `ATTENTION_BIAS_${name}`);
  const options = variables
    .filter((name) => process.env[name])
    .map((name) => `--CD${name}=${process.env[name]}`);
  return run(process.execPath, [cmakeJs, 'rebuild', '--directory', root, '--parallel', jobs, ...options]);
}

function withGyp() {
  const script = nodeGyp();
  if (!script) return 'npm brings no node-gyp here';
  const headers = nodeDirectory();
  if (!headers) {
    return "node's headers (include/node) are not on this machine: install CMake, or name their folder by npm_config_nodedir";
  }
  return run(process.execPath, [
    script,
    'rebuild',
    '--directory',
    root,
    '--jobs',
    'max',
    `--nodedir=${headers}`,
  ]);
}

/** The prebuilt package that loads, by name. In a process of its own: a damaged file can end the one that loads it. */
function loadedPrebuilt() {
  const compiled = join(root, 'dist/native.js');
  if (!existsSync(compiled)) return undefined; // a clone, where TypeScript is compiled later
  const script = 'process.stdout.write(require(process.argv[1]).nativeOrigin())';
  const { status, stdout } = spawnSync(process.execPath, ['-e', script, compiled], {
    encoding: 'utf8',
    env: { ...process.env, ATTENTION_BIAS_BINARY: '' },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return status === 0 && stdout.startsWith('@attention-bias/') ? stdout : undefined;
}

function main() {
  const chosen = process.env.ATTENTION_BIAS_BUILD;
  if (chosen === 'skip') return say('ATTENTION_BIAS_BUILD=skip: the addon is not built');
  // By hand, or where a way is chosen, it is built in any case.
  if (process.env.npm_lifecycle_event === 'install' && !chosen && !process.env.ATTENTION_BIAS_CUDA) {
    const name = loadedPrebuilt();
    if (name) return say(`${name} is installed and loads: nothing is built`);
  }
  if (chosen && chosen !== 'cmake' && chosen !== 'gyp') {
    fail(`expected cmake, gyp or skip for ATTENTION_BIAS_BUILD but received ${chosen}`);
  }
  const cuda = process.env.ATTENTION_BIAS_CUDA;
  if (cuda && !['auto', 'on', 'off'].includes(cuda)) {
    fail(`expected auto, on or off for ATTENTION_BIAS_CUDA but received ${cuda}`);
  }
  if (![process.env.CXX, 'c++', 'g++'].some((compiler) => compiler && firstLine(`${compiler} --version`))) {
    const again = `node ${JSON.stringify(__filename)}`;
    fail(`no C++ compiler was found. On Debian and Ubuntu: apt-get install g++ make; then: ${again}`);
  }
  let way = chosen || (hasCmake() ? 'cmake' : 'gyp');
  if (way === 'gyp' && cuda === 'on')
    fail('ATTENTION_BIAS_CUDA=on needs CMake 3.18 or later (apt-get install cmake)');
  let problem = build(way);
  if (problem && way === 'cmake' && !chosen && cuda !== 'on') {
    say(`the build with CMake failed (${problem}); its first error above names the cause`);
    problem = build((way = 'gyp'));
  }
  if (problem) {
    fail(
      `the build failed (${problem}); its first error above names the cause. ` +
        'Needed: a C++17 compiler (GCC 11 or Clang 14 and later) and make, with CMake 3.18 and later or python3 ' +
        '(apt-get install g++ make python3); ATTENTION_BIAS_CUDA=off leaves CUDA out',
    );
  }
  const built = join(root, 'build/Release/attention_bias.node');
  if (!existsSync(built)) fail(`the build ended without ${built}`);
}

/** What is wrong, or undefined. */
function build(way) {
  say(way === 'cmake' ? 'building with CMake' : 'building with node-gyp, the CPU backend only');
  return way === 'cmake' ? withCmake() : withGyp();
}

main();
