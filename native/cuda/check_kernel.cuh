// Checks of tensors' values on the device: for each check the first element outside its range. A block looks
// at runs of a tensor; it reads 4 bytes an element once, and where nothing is wrong that is all.
#pragma once

#include "cuda/device.cuh"

namespace attention_bias::cuda {

struct RangeCheck {
  const float* data;
  int64_t count;
  float low, high;
};

constexpr int kCheckThreads = 256;
constexpr int kCheckBlocks = 64;  // a check
constexpr size_t kCheckSharedBytes = kCheckThreads * sizeof(int64_t);

// found[check][block]: the least index that the block found, or the tensor's count.
AB_KERNEL void AB_LAUNCH_BOUNDS(kCheckThreads, 1) check_kernel(const RangeCheck* checks, int64_t* found) {
  const RangeCheck check = checks[block_y()];
  int64_t first = check.count;
  for (int64_t i = static_cast<int64_t>(block_x()) * kCheckThreads + thread_index(); i < check.count;
       i += kCheckBlocks * kCheckThreads) {
    if (check.data[i] >= check.low && check.data[i] <= check.high) continue;
    first = i;
    break;
  }
  int64_t* shared = reinterpret_cast<int64_t*>(shared_memory());
  shared[thread_index()] = first;
  const bool any = any_in_block(first != check.count);
  if (thread_index() != 0) return;
  for (int i = 1; any && i < kCheckThreads; ++i) first = shared[i] < first ? shared[i] : first;
  found[block_y() * kCheckBlocks + block_x()] = first;
}

}  // namespace attention_bias::cuda
