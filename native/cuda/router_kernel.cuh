// The adaptive query router, a warp an output: sigmoid(features·weightᵀ + bias), summed in float64. 900
// queries of 256 features and two modalities are 0.9 MB read and 0.9 M multiply-adds: bound by latency.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace attention_bias::cuda {

struct RouterArguments {
  const float* features;  // [rows, E]
  const float* weight;    // [M, E]
  const float* bias;      // [M]
  float* out;             // [rows, M]
  int64_t rows, size, outputs;
};

constexpr int kRouterThreads = 128;
constexpr int kRouterWarps = kRouterThreads / kWarpLanes;

AB_DEVICE double shuffle_xor_double(double value, int mask) {
  uint32_t words[2];
  __builtin_memcpy(words, &value, 8);
  words[0] = shuffle_xor(words[0], mask);
  words[1] = shuffle_xor(words[1], mask);
  __builtin_memcpy(&value, words, 8);
  return value;
}

AB_KERNEL void AB_LAUNCH_BOUNDS(kRouterThreads, 1) router_kernel(const RouterArguments a) {
  const int64_t index = static_cast<int64_t>(block_x()) * kRouterWarps + warp_index();
  if (index >= a.rows * a.outputs) return;
  const int64_t row = index / a.outputs, output = index % a.outputs;
  double sum = 0;
  for (int64_t i = lane_index(); i < a.size; i += kWarpLanes) {
    sum += static_cast<double>(a.features[row * a.size + i]) * a.weight[output * a.size + i];
  }
  AB_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor_double(sum, mask);
  if (lane_index() == 0) a.out[index] = static_cast<float>(1 / (1 + exp(-(sum + a.bias[output]))));
}

}  // namespace attention_bias::cuda
