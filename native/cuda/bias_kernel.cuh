// Bias generation and mask fusion in one pass: a warp writes runs of 2,048 keys of one row, 16 bytes a lane
// and store. A run in which every term is constant is one number; otherwise it is cut into what a store of
// the warp covers, and what is mixed then is evaluated element by element, summed in float64, rounded once to
// float32 and from there to bfloat16 where that is asked for.
//
// 4 or 2 bytes written an element and next to nothing read, so the memory's write speed is the bound. At
// 900×56,400 in float32 an H100 writes for about 60 µs, in which its schedulers issue 56 M instructions;
// there are 25,200 runs, each of some 400 instructions for its place (64-bit divisions) and its class and 16
// stores, and of some 3,000 where a term has to be classed or evaluated for each part. Not yet measured on
// hardware.
#pragma once

#include "core/terms.h"
#include "cuda/device.cuh"
#include "cuda/tile_plan.cuh"

namespace attention_bias::cuda {

struct BiasArguments {
  void* out;  // [batch, heads, Q, K] of the kernel's element
  const Term* terms;
  int32_t term_count;
  int64_t rows;       // batch·heads·Q
  int64_t out_heads;  // heads of out: H, or 1 where no term depends on it
  int32_t queries, keys;
};

constexpr int kBiasThreads = 128;
constexpr int kBiasWarps = kBiasThreads / kWarpLanes;
constexpr int kBiasRun = 2048;  // keys of a warp at a time

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

// Stores a lane's neighbours from key k on, as 16 bytes where they lie so.
template <class Out, int kCount>
AB_DEVICE void store_keys(Out* row, int32_t k, int32_t end, const double (&sums)[kCount]) {
  static_assert(kCount * sizeof(Out) == 16, "a store of 16 bytes");
  if (k >= end) return;
  Out* at = row + k;
  Out values[kCount];
  AB_UNROLL
  for (int i = 0; i < kCount; ++i) set_bias(values + i, round_bias(sums[i]));
  if (k + kCount <= end && (reinterpret_cast<uintptr_t>(at) & 15) == 0) {
    Float4 packed;
    __builtin_memcpy(&packed, values, sizeof packed);
    store_16_streaming(reinterpret_cast<float*>(at), packed);
  } else {
    AB_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (k + i < end) at[i] = values[i];
    }
  }
}

// Out is float, or uint16_t for the bits of bfloat16.
template <class Out>
AB_KERNEL void AB_LAUNCH_BOUNDS(kBiasThreads, 4) bias_kernel(const BiasArguments a) {
  constexpr int kCount = 16 / sizeof(Out);        // keys of a lane's store
  constexpr int32_t kPart = kCount * kWarpLanes;  // keys of a warp's
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
  Out* out = static_cast<Out*>(a.out) + row * a.keys;
  uint64_t mixed = all_terms(a.term_count);
  const double constant = constant_part(a.terms, tile, &mixed);
  for (int32_t part = k0; part < end; part += kPart) {
    tile.k0 = part;
    tile.k1 = min_i32(part + kPart, end);
    uint64_t open = mixed;
    double sum = constant;
    if (open != 0 && constant != hidden<double>()) sum += constant_part(a.terms, tile, &open);
    const int32_t k = part + lane_index() * kCount;
    double sums[kCount];
    AB_UNROLL
    for (int i = 0; i < kCount; ++i) sums[i] = sum;
    if (sum != hidden<double>()) {
      for (; open != 0; open &= open - 1) {
        visit(a.terms[lowest_bit(open)], [&](const auto& term) {
          AB_UNROLL
          for (int i = 0; i < kCount; ++i) {
            if (k + i < end) sums[i] += term.template value<double>(term.column(tile.b, tile.h, k + i), q);
          }
        });
      }
    }
    store_keys(out, k, tile.k1, sums);
  }
}

}  // namespace attention_bias::cuda
