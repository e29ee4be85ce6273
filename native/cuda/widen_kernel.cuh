// bfloat16 to float32, exactly: for kernels that read float32. A thread makes 8 numbers, 16 bytes read and 32
// written, bound by memory. Not yet measured on hardware.
#pragma once

#include "core/terms.h"
#include "cuda/device.cuh"

namespace attention_bias::cuda {

constexpr int kWidenRun = 8;
constexpr int kWidenThreads = 256;

AB_KERNEL void AB_LAUNCH_BOUNDS(kWidenThreads, 1)
    widen_kernel(const uint16_t* from, float* to, int64_t count) {
  const int64_t i = (static_cast<int64_t>(block_x()) * kWidenThreads + thread_index()) * kWidenRun;
  // Of a piece of a tensor, which may begin anywhere.
  const bool aligned = ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) & 15) == 0;
  if (aligned && i + kWidenRun <= count) {
    const Float4 packed = load_16(reinterpret_cast<const float*>(from + i));
    uint16_t bits[kWidenRun];
    __builtin_memcpy(bits, &packed, sizeof bits);
    float x[kWidenRun];
    AB_UNROLL
    for (int j = 0; j < kWidenRun; ++j) x[j] = bf16_to_float(bits[j]);
    store_16(to + i, {x[0], x[1], x[2], x[3]});
    store_16(to + i + 4, {x[4], x[5], x[6], x[7]});
  } else {
    for (int64_t j = i; j < count && j < i + kWidenRun; ++j) to[j] = bf16_to_float(from[j]);
  }
}

}  // namespace attention_bias::cuda
