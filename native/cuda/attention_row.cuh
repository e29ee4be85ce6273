// One row of attention: read, and parts of keys joined.
#pragma once

#include "cuda/attention_kernel.cuh"

namespace attention_bias::cuda {

// Columns [column, column + 4) of a row, zeros past its end.
AB_DEVICE Float4 load_columns(const HeadRows& rows, int64_t row, int column, int columns) {
  const int64_t at = row * columns + column;
  if (column + 4 <= columns && columns % 4 == 0) {  // then every row starts at a multiple of four
    if (rows.dtype != DType::kBfloat16) return load_16(rows.f32() + at);
    uint16_t bits[4];
    load_8(bits, rows.bf16() + at);
    return {bf16_to_float(bits[0]), bf16_to_float(bits[1]), bf16_to_float(bits[2]), bf16_to_float(bits[3])};
  }
  Float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
  if (column < columns) x.x = rows.at(at);
  if (column + 1 < columns) x.y = rows.at(at + 1);
  if (column + 2 < columns) x.z = rows.at(at + 2);
  if (column + 3 < columns) x.w = rows.at(at + 3);
  return x;
}

// Joins `splits` parts of a row into its result, a warp: states[i·state_stride] and
// partial[i·partial_stride].
AB_DEVICE void merge_row(const SoftmaxState* states, int64_t state_stride, const float* partial,
                         int64_t partial_stride, int splits, int value_dim, bool natural, float* out,
                         float* lse) {
  SoftmaxState joined = {0.0f, 0.0f, false};
  bool any = false;
  for (int i = 0; i < splits; ++i) {
    const SoftmaxState part = states[i * state_stride];
    joined.seen |= part.seen;
    if (!weighs(part)) continue;
    joined.base = any && !(part.base > joined.base) ? joined.base : part.base;
    any = true;
  }
  for (int i = 0; i < splits; ++i) {
    const SoftmaxState part = states[i * state_stride];
    if (weighs(part)) joined.sum += part.sum * exponential(part.base - joined.base, natural);
  }
  const float scale = output_scale(joined);
  for (int d = lane_index(); d < value_dim; d += kWarpLanes) {
    float sum = 0.0f;
    for (int i = 0; i < splits; ++i) {
      const SoftmaxState part = states[i * state_stride];
      if (!part.seen) continue;
      const float factor = weighs(part) ? exponential(part.base - joined.base, natural) : 0.0f;
      sum += partial[i * partial_stride + d] * factor;
    }
    out[d] = sum * scale;
  }
  if (lane_index() == 0) *lse = log_sum_exp_of_unit(joined, natural);
}

}  // namespace attention_bias::cuda
