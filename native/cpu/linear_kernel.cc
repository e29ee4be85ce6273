// Linear layers, (X + position)·Wᵀ + bias + residual, compiled once an instruction set: rows of X as tokens
// are stored, or as attention's heads, and rows of the output likewise.
//
// Lanes are outputs. Weights are packed once a call into panels of kPanelVectors vectors of outputs,
// [e][output], so that a step along E is that many loads, a broadcast from each of kTileRows rows of X, and 6
// × 4 multiply-adds with 32 registers, 6 × 2 with 16. A task is a run of rows, which stay in L2 while panels
// pass, and a panel's part of kDepth features serves all rows of the run. Sums begin at zero every kDepth
// features and then join the output's, so that one of 1,024 features is as accurate as four of 256.
//
// X is read where it lies, but for positions, which are added, and heads, which are put side by side, into
// scratch of the run's rows: once for all panels. The first panel asks for the rows of the next tile, a line
// at about every other step, since X comes from memory; outputs beyond kStreamedFloats go past the caches.
// Without these two 79 % became of the 92 %.
//
// CMT's keys (56,400 × 256 × 256) are 7.4 GFLOP and 116 MB. On an AMD EPYC (family 25, model 17, 2 cores),
// two threads: 34.5 ms with AVX-512, 214 of 234 GFLOP/s, 92 %; 39.2 ms with AVX2, 80 %.
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace attention_bias::cpu {
namespace {

constexpr int kPanelVectors = kRegisters == 32 ? 4 : 2;
constexpr int kPanel = kPanelVectors * kLanes;
constexpr int kTileRows = 6;
constexpr int64_t kDepth = 256;
constexpr int64_t kStreamedFloats = 4 * 1024 * 1024;  // of an output, 16 MB

AB_INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

// sums[NR][kPanel] += rows·weight over `depth` features, of NV vectors of outputs. With kAhead the tile's
// worth of memory from `ahead` on is asked for meanwhile.
template <int NR, int NV, bool kAhead>
AB_INLINE void add_tile(const float* rows, int64_t stride, const float* weight, int64_t depth, float* sums,
                        const float* ahead) {
  Vec sum[NR][NV];
  clear_rows(sum);
  for (int64_t e = 0; e < depth; ++e, ++rows, weight += kPanel) {
    if (kAhead) __builtin_prefetch(ahead + e * kTileRows, 0, 2);
    Vec w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = load(weight + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) {
      const Vec x = splat(rows[r * stride]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[r][v] += x * w[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* at = sums + r * kPanel + v * kLanes;
      store(at, load(at) + sum[r][v]);
    }
  }
}

template <int NV, bool kAhead>
AB_INLINE void add_rows_of(const float* rows, int64_t stride, int64_t count, const float* weight,
                           int64_t depth, float* sums) {
  int64_t r = 0;
  for (; r + kTileRows <= count; r += kTileRows) {
    const float* at = rows + r * stride;
    add_tile<kTileRows, NV, kAhead>(at, stride, weight, depth, sums + r * kPanel, at + kTileRows * stride);
  }
  const float* at = rows + r * stride;
  float* to = sums + r * kPanel;
  switch (count - r) {
    case 5:
      return add_tile<5, NV, false>(at, stride, weight, depth, to, nullptr);
    case 4:
      return add_tile<4, NV, false>(at, stride, weight, depth, to, nullptr);
    case 3:
      return add_tile<3, NV, false>(at, stride, weight, depth, to, nullptr);
    case 2:
      return add_tile<2, NV, false>(at, stride, weight, depth, to, nullptr);
    case 1:
      return add_tile<1, NV, false>(at, stride, weight, depth, to, nullptr);
  }
}

// To an address aligned to a vector, past the caches.
AB_INLINE void store_streaming(float* to, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX__)
  _mm256_stream_ps(to, (__m256)v);
#elif defined(__x86_64__)
  _mm_stream_ps(to, (__m128)v);
#else
  store(to, v);
#endif
}

// The first `count` lanes; the others are 0.
AB_INLINE Vec load_lanes(const float* at, int64_t count) {
  return count >= kLanes ? load_any(at) : load_part(at, static_cast<int32_t>(count));
}

// Features of the run's rows side by side, with positions added.
void stage(const LinearTask& task, float* to) {
  const LinearProblem& p = *task.problem;
  const HeadLayout layout = p.input_layout();
  const int32_t dim = layout.dim;
  for (int64_t row = task.row0; row < task.row1; ++row, to += p.features) {
    if (p.position) {
      const float *x = p.input + row * p.features, *position = p.position + row * p.features;
      for (int64_t e = 0; e < p.features; ++e) to[e] = x[e] + position[e];
      continue;
    }
    const int64_t b = row / p.tokens, t = row % p.tokens;
    const float* from = p.input + layout.row(b, t);
    for (int32_t e = 0; e < p.features; e += dim) {
      __builtin_memcpy(to + e, from + layout.column(e), static_cast<size_t>(dim) * sizeof(float));
    }
  }
}

// A panel's sums of the run's rows, with residuals added, to their places.
void write(const LinearTask& task, int32_t n0, int32_t n1, const float* sums) {
  const LinearProblem& p = *task.problem;
  const HeadLayout layout = p.out_layout();
  const bool streams = p.rows() * p.outputs >= kStreamedFloats;
  for (int64_t row = task.row0; row < task.row1; ++row, sums += kPanel) {
    const int64_t b = row / p.tokens, t = row % p.tokens;
    float* const out = p.out + layout.row(b, t);
    for (int32_t n = n0, end; n < n1; n = end) {
      end = min_i32(n1, (n / layout.dim + 1) * layout.dim);
      float* to = out + layout.column(n);
      for (int32_t i = n; i < end; i += kLanes) {
        Vec sum = load_lanes(sums + (i - n0), end - i);
        if (p.residual) sum += load_lanes(p.residual + row * p.outputs + i, end - i);
        if (end - i >= kLanes) {
          if (streams && reinterpret_cast<intptr_t>(to + (i - n)) % kVectorBytes == 0) {
            store_streaming(to + (i - n), sum);
          } else {
            store_any(to + (i - n), sum);
          }
        } else {
          __builtin_memcpy(to + (i - n), &sum, static_cast<size_t>(end - i) * sizeof(float));
        }
      }
    }
  }
}

bool stages(const LinearProblem& p) { return p.position || p.input_heads > 1; }

constexpr int64_t round_up(int64_t count) { return (count + 15) / 16 * 16; }

}  // namespace

namespace AB_ISA_NAME {

int64_t linear_panels(const LinearProblem& p) { return (p.outputs + kPanel - 1) / kPanel; }

int64_t packed_weight_floats(const LinearProblem& p) { return linear_panels(p) * kPanel * (p.features + 1); }

void pack_weight(const LinearProblem& p, int64_t panel, float* packed) {
  const int64_t n0 = panel * kPanel;
  float* bias = packed + panel * kPanel * (p.features + 1);
  float* weight = bias + kPanel;
  for (int64_t n = n0; n < n0 + kPanel; n += kLanes, weight += kLanes, bias += kLanes) {
    const int32_t outputs = n >= p.outputs ? 0 : static_cast<int32_t>(min_i64(kLanes, p.outputs - n));
    store(bias, p.bias && outputs > 0 ? load_lanes(p.bias + n, outputs) : Vec{});
    for (int64_t e = 0; e < p.features; e += kLanes) {
      const int32_t features = static_cast<int32_t>(min_i64(kLanes, p.features - e));
      const float* from = outputs > 0 ? p.weight + n * p.features + e : p.weight;
      if (outputs == kLanes && features == kLanes) {
        pack_square<true, kPanel>(from, p.features, kLanes, kLanes, 1.0f, weight + e * kPanel);
      } else {
        pack_square<false, kPanel>(from, p.features, outputs, features, 1.0f, weight + e * kPanel);
      }
    }
  }
}

int64_t linear_scratch_floats(const LinearProblem& p, int64_t rows) {
  return rows * kPanel + (stages(p) ? round_up(rows * p.features) : 0);
}

void linear(const LinearTask& task) {
  const LinearProblem& p = *task.problem;
  const int64_t count = task.row1 - task.row0;
  float* const sums = task.scratch;
  const float* rows = p.input + task.row0 * p.features;
  if (stages(p)) {
    float* const staged = sums + count * kPanel;
    stage(task, staged);
    rows = staged;
  }
  for (int64_t panel = task.panel0; panel < task.panel1; ++panel) {
    const float* bias = task.packed + panel * kPanel * (p.features + 1);
    const float* weight = bias + kPanel;
    const int64_t n0 = panel * kPanel, n1 = min_i64(p.outputs, n0 + kPanel);
    for (int64_t r = 0; r < count; ++r) {
      for (int v = 0; v < kPanel; v += kLanes) store(sums + r * kPanel + v, load(bias + v));
    }
    const int64_t vectors = (n1 - n0 + kLanes - 1) / kLanes;
    for (int64_t e = 0; e < p.features; e += kDepth) {
      const int64_t depth = min_i64(kDepth, p.features - e);
      const float *at = rows + e, *part = weight + e * kPanel;
      if (2 * vectors > kPanelVectors) {
        if (panel == task.panel0) {
          add_rows_of<kPanelVectors, true>(at, p.features, count, part, depth, sums);
        } else {
          add_rows_of<kPanelVectors, false>(at, p.features, count, part, depth, sums);
        }
      } else {  // the last panel has few outputs
        add_rows_of<kPanelVectors / 2, false>(at, p.features, count, part, depth, sums);
      }
    }
    write(task, static_cast<int32_t>(n0), static_cast<int32_t>(n1), sums);
  }
#if defined(__x86_64__)
  _mm_sfence();  // streamed stores are seen before what follows them
#endif
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
