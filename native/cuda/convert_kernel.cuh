// Between float32 and bfloat16, for kernels that read the one or the other. A thread makes a run of 8
// elements, in 16-byte accesses where rows lie so; bound by memory. K and V of CMT's shape (1×8×56,400×32
// each) from float32 are 115 MB read and 58 MB written, 52 µs at 3.35 TB/s. Not yet measured on hardware.
#pragma once

#include "core/operations.h"
#include "cuda/device.cuh"

namespace attention_bias::cuda {

constexpr int kConvertRun = 8;
constexpr int kConvertThreads = 256;

// Elements from `first` on, exactly, in float32.
AB_KERNEL void AB_LAUNCH_BOUNDS(kConvertThreads, 1)
    widen_kernel(const uint16_t* from, float* to, int64_t first, int64_t end) {
  const int64_t i =
      first + (static_cast<int64_t>(block_x()) * kConvertThreads + thread_index()) * kConvertRun;
  if (i % kConvertRun == 0 && i + kConvertRun <= end) {
    const Float4 packed = load_16(reinterpret_cast<const float*>(from + i));
    uint16_t bits[kConvertRun];
    __builtin_memcpy(bits, &packed, sizeof bits);
    float x[kConvertRun];
    AB_UNROLL
    for (int j = 0; j < kConvertRun; ++j) x[j] = bf16_to_float(bits[j]);
    store_16(to + i, Float4{x[0], x[1], x[2], x[3]});
    store_16(to + i + 4, Float4{x[4], x[5], x[6], x[7]});
  } else {
    for (int64_t j = i; j < end && j < i + kConvertRun; ++j) to[j] = bf16_to_float(from[j]);
  }
}

// Rows [first_row, …) of `columns` elements as bfloat16, rounded to nearest even and padded with zeros to
// `runs_of_row` runs, so that the attention kernel copies every row in runs of 16 bytes. `runs` of all these
// rows.
AB_KERNEL void AB_LAUNCH_BOUNDS(kConvertThreads, 1)
    narrow_kernel(const HeadRows from, uint16_t* to, int64_t first_row, int64_t runs, int32_t runs_of_row,
                  int32_t columns) {
  int64_t run = static_cast<int64_t>(block_x()) * kConvertThreads + thread_index();
  if (run >= runs) return;
  run += first_row * runs_of_row;
  uint32_t words[4];
  if (columns % kConvertRun == 0 && from.dtype == DType::kFloat32) {  // nothing is padded: the rows are one
    const float* at = from.f32() + run * kConvertRun;
    const Float4 first = load_16(at), second = load_16(at + 4);
    words[0] = pack_bf16(first.x, first.y);
    words[1] = pack_bf16(first.z, first.w);
    words[2] = pack_bf16(second.x, second.y);
    words[3] = pack_bf16(second.z, second.w);
  } else {
    const int64_t row = run / runs_of_row;
    const int32_t column = static_cast<int32_t>(run - row * runs_of_row) * kConvertRun;
    const auto at = [&](int i) { return column + i < columns ? from.at(row * columns + column + i) : 0.0f; };
    AB_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = pack_bf16(at(2 * i), at(2 * i + 1));
  }
  store_16(to + run * kConvertRun, words);
}

}  // namespace attention_bias::cuda
