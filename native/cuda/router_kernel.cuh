// The adaptive query router, a warp an output: sigmoid(features·weightᵀ + bias), summed in float64. 900
// queries of 256 features and two modalities are 0.9 MB read and 0.9 M multiply-adds: bound by latency.
#pragma once

#include <cstdint>

#include "core/operations.h"
#include "core/router.h"
#include "cuda/device.cuh"

namespace attention_bias::cuda {

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

// features·weight + bias of one row and output, in every lane of a warp.
AB_DEVICE double router_logit(const RouterProblem& p, int64_t row, int64_t output) {
  double sum = 0;
  for (int64_t i = lane_index(); i < p.features; i += kWarpLanes) {
    sum += static_cast<double>(p.input[row * p.features + i]) * p.weight[output * p.features + i];
  }
  AB_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor_double(sum, mask);
  return sum + p.bias[output];
}

// Of a problem whose tensors are the device's.
AB_KERNEL void AB_LAUNCH_BOUNDS(kRouterThreads, 1) router_kernel(const RouterProblem p) {
  const int64_t index = static_cast<int64_t>(block_x()) * kRouterWarps + warp_index();
  if (index >= p.rows * p.outputs) return;
  const int64_t row = index / p.outputs, output = index % p.outputs;
  const double z = router_logit(p, row, output);
  if (lane_index() == 0) p.out[p.out_index(row, output)] = static_cast<float>(1 / (1 + exp(-z)));
}

// Of the gradients: delta [rows, outputs], a warp an element.
AB_KERNEL void AB_LAUNCH_BOUNDS(kRouterThreads, 1)
    router_delta_kernel(const RouterBackwardProblem problem, float* delta) {
  const RouterProblem& p = problem.router;
  const int64_t index = static_cast<int64_t>(block_x()) * kRouterWarps + warp_index();
  if (index >= p.rows * p.outputs) return;
  const int64_t row = index / p.outputs, output = index % p.outputs;
  const double z = router_logit(p, row, output);
  if (lane_index() == 0) delta[index] = router_delta(z, problem.grad_out[p.out_index(row, output)]);
}

// The rest, a thread an element: those of features, then those of weight and bias, whose rows are summed up
// in their order.
AB_KERNEL void AB_LAUNCH_BOUNDS(kRouterThreads, 1)
    router_backward_kernel(const RouterBackwardProblem problem, const float* delta) {
  const RouterProblem& p = problem.router;
  int64_t index = static_cast<int64_t>(block_x()) * kRouterThreads + thread_index();
  if (index < p.rows * p.features) {
    problem.grad_features[index] = router_grad_feature(p, delta, index / p.features, index % p.features);
    return;
  }
  index -= p.rows * p.features;
  const int64_t m = index / (p.features + 1), i = index % (p.features + 1);
  if (m < p.outputs) *router_grad_place(problem, m, i) = router_grad_weight(p, delta, m, i);
}

}  // namespace attention_bias::cuda
