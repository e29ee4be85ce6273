// Linear layers in float32, (X + position)·Wᵀ + bias + residual, with rows of X and of the output as tokens
// are stored or as attention's heads.
//
// A block of 256 threads makes a tile of 128 rows × 128 outputs, a thread 8 × 8 of it, so that 4 loads of 16
// bytes from shared memory serve 64 multiply-adds; where that would leave multiprocessors idle, 64 × 64 and 4
// × 4. X and W come 8 features at a time: while one slice in shared memory is multiplied, the next is on its
// way to registers, where positions are added. Slices lie as [feature][row], rows padded by 4, so that both
// the transposing stores and the loads of a warp fall into different banks.
//
// A projection of CMT's keys (56,400 × 256 × 256) is 7.4 GFLOP, 110 µs of an H100's 67 TFLOP/s, and moves 116
// MB, 173 MB with positions: 35 or 52 µs at 3.35 TB/s. Not yet measured on hardware.
//
// Budget: 128 registers a thread, two blocks a multiprocessor.
#pragma once

#include <cstdint>

#include "core/multihead.h"
#include "cuda/device.cuh"

namespace attention_bias::cuda {

constexpr int kLinearThreads = 256;

template <int kMicroTile>
struct LinearTile {
  static constexpr int kMicro =
      kMicroTile;  // rows and outputs of a thread, in groups of 4 that are kGroup apart
  static constexpr int kSide = 16 * kMicro;  // rows and outputs of a block
  static constexpr int kGroup = 64;
  static constexpr int kDepth = 8;  // features of a slice
  static constexpr int kStride = kSide + 4;
  static constexpr int kOperandFloats = kDepth * kStride;
  static constexpr int kRuns = kSide * kDepth / 4;           // of 4 features, of an operand's slice
  static constexpr int kLoads = 2 * kRuns / kLinearThreads;  // of a thread
  static constexpr size_t kSharedBytes = sizeof(float) * 2 * 2 * kOperandFloats;
};

template <class T>
class LinearBlock {
 public:
  AB_DEVICE explicit LinearBlock(const LinearProblem& p) : p_(p) {
    AB_UNROLL
    for (int i = 0; i < T::kLoads; ++i) begin_load(i);
  }

  AB_DEVICE void run() {
    float sums[T::kMicro][T::kMicro] = {};
    const int32_t features = static_cast<int32_t>(p_.features);
    load(0);
    put(0);
    barrier();
    int turn = 0;
    AB_NO_UNROLL
    for (int32_t e = 0; e < features; e += T::kDepth) {
      const bool more = e + T::kDepth < features;
      if (more) load(e + T::kDepth);
      multiply(operand(turn, 0), operand(turn, 1), sums);
      if (more) put(turn ^ 1);
      barrier();
      turn ^= 1;
    }
    write(sums);
  }

 private:
  // Of this block; evaluated anew where they are needed, since registers are few.
  AB_DEVICE int32_t column_tiles() const {
    return static_cast<int32_t>((p_.outputs + T::kSide - 1) / T::kSide);
  }
  AB_DEVICE int64_t first_row() const { return int64_t{1} * (block_x() / column_tiles()) * T::kSide; }
  AB_DEVICE int32_t first_column() const { return block_x() % column_tiles() * T::kSide; }

  // A run of 4 features of a row of X or of W, in each slice.
  struct Load {
    const float* row = nullptr;  // of feature 0; null beyond the last row
    float values[4];
  };

  AB_DEVICE static float* operand(int turn, int which) {
    return reinterpret_cast<float*>(shared_memory()) + (2 * turn + which) * T::kOperandFloats;
  }

  // Which operand this thread's run i is of (0: X, 1: W), its row in the tile, and which of the slice's runs.
  AB_DEVICE static int run_of(int i) { return i * kLinearThreads + thread_index(); }
  AB_DEVICE static int operand_of(int i) {
    return T::kRuns == kLinearThreads ? i : run_of(i) / T::kRuns;  // then known to the compiler
  }
  AB_DEVICE static int row_of(int i) { return run_of(i) % T::kRuns / (T::kDepth / 4); }
  AB_DEVICE static int feature_of(int i) { return run_of(i) % (T::kDepth / 4) * 4; }

  AB_DEVICE void begin_load(int i) {
    Load& load = loads_[i];
    if (operand_of(i) == 0) {
      const int64_t row = first_row() + row_of(i);
      if (row >= p_.rows()) return;
      load.row = p_.input + p_.input_layout().row(row / p_.tokens, row % p_.tokens);
    } else {
      const int64_t output = first_column() + row_of(i);
      if (output < p_.outputs) load.row = p_.weight + output * p_.features;
    }
  }

  // Where feature e of a row is: of X, head by head.
  AB_DEVICE int64_t column(int i, int32_t e) const {
    return operand_of(i) == 0 && p_.input_heads > 1 ? p_.input_layout().column(e) : e;
  }

  // Positions lie as X does, which then is of one head.
  AB_DEVICE bool has_position(int i) const { return operand_of(i) == 0 && p_.position; }
  AB_DEVICE const float* position_at(int i, int32_t e) const {
    return p_.position + (loads_[i].row - p_.input) + e;
  }

  AB_DEVICE void load(int32_t slice) {
    const int32_t features = static_cast<int32_t>(p_.features);
    const bool whole =
        p_.input_layout().dim % 4 == 0;  // runs begin on 16 bytes, and end in their row and head
    AB_UNROLL
    for (int i = 0; i < T::kLoads; ++i) {
      Load& load = loads_[i];
      const int32_t e = slice + feature_of(i);
      AB_UNROLL
      for (int j = 0; j < 4; ++j) load.values[j] = 0.0f;
      if (!load.row) continue;
      if (whole) {
        if (e >= features) continue;
        load_4(load.values, load.row + column(i, e));
        if (!has_position(i)) continue;
        float position[4];
        load_4(position, position_at(i, e));
        AB_UNROLL
        for (int j = 0; j < 4; ++j) load.values[j] += position[j];
      } else {
        AB_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (e + j >= features) continue;
          load.values[j] = load.row[column(i, e + j)];
          if (has_position(i)) load.values[j] += *position_at(i, e + j);
        }
      }
    }
  }

  AB_DEVICE static void load_4(float* to, const float* from) {
    const Float4 four = load_16(from);
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
  }

  AB_DEVICE void put(int turn) {
    AB_UNROLL
    for (int i = 0; i < T::kLoads; ++i) {
      float* to = operand(turn, operand_of(i)) + feature_of(i) * T::kStride + row_of(i);
      AB_UNROLL
      for (int j = 0; j < 4; ++j) to[j * T::kStride] = loads_[i].values[j];
    }
  }

  AB_DEVICE static int thread_row() { return thread_index() / 16 * 4; }
  AB_DEVICE static int thread_column() { return thread_index() % 16 * 4; }

  // Not all steps unrolled: the loads of so many would be moved ahead, into registers that are not there.
  AB_DEVICE static void multiply(const float* x, const float* w, float (&sums)[T::kMicro][T::kMicro]) {
    constexpr int kUnrolled = 2;
    AB_NO_UNROLL
    for (int first = 0; first < T::kDepth; first += kUnrolled) {
      AB_UNROLL
      for (int e = first; e < first + kUnrolled; ++e) {
        float a[T::kMicro], b[T::kMicro];
        AB_UNROLL
        for (int g = 0; g < T::kMicro; g += 4) {
          load_4(&a[g], x + e * T::kStride + thread_row() + g / 4 * T::kGroup);
          load_4(&b[g], w + e * T::kStride + thread_column() + g / 4 * T::kGroup);
        }
        AB_UNROLL
        for (int i = 0; i < T::kMicro; ++i) {
          AB_UNROLL
          for (int j = 0; j < T::kMicro; ++j) sums[i][j] += a[i] * b[j];
        }
      }
    }
  }

  AB_DEVICE void write(const float (&sums)[T::kMicro][T::kMicro]) const {
    AB_UNROLL
    for (int group = 0; group < T::kMicro / 4; ++group) {
      int64_t row = first_row() + thread_row() + group * T::kGroup;
      int64_t b = row / p_.tokens, t = row % p_.tokens;  // one division for four rows
      AB_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (row < p_.rows()) write_row(row, b, t, sums[4 * group + i]);
        ++row;
        if (++t == p_.tokens) ++b, t = 0;
      }
    }
  }

  AB_DEVICE void write_row(int64_t row, int64_t b, int64_t t, const float (&sums)[T::kMicro]) const {
    const HeadLayout layout = p_.out_layout();
    float* const out = p_.out + layout.row(b, t);
    AB_UNROLL
    for (int g = 0; g < T::kMicro / 4; ++g) {
      const int32_t n = first_column() + thread_column() + g * T::kGroup;
      const int32_t left = static_cast<int32_t>(p_.outputs) - n;
      float values[4];
      AB_UNROLL
      for (int j = 0; j < 4; ++j) {
        values[j] = sums[4 * g + j];
        if (j >= left) continue;
        if (p_.bias) values[j] += p_.bias[n + j];
        if (p_.residual) values[j] += p_.residual[row * p_.outputs + n + j];
      }
      if (layout.dim % 4 == 0) {
        if (left > 0) store_16(out + layout.column(n), Float4{values[0], values[1], values[2], values[3]});
      } else {
        AB_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (j < left) out[layout.column(n + j)] = values[j];
        }
      }
    }
  }

  const LinearProblem& p_;
  Load loads_[T::kLoads];
};

// Of a problem whose tensors are the device's, aligned to 16 bytes.
template <int kMicro>
AB_KERNEL void AB_LAUNCH_BOUNDS(kLinearThreads, 2) linear_kernel(const LinearProblem problem) {
  LinearBlock<LinearTile<kMicro>>(problem).run();
}

}  // namespace attention_bias::cuda
