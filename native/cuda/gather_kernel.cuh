// Biased attention forward where the terms bound the keys of a row to few (Program::key_bound): only those
// are visited, a warp or several a row (b, h, q).
//
// The row's warps first list its candidate keys in shared memory, in closed form from the bound. Then each
// takes chunks of 32: every lane evaluates the remaining terms for one key, exactly as the reference has it,
// so that a hidden key's data are never read and no NaN of theirs needs repair; kLanes lanes read a key's row
// together, 16 bytes each, so that a row of head dim 32 is one line of 128 bytes; eight rows are under way at
// once. Their partial products are summed by a butterfly that leaves each lane the score of its own key. The
// softmax base moves a chunk at a time, and P·V is summed within a chunk before it joins the running output,
// so that sums stay short. Arithmetic is float32 in every precision: a row has too few keys for tensor cores.
//
// A block is 8 warps: 8 neighbouring rows of one head, whose keys often are the same (then from L1), or fewer
// rows of 2, 4 or 8 warps where there are few rows or many keys. Blocks go head by head, so that the keys and
// values of one or a few heads stay in L2.
//
// Work at CMT's local attention (1×8×900×56,400×32, windows of 5×5 BEV and 15×15 image cells: at most 250
// keys): 1.8 M scores, 0.23 GFLOP and 1.8 M exp2, against 52 GFLOP; each key and value row is 256 bytes, so
// 461 MB from L2 or L1, and from memory what any query sees, at most 115 MB. L2 is the bound: about 80 µs at
// 5.5 TB/s, less by what neighbours share. Not yet measured on hardware. Registers a thread, budget: 128, so
// 16 warps an SM, which have 64 KB under way; 5.5 TB/s at 700 ns of latency ask for 29 KB.
#pragma once

#include "cuda/attention_row.cuh"

namespace attention_bias::cuda {

constexpr int kGatherWarps = 8;
constexpr int kGatherThreads = kGatherWarps * kWarpLanes;

// Shared memory: [rows of a block][most_keys] candidates, then each warp's state and output.
constexpr size_t gather_shared_bytes(int64_t most_keys, int warps_per_row, int64_t value_dim) {
  return static_cast<size_t>(kGatherWarps / warps_per_row * most_keys) * sizeof(int32_t) +
         kGatherWarps * (sizeof(SoftmaxState) + static_cast<size_t>(value_dim) * sizeof(float));
}

AB_DEVICE void add_product(Float4* sum, float factor, const Float4& x) {
  sum->x += factor * x.x;
  sum->y += factor * x.y;
  sum->z += factor * x.z;
  sum->w += factor * x.w;
}

// One warp's part of a row.
template <int kDim>
class GatherRow {
  static constexpr int kLanes = kDim < 4 * kWarpLanes ? kDim / 4 : kWarpLanes;  // that share a key's row
  static constexpr int kVectors = kDim / (4 * kLanes);                          // of 4 columns a lane
  static constexpr int kBatch = 8 / kVectors;                                   // rows under way at once
  static_assert(kLanes % kBatch == 0, "whole batches");

 public:
  AB_DEVICE GatherRow(const AttentionArguments& a, int64_t row)
      : a_(a),
        lane_(lane_index() % kLanes),
        first_lane_(lane_index() - lane_),
        first_key_(row / a.queries * a.keys) {
    const HeadRows query = {a.query, DType::kFloat32};
    AB_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const Float4 x = load_columns(query, row, column(v), a.head_dim);
      query_[v] = {x.x * a.scale, x.y * a.scale, x.z * a.scale, x.w * a.scale};
    }
  }

  // One chunk: a key of each lane and its bias; a key of −1 is hidden.
  AB_DEVICE void attend(int32_t key, float bias) {
    const float dot = product(key);  // all lanes work on it
    const float score = key < 0 ? negative_infinity() : dot + to_unit(bias, a_.natural);
    float greatest = score;  // fmax passes over NaN
    AB_UNROLL
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
      greatest = __builtin_fmaxf(greatest, shuffle_xor(greatest, mask));
    }
    const float moved = __builtin_fmaxf(greatest_, greatest);
    const float base = moved == negative_infinity() ? 0.0f : moved;
    const float factor = exponential(greatest_ - base, a_.natural);
    const float probability = key < 0 ? 0.0f : exponential(score - base, a_.natural);
    greatest_ = moved;
    sum_ = sum_ * factor + probability;
    seen_ = true;
    add_values(key, probability, factor);
  }

  // Leaves the part in shared memory: the state, and output[value_dim].
  AB_DEVICE void finish(SoftmaxState* state, float* output) {
    AB_UNROLL
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) sum_ += shuffle_xor(sum_, mask);
    if (lane_index() == 0) *state = {greatest_ == negative_infinity() ? 0.0f : greatest_, sum_, seen_};
    AB_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      Float4& x = output_[v];
      AB_UNROLL
      for (int mask = kWarpLanes / 2; mask >= kLanes; mask /= 2) {
        x.x += shuffle_xor(x.x, mask);
        x.y += shuffle_xor(x.y, mask);
        x.z += shuffle_xor(x.z, mask);
        x.w += shuffle_xor(x.w, mask);
      }
      if (first_lane_ != 0) continue;
      const int d = column(v);
      if (d < a_.value_dim) output[d] = x.x;
      if (d + 1 < a_.value_dim) output[d + 1] = x.y;
      if (d + 2 < a_.value_dim) output[d + 2] = x.z;
      if (d + 3 < a_.value_dim) output[d + 3] = x.w;
    }
  }

 private:
  AB_DEVICE int column(int v) const { return 4 * (v * kLanes + lane_); }

  // query·key of each lane's own key.
  AB_DEVICE float product(int32_t key) const {
    float own = 0.0f;
    AB_NO_UNROLL
    for (int batch = 0; batch < kLanes; batch += kBatch) {
      Float4 rows[kBatch][kVectors];
      AB_UNROLL
      for (int i = 0; i < kBatch; ++i)
        load(a_.key, a_.head_dim, shuffle(key, first_lane_ + batch + i), rows[i]);
      float sums[kBatch];
      AB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        sums[i] = 0.0f;
        AB_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          sums[i] += query_[v].x * rows[i][v].x;
          sums[i] += query_[v].y * rows[i][v].y;
          sums[i] += query_[v].z * rows[i][v].z;
          sums[i] += query_[v].w * rows[i][v].w;
        }
      }
      // Each step halves the sums that a lane holds and doubles the lanes that a sum is of.
      AB_UNROLL
      for (int half = kBatch / 2; half > 0; half /= 2) {
        const bool upper = (lane_ & half) != 0;
        AB_UNROLL
        for (int i = 0; i < half; ++i) {
          const float other = shuffle_xor(upper ? sums[i] : sums[i + half], half);
          sums[i] = (upper ? sums[i + half] : sums[i]) + other;
        }
      }
      AB_UNROLL
      for (int mask = kBatch; mask < kLanes; mask *= 2) sums[0] += shuffle_xor(sums[0], mask);
      if (lane_ / kBatch * kBatch == batch) own = sums[0];
    }
    return own;
  }

  // output = output·factor + Σ probability·value of the chunk
  AB_DEVICE void add_values(int32_t key, float probability, float factor) {
    Float4 sum[kVectors] = {};
    AB_NO_UNROLL
    for (int batch = 0; batch < kLanes; batch += kBatch) {
      Float4 rows[kBatch][kVectors];
      AB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        load(a_.value, a_.value_dim, shuffle(key, first_lane_ + batch + i), rows[i]);
      }
      AB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const float p = shuffle(probability, first_lane_ + batch + i);
        AB_UNROLL
        for (int v = 0; v < kVectors; ++v) add_product(&sum[v], p, rows[i][v]);
      }
    }
    AB_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      add_product(&sum[v], factor, output_[v]);
      output_[v] = sum[v];
    }
  }

  // This lane's columns of a key's row; zeros for a hidden one.
  AB_DEVICE void load(const HeadRows& tensor, int32_t columns, int32_t key, Float4 (&row)[kVectors]) const {
    AB_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      row[v] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (key >= 0) row[v] = load_columns(tensor, first_key_ + key, column(v), columns);
    }
  }

  const AttentionArguments& a_;
  int lane_, first_lane_;  // among those that share a row, and the first of them in the warp
  int64_t first_key_;      // of the row's head
  Float4 query_[kVectors];
  Float4 output_[kVectors] = {};  // of this lane's group of lanes
  float greatest_ = negative_infinity();
  float sum_ = 0.0f;  // of this lane's keys
  bool seen_ = false;
};

template <int kDim>
AB_KERNEL void AB_LAUNCH_BOUNDS(kGatherThreads, 2)
    gather_kernel(const AttentionArguments a, const KeyBound bound, const int warps_per_row) {
  const int rows = kGatherWarps / warps_per_row;  // of the block
  const int slot = warp_index() / warps_per_row, part = warp_index() % warps_per_row;
  const int64_t row = static_cast<int64_t>(block_x()) * rows + slot;
  const bool has_row = row < a.rows * a.queries;
  const int64_t bh = row / a.queries, b = bh / a.heads, h = bh % a.heads;
  const int32_t q = static_cast<int32_t>(row - bh * a.queries);
  int32_t* keys = reinterpret_cast<int32_t*>(shared_memory()) + slot * bound.most_keys;
  SoftmaxState* states =
      reinterpret_cast<SoftmaxState*>(shared_memory() + rows * bound.most_keys * sizeof(int32_t));
  float* outputs = reinterpret_cast<float*>(states + kGatherWarps);
  const int first = part * kWarpLanes + lane_index(), step = warps_per_row * kWarpLanes;
  const auto wait_for_row = [&] { warps_per_row == 1 ? warp_barrier() : barrier(); };

  int32_t count = 0;
  if (has_row) {
    visible_runs(bound, a.terms, {b, h, q, q + 1, 0, a.keys}, q, [&](int32_t begin, int32_t end) {
      for (int32_t k = begin + first; k < end; k += step) keys[count + k - begin] = k;
      count += end - begin;
    });
  }
  wait_for_row();
  if (has_row) {
    GatherRow<kDim> gather(a, row);
    for (int32_t chunk = part * kWarpLanes; chunk < count; chunk += step) {
      const int32_t at = chunk + lane_index();
      int32_t key = at < count ? keys[at] : -1;
      const float bias = key < 0 ? negative_infinity() : bias_of(a.terms, bound.rest, b, h, q, key);
      if (bias == negative_infinity()) key = -1;
      if (any_in_warp(key >= 0)) gather.attend(key, bias);
    }
    gather.finish(states + warp_index(), outputs + warp_index() * a.value_dim);
  }
  wait_for_row();
  if (has_row && part == 0) {
    merge_row(states + warp_index(), 1, outputs + warp_index() * a.value_dim, a.value_dim, warps_per_row,
              a.value_dim, a.natural, a.out + row * a.value_dim, a.lse + row);
  }
}

}  // namespace attention_bias::cuda
