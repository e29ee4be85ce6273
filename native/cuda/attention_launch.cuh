// Launches of the attention kernels. Each precision has a file of its own, so that they compile side by side.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "cuda/attention_kernel.cuh"
#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

constexpr int64_t kMaxAttentionDim = 256;

// The arguments but for what lies in the device's memory.
inline AttentionArguments sizes_of(const AttentionProblem& p) {
  AttentionArguments a = {};
  a.rows = p.extent.batch * p.extent.heads;
  a.heads = p.extent.heads;
  a.queries = static_cast<int32_t>(p.extent.queries);
  a.keys = static_cast<int32_t>(p.extent.keys);
  a.head_dim = static_cast<int32_t>(p.head_dim);
  a.value_dim = static_cast<int32_t>(p.value_dim);
  a.natural = p.precision == Precision::kF32;
  a.scale = static_cast<float>(a.natural ? p.scale : p.scale * 1.4426950408889634);
  return a;
}

// How an attention is cut: blocks of 64 queries, and runs of keys. By the shape and the device only, so that
// the same call gives the same bits.
struct AttentionCut {
  Grid grid;
  int splits;
  int32_t keys_per_split;
};

inline AttentionCut cut_attention(const AttentionProblem& p, int multiprocessors) {
  const Extent& e = p.extent;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t blocks = e.batch * e.heads * ceil_div(e.queries, kAttentionRows);
  constexpr int64_t kBlocksPerMultiprocessor = 8;  // two at a time, four times over
  constexpr int64_t kPartialBytes = 256 * 1024 * 1024;
  constexpr int64_t kMaxRun = 8192;  // keys in f32: a longer sum loses accuracy
  const int64_t row_bytes =
      e.batch * e.heads * e.queries * (p.value_dim + 3) * static_cast<int64_t>(sizeof(float));
  int64_t splits = ceil_div(multiprocessors * kBlocksPerMultiprocessor, blocks);
  if (p.precision == Precision::kF32) splits = std::max(splits, ceil_div(e.keys, kMaxRun));
  splits = std::min(
      {splits, ceil_div(e.keys, kPlanKeys), std::max<int64_t>(1, kPartialBytes / row_bytes), int64_t{65535}});
  const int64_t run = ceil_div(ceil_div(e.keys, splits), kPlanKeys) * kPlanKeys;
  splits = ceil_div(e.keys, run);
  if (blocks >= (int64_t{1} << 31)) {
    throw expected(ErrorCode::kShape, "fewer than 2^31 tiles of 64 queries", "query", std::to_string(blocks));
  }
  return {{static_cast<int>(blocks), static_cast<int>(splits), 1},
          static_cast<int>(splits),
          static_cast<int32_t>(run)};
}

void launch_attention_f32(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments);
void launch_attention_tf32(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments);
void launch_attention_bf16(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments);

// Launches the kernel of the least compiled head dim that is enough for `dim`.
template <Precision kPrecision>
void launch_attention(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments) {
  const auto launch = [&](auto size) {
    constexpr int kDim = decltype(size)::value;
    runtime->launch(attention_kernel<kDim, kPrecision>, grid, kAttentionThreads,
                    AttentionTile<kDim, kPrecision>::kSharedBytes, arguments);
  };
  if (dim <= 32) return launch(std::integral_constant<int, 32>());
  if (dim <= 64) return launch(std::integral_constant<int, 64>());
  if (dim <= 96) return launch(std::integral_constant<int, 96>());
  if (dim <= 128) return launch(std::integral_constant<int, 128>());
  if (dim <= 192) return launch(std::integral_constant<int, 192>());
  if (dim <= 256) return launch(std::integral_constant<int, 256>());
  throw expected(ErrorCode::kShape, "head dims of at most 256", "query and value", std::to_string(dim));
}

}  // namespace attention_bias::cuda
