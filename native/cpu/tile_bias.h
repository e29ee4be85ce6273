// The biases of a tile of keys and a block of queries, in memory as [key][query], for the kernels whose lanes
// are queries. Everything is internal to the including file.
#pragma once

#include <type_traits>

#include "core/terms.h"
#include "cpu/tile.h"

namespace attention_bias::cpu {
namespace {

// Adds the terms' value at key k0 for each query: what a tile's row-constant terms come to.
AB_INLINE void add_row_constants(const Term* terms, uint64_t which, const Tile& tile, float* row) {
  for (; which != 0; which &= which - 1) {
    visit(terms[lowest_bit(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      const auto column = term.column(tile.b, tile.h, tile.k0);
      for (int32_t q = tile.q0; q < tile.q1; ++q) {
        row[q - tile.q0] = add_bias(row[q - tile.q0], term.template value<float>(column, q));
      }
    });
  }
}

// Adds a local term's values to a tile [key][query] of biases or scores, where it is not 0, by `add`.
template <class T, class Add>
AB_INLINE void add_near(const T& term, const Tile& tile, float* at, Add add) {
  for (int32_t q = tile.q0; q < tile.q1; ++q) {
    float* lane = at + (q - tile.q0);
    term.near(tile, q, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
      for (int32_t k = begin; k < end; ++k) {
        float* element = lane + (k - tile.k0) * kQueries;
        *element = add(*element, term.template value<float>(term.column(tile.b, tile.h, k), q));
      }
    });
  }
}

struct TileBias {
  const Term* terms;
  float* bias;   // [key][kQueries]
  float* local;  // likewise: a local mask being built
};

// bias = row constants + the mixed terms.
void fill_tile_bias(const TileBias& w, uint64_t mixed, const Tile& tile, const float* row) {
  const int32_t count = tile.k1 - tile.k0;
  for (int32_t k = 0; k < count; ++k) {
    for (int32_t q = 0; q < kQueries; ++q) w.bias[k * kQueries + q] = row[q];
  }
  for (; mixed != 0; mixed &= mixed - 1) {
    visit(w.terms[lowest_bit(mixed)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        add_near(term, tile, w.bias, add_bias);
      } else if constexpr (T::kLocal) {
        // Hidden but near a query: built apart, since −∞ can't be taken back.
        for (int32_t k = 0; k < count; ++k) {
          const float outside = term.outside(tile.k0 + k);
          for (int32_t q = 0; q < kQueries; ++q) w.local[k * kQueries + q] = outside;
        }
        for (int32_t q = tile.q0; q < tile.q1; ++q) {
          term.near(tile, q, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
            for (int32_t k = begin; k < end; ++k) {
              w.local[(k - tile.k0) * kQueries + q - tile.q0] =
                  term.template value<float>(term.column(tile.b, tile.h, k), q);
            }
          });
        }
        for (int32_t i = 0; i < count * kQueries; ++i) w.bias[i] = add_bias(w.bias[i], w.local[i]);
      } else if constexpr (T::kKeysTogether) {
        for (int32_t q = tile.q0; q < tile.q1; ++q) {
          float* at = w.bias + (q - tile.q0);
          for (int32_t k = 0; k < count; ++k, at += kQueries) {
            *at = add_bias(*at, term.template value<float>(term.column(tile.b, tile.h, tile.k0 + k), q));
          }
        }
      } else {
        for (int32_t k = 0; k < count; ++k) {
          const auto column = term.column(tile.b, tile.h, tile.k0 + k);
          float* at = w.bias + k * kQueries - tile.q0;
          for (int32_t q = tile.q0; q < tile.q1; ++q) {
            at[q] = add_bias(at[q], term.template value<float>(column, q));
          }
        }
      }
    });
  }
}

AB_INLINE bool any_hidden(const float* row) {
  bool any = false;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) any |= any_greater(splat(-__FLT_MAX__), load(row + v * kLanes));
  return any;
}

}  // namespace
}  // namespace attention_bias::cpu
