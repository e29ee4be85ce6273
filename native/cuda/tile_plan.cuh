// The class of a tile of queries × keys, found by a block of threads together: each row of the tile is
// classed by a thread of its own, in closed form (terms.h), and the rows' classes are joined.
#pragma once

#include "core/terms.h"
#include "cuda/device.cuh"

// A function called from several places of a kernel, that would only make it longer.
#if defined(__CUDACC__)
#define AB_DEVICE_CALL static __device__ __noinline__
#else
#define AB_DEVICE_CALL inline
#endif

namespace attention_bias::cuda {

constexpr int kTermsPerWord = 10;  // three bits each
constexpr int kPlanWords = (kMaxTerms + kTermsPerWord - 1) / kTermsPerWord;

// Shared memory of a planner, in 32-bit words: two slots, so that one barrier a plan is enough.
constexpr int plan_shared_words(int warps) { return 2 * kPlanWords * warps; }

enum PlanFlags : uint32_t { kPlanVisible = 1, kPlanNotZero = 2, kPlanMixed = 4 };

// Of one row: a hidden row is a constant −∞ among the others.
AB_DEVICE uint32_t plan_flags(const Term& term, const Tile& row) {
  switch (visit(term, [&](const auto& t) { return t.tile_class(row); })) {
    case TileClass::kHidden:
      return kPlanNotZero;
    case TileClass::kZero:
      return kPlanVisible;
    case TileClass::kRowConstant:
      return kPlanVisible | kPlanNotZero;
    default:
      return kPlanVisible | kPlanNotZero | kPlanMixed;
  }
}

// As plan_tile (terms.h), of the terms in `candidates`, for rows [tile.q0, tile.q1) of at most kRows, by
// kWarps warps. All threads of the block call it with the same arguments, and get the same. `slot` is one of
// the two in shared memory, in turns.
template <int kRows, int kWarps>
AB_DEVICE_CALL TilePlan plan_together(const Term* terms, uint64_t candidates, const Tile tile,
                                      uint32_t* slot) {
  TilePlan joined = {false, 0, 0};
  if (candidates == 0) return joined;
  // Where there are threads to spare they share a row's terms.
  constexpr int kParts = kWarps * kWarpLanes / kRows;
  static_assert(kParts >= 1 && kWarps * kWarpLanes % kRows == 0, "rows for threads");
  const int row = thread_index() % kRows, part = thread_index() / kRows;
  const bool has_row = tile.q0 + row < tile.q1;
  const Tile own = {tile.b, tile.h, tile.q0 + row, tile.q0 + row + 1, tile.k0, tile.k1};
  int words = 0;
  uint64_t left = candidates;
  for (int index = 0; left != 0; ++words) {
    uint32_t flags = 0;
    for (int i = 0; i < kTermsPerWord && left != 0; ++i, ++index, left &= left - 1) {
      if (!has_row || index % kParts != part) continue;
      flags |= plan_flags(terms[lowest_bit(left)], own) << (3 * i);
    }
    AB_UNROLL
    for (int lane_mask = kWarpLanes / 2; lane_mask > 0; lane_mask /= 2) {
      flags |= shuffle_xor(flags, lane_mask);
    }
    if (lane_index() == 0) slot[words * kWarps + warp_index()] = flags;
  }
  barrier();
  left = candidates;
  for (int word = 0; word < words; ++word) {
    uint32_t flags = 0;
    AB_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) flags |= slot[word * kWarps + warp];
    for (int i = 0; i < kTermsPerWord && left != 0; ++i, left &= left - 1, flags >>= 3) {
      const uint64_t bit = left & ~(left - 1);
      if ((flags & kPlanVisible) == 0) joined.hidden = true;
      if ((flags & kPlanMixed) != 0) {
        joined.mixed |= bit;
      } else if ((flags & kPlanNotZero) != 0) {
        joined.row_constant |= bit;
      }
    }
  }
  return joined;
}

}  // namespace attention_bias::cuda
