// What the kernels whose lanes are queries have in common: a block of 3 vectors of queries side by side,
// packed as [d][query], against keys and values that are read where they lie. Everything is internal to the
// including file.
#pragma once

#include <cstdint>

#include "core/softmax.h"
#include "core/terms.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

constexpr int kVectors = 3;
constexpr int kQueries = kVectors * kLanes;
constexpr int kRows = kRegisters == 32 ? 8 : 4;  // keys, or value dims, of one register block
constexpr float kInfinity = __builtin_inff();

// Whether a base is beyond kFar: up to there it is folded into the start of scores.
AB_INLINE bool any_far(Vec base) {
  return any_greater(base, Vec{} + kFar) || any_greater(Vec{} - kFar, base);
}

// scores += query·key over `dims` dimensions; the head's own, and one panel more for each lowRank term.
struct Panel {
  const float* query;  // packed [dims][kQueries]
  const float* key;    // row of key 0
  int64_t key_stride;
  int32_t dims;
};
constexpr int kMaxPanels = 1 + kMaxTerms;

// A square of kLanes queries and dims, transposed: the first `count` queries and `dims` dims of it are there.
// Squares that are whole are worth their own code: without it half of a transposition's time went into
// comparing counts.
template <bool kWhole, int kStride = kQueries>
AB_INLINE void pack_square(const float* rows, int64_t stride, int32_t count, int32_t dims, float scale,
                           float* packed) {
  Vec square[kLanes];
#pragma GCC unroll 16
  for (int32_t i = 0; i < kLanes; ++i) {
    const float* at = rows + i * stride;
    if (kWhole) {
      square[i] = scale * load_any(at);
    } else {
      square[i] = i >= count ? Vec{} : scale * (dims == kLanes ? load_any(at) : load_part(at, dims));
    }
  }
  transpose(square);
#pragma GCC unroll 16
  for (int32_t i = 0; i < kLanes; ++i) {
    if (kWhole || i < dims) store(packed + i * kStride, square[i]);
  }
}

// [d][query] from rows of queries, times scale; lanes past the last query are 0.
AB_INLINE void pack(const float* rows, int32_t count, int32_t dims, float scale, float* packed) {
  for (int32_t q0 = 0; q0 < kQueries; q0 += kLanes) {
    for (int32_t d0 = 0; d0 < dims; d0 += kLanes) {
      const float* at = rows + static_cast<int64_t>(q0) * dims + d0;
      float* to = packed + static_cast<int64_t>(d0) * kQueries + q0;
      if (count - q0 >= kLanes && dims - d0 >= kLanes) {
        pack_square<true>(at, dims, kLanes, kLanes, scale, to);
      } else {
        pack_square<false>(at, dims, count - q0, min_i32(dims - d0, kLanes), scale, to);
      }
    }
  }
}

// The way back, each lane times `factor`.
template <bool kWhole>
AB_INLINE void unpack_square(const float* packed, int32_t count, int32_t dims, Vec factor, int64_t stride,
                             float* rows) {
  Vec square[kLanes];
#pragma GCC unroll 16
  for (int32_t i = 0; i < kLanes; ++i) {
    square[i] = kWhole || i < dims ? load(packed + i * kQueries) * factor : Vec{};
  }
  transpose(square);
#pragma GCC unroll 16
  for (int32_t i = 0; i < kLanes; ++i) {
    float* at = rows + i * stride;
    if (kWhole) {
      store_any(at, square[i]);
    } else if (i < count) {
      __builtin_memcpy(at, &square[i], static_cast<size_t>(dims) * sizeof(float));
    }
  }
}

// Rows of `count` queries from [d][query], each lane times its factor.
AB_INLINE void unpack(const float* packed, int32_t count, int32_t dims, const Vec* factor, float* rows) {
  for (int32_t q0 = 0; q0 < count; q0 += kLanes) {
    for (int32_t d0 = 0; d0 < dims; d0 += kLanes) {
      const float* at = packed + static_cast<int64_t>(d0) * kQueries + q0;
      float* to = rows + static_cast<int64_t>(q0) * dims + d0;
      if (count - q0 >= kLanes && dims - d0 >= kLanes) {
        unpack_square<true>(at, kLanes, kLanes, factor[q0 / kLanes], dims, to);
      } else {
        unpack_square<false>(at, count - q0, min_i32(dims - d0, kLanes), factor[q0 / kLanes], dims, to);
      }
    }
  }
}

// Where the scores of a tile start: at a constant of each query; at biases [key][kQueries] in memory, all of
// them finite; or at such of which −∞ hide their pair, whatever its product is.
enum class Start { kRow, kFinite, kHiding };

// What the innermost loops call each time round, beside their own work.
struct Nothing {
  AB_INLINE void operator()() const {}
};

// Where the scores of NR keys start for NV vectors of queries.
template <int NR, int NV, Start kStart>
AB_INLINE void start_rows(const Vec* row, const float* bias, Vec (&sum)[NR][NV]) {
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      sum[r][v] = kStart == Start::kRow ? row[v] : load(bias + r * kQueries + v * kLanes);
  }
}

template <int NR, int NV, class Beside = Nothing>
AB_INLINE void add_products(const Panel& panel, int64_t key, Vec (&sum)[NR][NV], Beside&& beside = {}) {
  const float* query = panel.query;
  const float* at = panel.key + key * panel.key_stride;
  const int64_t stride = panel.key_stride;
  for (int32_t d = 0; d < panel.dims; ++d, query += kQueries, ++at) {
    beside();
    Vec q[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) q[v] = load(query + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) {
      const Vec k = splat(at[r * stride]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[r][v] += q[v] * k;
    }
  }
}

// Hides and keeps the scores.
template <int NR, int NV, Start kStart>
AB_INLINE void finish_rows(const float* bias, Vec (&sum)[NR][NV], float* scores, Vec* greatest) {
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      if (kStart == Start::kHiding) {
        const Vec given = load(bias + r * kQueries + v * kLanes);
        sum[r][v] = given == -kInfinity ? Vec{} - kInfinity : sum[r][v];
      }
      store(scores + r * kQueries + v * kLanes, sum[r][v]);
      greatest[v] = max_or_second(sum[r][v], greatest[v]);  // passes over NaN
    }
  }
}

// NR keys' scores for NV vectors of queries.
template <int NR, int NV, Start kStart, class Beside = Nothing>
AB_INLINE void score_rows(const Panel* panels, int panel_count, int64_t key, const Vec* row,
                          const float* bias, float* scores, Vec* greatest, Beside&& beside = {}) {
  Vec sum[NR][NV];
  start_rows<NR, NV, kStart>(row, bias, sum);
  for (int p = 0; p < panel_count; ++p) add_products(panels[p], key, sum, beside);
  finish_rows<NR, NV, kStart>(bias, sum, scores, greatest);
}

// Scores to probabilities exp(score − subtract), added up in sum.
template <int NV, bool kSubtract>
AB_INLINE void exp_tile(float* scores, int count, const Vec* subtract, Vec* sum) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) sum[v] = Vec{};
  for (int k = 0; k < count; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* at = scores + k * kQueries + v * kLanes;
      const Vec p = exp_vec(kSubtract ? load(at) - subtract[v] : load(at));
      store(at, p);
      sum[v] += p;
    }
  }
}

template <int ND, int NV>
AB_INLINE void clear_rows(Vec (&sum)[ND][NV]) {
#pragma GCC unroll 8
  for (int d = 0; d < ND; ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[d][v] = Vec{};
  }
}

// Adds the sums to the output or, with kFirst, writes them.
template <int ND, int NV, bool kFirst = false>
AB_INLINE void add_rows(const Vec (&sum)[ND][NV], float* output) {
#pragma GCC unroll 8
  for (int d = 0; d < ND; ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* at = output + d * kQueries + v * kLanes;
      store(at, kFirst ? sum[d][v] : load(at) + sum[d][v]);
    }
  }
}

// ND value dims from `value`, added to the output or, with kFirst, written. With kCareful a hidden pair is
// left out even where its value is NaN or infinite.
template <int ND, int NV, bool kCareful, bool kFirst = false, class Beside = Nothing>
AB_INLINE void output_rows(const float* probabilities, const float* tile_bias, int count, const float* value,
                           int64_t value_stride, float* output, Beside&& beside = {}) {
  Vec sum[ND][NV];
  clear_rows(sum);
  for (int k = 0; k < count; ++k, probabilities += kQueries, value += value_stride) {
    beside();
    Vec p[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) p[v] = load(probabilities + v * kLanes);
#pragma GCC unroll 8
    for (int d = 0; d < ND; ++d) {
      const Vec x = splat(value[d]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        if (kCareful) {
          const VecInt hide = load(tile_bias + k * kQueries + v * kLanes) == -kInfinity;
          sum[d][v] = hide ? sum[d][v] : sum[d][v] + p[v] * x;
        } else {
          sum[d][v] += p[v] * x;
        }
      }
    }
  }
  add_rows<ND, NV, kFirst>(sum, output);
}

}  // namespace
}  // namespace attention_bias::cpu
