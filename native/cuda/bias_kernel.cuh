// Bias generation and mask fusion in one pass: a warp writes runs of 512 keys of one row, 16 bytes a lane and
// store. A run in which every term is constant is one number; otherwise it is cut in four, and what is mixed
// then is evaluated element by element, summed in float64 and rounded once. 4 bytes written an element and
// next to nothing read, so the memory's write speed is the bound. Not yet measured on hardware.
#pragma once

#include "core/terms.h"
#include "cuda/device.cuh"
#include "cuda/tile_plan.cuh"

namespace attention_bias::cuda {

struct BiasArguments {
  float* out;  // [batch, heads, Q, K]
  const Term* terms;
  int32_t term_count;
  int64_t rows;       // batch·heads·Q
  int64_t out_heads;  // heads of out: H, or 1 where no term depends on it
  int32_t queries, keys;
};

constexpr int kBiasThreads = 128;
constexpr int kBiasWarps = kBiasThreads / kWarpLanes;
constexpr int kBiasRun = 512;   // keys of a warp at a time
constexpr int kBiasPart = 128;  // keys of one store of a warp

AB_DEVICE double term_value(const Term& term, const Tile& tile, int32_t k) {
  return visit(term,
               [&](const auto& t) { return t.template value<double>(t.column(tile.b, tile.h, k), tile.q0); });
}

// The terms' sum where they are constant; `mixed` becomes those that are not.
AB_DEVICE double constant_part(const Term* terms, const Tile& tile, uint64_t* mixed) {
  const TilePlan plan = plan_tile(terms, *mixed, tile);
  *mixed = plan.mixed;
  if (plan.hidden) return hidden<double>();
  double sum = 0;
  for (uint64_t left = plan.row_constant; left != 0; left &= left - 1) {
    sum += term_value(terms[lowest_bit(left)], tile, tile.k0);
  }
  return sum;
}

// Stores up to four neighbours from key k on, as one where they lie so.
AB_DEVICE void store_keys(float* row, int32_t k, int32_t end, const float (&values)[4]) {
  if (k >= end) return;
  float* at = row + k;
  if (k + 4 <= end && (reinterpret_cast<uintptr_t>(at) & 15) == 0) {
    store_16_streaming(at, {values[0], values[1], values[2], values[3]});
  } else {
    for (int i = 0; i < 4 && k + i < end; ++i) at[i] = values[i];
  }
}

AB_KERNEL void AB_LAUNCH_BOUNDS(kBiasThreads, 4) bias_kernel(const BiasArguments a) {
  const int64_t runs = (static_cast<int64_t>(a.keys) + kBiasRun - 1) / kBiasRun;
  const int64_t index = static_cast<int64_t>(block_x()) * kBiasWarps + warp_index();
  const int64_t row = index / runs;
  if (row >= a.rows) return;
  const int64_t bh = row / a.queries;
  const int32_t q = static_cast<int32_t>(row - bh * a.queries);
  Tile tile = {bh / a.out_heads, bh % a.out_heads, q, q + 1, 0, 0};
  const int32_t k0 = static_cast<int32_t>(index % runs) * kBiasRun;
  tile.k0 = k0;
  tile.k1 = min_i32(k0 + kBiasRun, a.keys);
  const int32_t end = tile.k1;
  float* out = a.out + row * a.keys;
  uint64_t mixed = all_terms(a.term_count);
  const double constant = constant_part(a.terms, tile, &mixed);
  for (int32_t part = k0; part < end; part += kBiasPart) {
    tile.k0 = part;
    tile.k1 = min_i32(part + kBiasPart, end);
    uint64_t open = mixed;
    double sum = constant;
    if (open != 0 && constant != hidden<double>()) sum += constant_part(a.terms, tile, &open);
    const int32_t k = part + lane_index() * 4;
    double sums[4] = {sum, sum, sum, sum};
    if (sum != hidden<double>()) {
      for (; open != 0; open &= open - 1) {
        visit(a.terms[lowest_bit(open)], [&](const auto& term) {
          AB_UNROLL
          for (int i = 0; i < 4; ++i) {
            if (k + i < end) sums[i] += term.template value<double>(term.column(tile.b, tile.h, k + i), q);
          }
        });
      }
    }
    const float values[4] = {round_bias(sums[0]), round_bias(sums[1]), round_bias(sums[2]),
                             round_bias(sums[3])};
    store_keys(out, k, tile.k1, values);
  }
}

}  // namespace attention_bias::cuda
