// What follows the attention kernel: parts of keys joined, and rows with NaN done over.
//
// merge_kernel joins the parts of a row by their states, in the parts' order, so that the same inputs give
// the same bits; a warp a row. It moves (splits + 1)·Dv + 3·splits floats a row, bound by memory.
//
// repair_kernel recomputes rows whose result is NaN, a block a row, in plain float32. In the tiled kernels a
// hidden key's NaN or infinite value times its probability 0 is NaN too, and so is an infinite key times the
// lower half of a split query; here a hidden pair is left out, and a product is one product. Where nothing is
// NaN a block only reads its row's result. Slow where it works, and it hardly ever does.
#pragma once

#include "cuda/attention_row.cuh"

namespace attention_bias::cuda {

struct MergeArguments {
  const float* partial;        // [splits][rows, Dv]
  const SoftmaxState* states;  // [splits][rows]
  float* out;                  // [rows, Dv]
  float* lse;                  // [rows]
  int64_t rows;                // B·H·Q
  int32_t splits, value_dim;
  bool natural;  // the unit of bases
};

constexpr int kMergeThreads = 128;
constexpr int kMergeRows = kMergeThreads / kWarpLanes;

AB_KERNEL void AB_LAUNCH_BOUNDS(kMergeThreads, 1) merge_kernel(const MergeArguments a) {
  const int64_t row = static_cast<int64_t>(block_x()) * kMergeRows + warp_index();
  if (row >= a.rows) return;
  merge_row(a.states + row, a.rows, a.partial + row * a.value_dim, a.rows * a.value_dim, a.splits,
            a.value_dim, a.natural, a.out + row * a.value_dim, a.lse + row);
}

constexpr int kRepairThreads = 128;
constexpr int kRepairWarps = kRepairThreads / kWarpLanes;
constexpr size_t kRepairSharedBytes = (kRepairWarps + 1) * sizeof(float);

// The sum, or the greatest that is not NaN, of what the block's threads passed; the same for all of them.
template <class Join>
AB_DEVICE float join_block(float value, float* shared, Join join) {
  AB_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) value = join(value, shuffle_xor(value, mask));
  barrier();  // the words may be in use by the call before
  if (lane_index() == 0) shared[warp_index()] = value;
  barrier();
  value = shared[0];
  for (int warp = 1; warp < kRepairWarps; ++warp) value = join(value, shared[warp]);
  return value;
}

// Of arguments whose out and lse are those of the result.
AB_KERNEL void AB_LAUNCH_BOUNDS(kRepairThreads, 1) repair_kernel(const AttentionArguments a) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int64_t row = block_x();
  const int64_t bh = row / a.queries;
  const int32_t q = static_cast<int32_t>(row - bh * a.queries);
  float* out = a.out + row * a.value_dim;
  bool bad = false;
  for (int d = thread_index(); d < a.value_dim; d += kRepairThreads) bad |= out[d] != out[d];
  bad |= a.lse[row] != a.lse[row];
  if (!any_in_block(bad)) return;

  const int64_t b = bh / a.heads, h = bh % a.heads;
  const uint64_t all = all_terms(a.term_count);
  const float* query = a.query + row * a.head_dim;
  const int64_t first_key = bh * a.keys;
  // In the unit of scores; −∞ where the pair is hidden, of which `hidden` tells.
  const auto score = [&](int32_t k, bool* hidden) {
    const float bias = bias_of(a.terms, all, b, h, q, k);
    *hidden = bias == negative_infinity();
    float dot = 0.0f;
    for (int d = 0; d < a.head_dim; ++d)
      dot += query[d] * a.scale * a.key.at((first_key + k) * a.head_dim + d);
    return *hidden ? negative_infinity() : dot + to_unit(bias, a.natural);
  };
  const auto greater = [](float x, float y) { return __builtin_fmaxf(x, y); };
  const auto plus = [](float x, float y) { return x + y; };

  float greatest = negative_infinity(), visible = 0.0f;
  for (int32_t k = thread_index(); k < a.keys; k += kRepairThreads) {
    bool hidden;
    const float s = score(k, &hidden);
    if (hidden) continue;
    greatest = __builtin_fmaxf(greatest, s);
    visible = 1.0f;
  }
  greatest = join_block(greatest, shared, greater);
  visible = join_block(visible, shared, greater);
  const float base = greatest == negative_infinity() ? 0.0f : greatest;
  float sum = 0.0f;
  for (int32_t k = thread_index(); k < a.keys; k += kRepairThreads) {
    bool hidden;
    const float s = score(k, &hidden);
    if (!hidden) sum += exponential(s - base, a.natural);
  }
  const SoftmaxState state = {base, join_block(sum, shared, plus), visible != 0.0f};
  const float scale = output_scale(state);
  for (int d = 0; d < a.value_dim; ++d) {
    float part = 0.0f;
    for (int32_t k = thread_index(); k < a.keys; k += kRepairThreads) {
      bool hidden;
      const float s = score(k, &hidden);
      if (!hidden) part += exponential(s - base, a.natural) * a.value.at((first_key + k) * a.value_dim + d);
    }
    part = join_block(part, shared, plus);
    if (thread_index() == 0) out[d] = part * scale;
  }
  if (thread_index() == 0) a.lse[row] = log_sum_exp_of_unit(state, a.natural);
}

}  // namespace attention_bias::cuda
