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
  a.scale = static_cast<float>(a.natural ? p.scale : p.scale * kExactLog2e);
  return a;
}

// Calls f with the tile of the least compiled head dim that is enough for `dim`. To head dim 64 a warp takes
// 32 queries, so that each fragment of keys and values serves two products and a block of 128 queries reads K
// and V from L2 half as often; where all queries fit 64 rows, as Swin's 49 do, that would leave half of the
// warps without any.
template <Precision kPrecision, class F>
void with_attention_tile(int64_t dim, int64_t queries, F&& f) {
  const bool few = queries <= 64;
  if (dim <= 32) return few ? f(AttentionTile<32, kPrecision, 1>()) : f(AttentionTile<32, kPrecision, 2>());
  if (dim <= 64) return few ? f(AttentionTile<64, kPrecision, 1>()) : f(AttentionTile<64, kPrecision, 2>());
  if (dim <= 96) return f(AttentionTile<96, kPrecision, 1>());
  if (dim <= 128) return f(AttentionTile<128, kPrecision, 1>());
  if (dim <= 192) return f(AttentionTile<192, kPrecision, 1>());
  if (dim <= 256) return f(AttentionTile<256, kPrecision, 1>());
  throw expected(ErrorCode::kShape, "head dims of at most 256", "query and value", std::to_string(dim));
}

// How an attention is cut: blocks of queries, and runs of keys. By the shape and the device only, so that the
// same call gives the same bits.
struct AttentionCut {
  Grid grid;
  int splits;
  int32_t keys_per_split;
};

// `rows` queries a block, of which `slots` run at a time.
inline AttentionCut cut_attention(const AttentionProblem& p, int rows, int64_t slots) {
  const Extent& e = p.extent;
  const int64_t blocks = e.batch * e.heads * ceil_div(e.queries, rows);
  if (blocks >= (int64_t{1} << 31)) {
    throw expected(ErrorCode::kShape, "fewer than 2^31 tiles of queries", "query", std::to_string(blocks));
  }
  constexpr int64_t kPartialBytes = 256 * 1024 * 1024;
  // Longer sums lose accuracy: of floats in f32, else within the tensor cores, which cut bits off.
  const int64_t most_keys = p.precision == Precision::kF32 ? 8192 : 65536;
  const int64_t row_bytes =
      e.batch * e.heads * e.queries * (p.value_dim + 3) * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::min(
      {ceil_div(e.keys, kPlanKeys), std::max<int64_t>(1, kPartialBytes / row_bytes), int64_t{65535}});
  const int64_t least = std::min(most, ceil_div(e.keys, most_keys));
  // The number of runs whose waves of blocks take the least time, in keys; a block's begin, its end and the
  // merge of its part are put at 256. More than four waves gain nothing.
  constexpr int64_t kBlockCost = 256, kWaves = 4;
  int64_t run = 0, cost = 0;
  for (int64_t splits = least; splits <= most; ++splits) {
    const int64_t candidate = ceil_div(ceil_div(e.keys, splits), kPlanKeys) * kPlanKeys;
    const int64_t waves = ceil_div(blocks * ceil_div(e.keys, candidate), slots);
    if (run != 0 && waves > kWaves) break;
    if (run != 0 && waves * (candidate + kBlockCost) >= cost) continue;
    run = candidate;
    cost = waves * (candidate + kBlockCost);
  }
  const int64_t splits = ceil_div(e.keys, run);
  return {{static_cast<int>(blocks), static_cast<int>(splits), 1},
          static_cast<int>(splits),
          static_cast<int32_t>(run)};
}

template <Precision kPrecision>
AttentionCut cut_attention_of(const AttentionProblem& p, int multiprocessors) {
  AttentionCut cut = {};
  with_attention_tile<kPrecision>(std::max(p.head_dim, p.value_dim), p.extent.queries, [&](auto tile) {
    cut = cut_attention(p, decltype(tile)::kRows, int64_t{1} * multiprocessors * decltype(tile)::kBlocks);
  });
  return cut;
}

inline AttentionCut cut_attention(const AttentionProblem& p, int multiprocessors) {
  switch (p.precision) {
    case Precision::kF32:
      return cut_attention_of<Precision::kF32>(p, multiprocessors);
    case Precision::kTf32:
      return cut_attention_of<Precision::kTf32>(p, multiprocessors);
    case Precision::kBf16:
      return cut_attention_of<Precision::kBf16>(p, multiprocessors);
  }
  __builtin_unreachable();
}

void launch_attention_f32(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments);
void launch_attention_tf32(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments);
void launch_attention_bf16(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments);

template <Precision kPrecision>
void launch_attention(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments) {
  with_attention_tile<kPrecision>(dim, arguments.queries, [&](auto tile) {
    using T = decltype(tile);
    runtime->launch(attention_kernel<T::kDim, kPrecision, T::kRowTiles>, grid, T::kThreads, T::kSharedBytes,
                    arguments);
  });
}

}  // namespace attention_bias::cuda
