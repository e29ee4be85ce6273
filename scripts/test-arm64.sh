#!/usr/bin/env bash
# The CPU backend on arm64: the prebuilt package's build, with its native test, run by qemu.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build-arm64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static -DATTENTION_BIAS_TESTS=ON \
  -DATTENTION_BIAS_CUDA=off > /dev/null
cmake --build build-arm64 --parallel "$(nproc)" --target cpu_test
qemu-aarch64 build-arm64/cpu_test quick
