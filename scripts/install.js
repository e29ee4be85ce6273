// Builds the addon: with cmake-js where CMake is there (CUDA too where a toolkit works), else with npm's own node-gyp and
// binding.gyp (CPU backend only). Downloads nothing. ATTENTION_BIAS_BUILD=cmake|gyp|skip forces a way.
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const { availableParallelism } = require('node:os');
const { dirname, join } = require('node:path');

const root = join(__dirname, '..');
const say = (text) => process.stderr.write(`attention-bias: ${text}\n`);

function fail(text) {
  say(text);
  process.exit(1);
}

const works = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;

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

/** Headers that lie beside this node, so that node-gyp need not download them. */
function nodeDirectory() {
  const prefix = join(dirname(process.execPath), '..');
  return existsSync(join(prefix, 'include/node/node_api.h')) ? [`--nodedir=${prefix}`] : [];
}

function withCmake() {
  const cmakeJs = require.resolve('cmake-js/bin/cmake-js');
  const jobs = String(availableParallelism());
  // `rebuild`, since `build` reuses a stale cache: of another Node.js, or of a toolkit that is gone.
  return run(process.execPath, [cmakeJs, 'rebuild', '--directory', root, '--parallel', jobs]);
}

function withGyp() {
  const script = nodeGyp();
  if (!script) return 'npm brings no node-gyp here';
  return run(process.execPath, [script, 'rebuild', '--directory', root, '--jobs', 'max', ...nodeDirectory()]);
}

function main() {
  const way = process.env.ATTENTION_BIAS_BUILD || (works('cmake', '--version') ? 'cmake' : 'gyp');
  if (way === 'skip') return say('ATTENTION_BIAS_BUILD=skip: the addon is not built');
  if (way !== 'cmake' && way !== 'gyp') {
    fail(`expected cmake, gyp or skip for ATTENTION_BIAS_BUILD but received ${way}`);
  }
  if (!works(process.env.CXX || 'c++', '--version') && !works('g++', '--version')) {
    fail(
      'no C++ compiler was found. On Debian and Ubuntu: apt-get install g++ make; then: npm rebuild attention-bias',
    );
  }
  say(way === 'cmake' ? 'building with CMake' : 'building with node-gyp, the CPU backend only');
  const problem = way === 'cmake' ? withCmake() : withGyp();
  if (problem) {
    fail(
      `the build failed (${problem}); its first error above names the cause. ` +
        `Needed: a C++17 compiler (GCC 11 or Clang 14 and later) and make, or CMake 3.18 and later` +
        (way === 'gyp' ? ' (apt-get install g++ make python3)' : '; ATTENTION_BIAS_CUDA=off leaves CUDA out'),
    );
  }
  const built = join(root, 'build/Release/attention_bias.node');
  if (!existsSync(built)) fail(`the build ended without ${built}`);
}

main();
