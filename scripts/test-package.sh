#!/usr/bin/env bash
# Packs the package, installs the tarball into an empty project without dev dependencies, and uses it from there:
# CommonJS, ESM, types and the command line.
#
#   test-package.sh [TARBALL]: where TARBALL stands it is taken as it is, else what was packed and checked is left there
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CCACHE_BASEDIR=$work # where a compiler cache is set up (.ci/run), the same files here are the same to it

given=${1:+$(realpath -m "$1")}
tarball=$work/attention-bias.tgz
if [ -e "$given" ]; then
  cp "$given" "$tarball"
else
  cd "$root"
  mv "$work/$(npm pack --silent --pack-destination "$work" | tail -n 1)" "$tarball"
  if tar -tzf "$tarball" | grep -E '^package/(test|node_modules|build|bench/records)/'; then
    echo "the tarball holds what it should not" >&2
    exit 1
  fi
  npx publint --strict "$tarball"
  npx attw --profile node16 "$tarball"
  [ -z "$given" ] || cp "$tarball" "$given"
fi

mkdir "$work/project"
cd "$work/project"
echo '{ "name": "user", "version": "1.0.0", "private": true }' > package.json
npm install --no-audit --no-fund --foreground-scripts "$tarball"

cat > use.cjs <<'JS'
const { open, AttentionBiasError } = require('attention-bias');
const tensor = (...shape) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b)).fill(0.5) });
open().then(async (device) => {
  const { out } = await device.attention({ query: tensor(1, 1, 4, 8), key: tensor(1, 1, 9, 8), value: tensor(1, 1, 9, 8) });
  if (Math.abs(out.data[0] - 0.5) > 1e-6) throw new Error(`out is ${out.data[0]}`);
  const error = await device.attention({}).catch((e) => e);
  if (!(error instanceof AttentionBiasError)) throw new Error(`no AttentionBiasError: ${error}`);
  console.log('CommonJS:', device.info.isa, out.shape.join('x'));
});
JS
cat > use.mjs <<'JS'
import { open } from 'attention-bias';
const device = await open({ device: 'cpu', threads: 1 });
const slopes = { data: Float32Array.of(1), shape: [1] };
const bias = await device.bias({ shape: [1, 1, 2, 2], bias: [{ type: 'alibi', slopes }] });
if (bias.data.join() !== '0,-1,-1,0') throw new Error(`bias is ${bias.data.join()}`);
console.log('ESM:', bias.shape.join('x'));
device.close();
JS
cat > formats.mjs <<'JS'
import { readNpy, writeNpy } from 'attention-bias/formats';
await writeNpy('x.npy', { data: Float32Array.of(1, 2), shape: [2] });
const { data, shape } = await readNpy('x.npy');
if (`${data} ${shape}` !== '1,2 2') throw new Error(`x.npy is ${data} ${shape}`);
JS
cat > presets.mjs <<'JS'
import { alibiSlopes } from 'attention-bias/presets';
const { data } = alibiSlopes(2);
if (data.join() !== '0.0625,0.00390625') throw new Error(`slopes are ${data}`);
JS
node use.cjs
node use.mjs
node formats.mjs
node presets.mjs
npx attention-bias --version
npx attention-bias smoke
npx attention-bias demo --out demo
npx attention-bias report demo
for seed in 1 2; do echo '{"frame": "demo/scene/frame.json", "queries": 50, "seed": '$seed'}'; done > frames.jsonl
npx attention-bias pipeline frames.jsonl --out run
[ "$(tar -tf run/shards/*.tar | grep -c '\.out\.npy$')" = 2 ]
npx attention-bias bench --small > bench.json
grep -q '"way": "own"' bench.json
test -s demo/bev.png
test -s demo/report.html
echo 'package test: 1 passed, 0 failed'
