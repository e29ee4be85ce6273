// Bias generation and mask fusion in one pass over the output, compiled once an instruction set. A row is cut
// into chunks; a chunk in which every term is constant is filled, and only the rest is evaluated element by
// element. Terms are evaluated and summed in float64 and rounded once to float32, and from there to bfloat16
// where that is asked for. It writes 4 or 2 bytes an element and reads little, so memory bandwidth is its
// bound.
#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"

namespace attention_bias::cpu {
namespace {

constexpr int32_t kChunk = 2048;
constexpr int32_t kPart = 128;

template <class Out>
void fill(Out* out, int32_t count, float bias) {
  Out value;
  set_bias(&value, bias);
  for (int32_t i = 0; i < count; ++i) out[i] = value;
}

double row_constant(const Term* terms, uint64_t which, const Tile& tile) {
  double sum = 0;
  for (; which != 0; which &= which - 1) {
    sum += visit(terms[lowest_bit(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      return term.template value<double>(term.column(tile.b, tile.h, tile.k0), tile.q0);
    });
  }
  return sum;
}

// Adds a term's values for one query to the sums of a part of its row.
void add_elements(const Term& term, const Tile& tile, double* sums) {
  visit(term, [&](const auto& t) AB_INLINE_LAMBDA {
    using T = std::decay_t<decltype(t)>;
    const auto value = [&](int32_t k) AB_INLINE_LAMBDA {
      return t.template value<double>(t.column(tile.b, tile.h, k), tile.q0);
    };
    if constexpr (T::kLocal && !T::kHides) {
      t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        for (int32_t k = begin; k < end; ++k) sums[k - tile.k0] += value(k);
      });
    } else if constexpr (T::kLocal) {
      double local[kPart];
      for (int32_t k = tile.k0; k < tile.k1; ++k) local[k - tile.k0] = t.outside(k);
      t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        for (int32_t k = begin; k < end; ++k) local[k - tile.k0] = value(k);
      });
      for (int32_t k = tile.k0; k < tile.k1; ++k) sums[k - tile.k0] += local[k - tile.k0];
    } else {
      for (int32_t k = tile.k0; k < tile.k1; ++k) sums[k - tile.k0] += value(k);
    }
  });
}

// Writes the tile, of one query, given the constant that is settled already and the terms that are not.
template <class Out>
void write_row(const Term* terms, uint64_t open, double constant, const Tile& tile, int32_t step, Out* out) {
  Tile part = tile;
  for (; part.k0 < tile.k1; part.k0 = part.k1) {
    part.k1 = min_i32(part.k0 + step, tile.k1);
    const int32_t count = part.k1 - part.k0;
    Out* at = out + (part.k0 - tile.k0);
    const TilePlan plan = plan_tile(terms, open, part);
    const double sum = constant + row_constant(terms, plan.row_constant, part);
    if (plan.hidden || sum == hidden<double>()) {
      fill(at, count, hidden<float>());
    } else if (plan.mixed == 0) {
      fill(at, count, round_bias(sum));
    } else if (step > kPart) {
      write_row(terms, plan.mixed, sum, part, kPart, at);
    } else {
      double sums[kPart];
      for (int32_t i = 0; i < count; ++i) sums[i] = sum;
      for (uint64_t left = plan.mixed; left != 0; left &= left - 1) {
        add_elements(terms[lowest_bit(left)], part, sums);
      }
      for (int32_t i = 0; i < count; ++i) set_bias(at + i, round_bias(sums[i]));
    }
  }
}

}  // namespace

namespace AB_ISA_NAME {

void bias_rows(const BiasProblem& p, int64_t row0, int64_t row1) {
  const Program& bias = *p.bias;
  const Extent& e = bias.extent();
  const int64_t heads = bias.depends_on_head() ? e.heads : 1;
  const uint64_t all = all_terms(bias.term_count());
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t bh = row / e.queries;
    const int32_t q = static_cast<int32_t>(row - bh * e.queries);
    const Tile tile = {bh / heads, bh % heads, q, q + 1, 0, static_cast<int32_t>(e.keys)};
    if (p.dtype == DType::kBfloat16) {
      write_row(bias.term_data(), all, 0.0, tile, kChunk, static_cast<uint16_t*>(p.out) + row * e.keys);
    } else {
      write_row(bias.term_data(), all, 0.0, tile, kChunk, static_cast<float*>(p.out) + row * e.keys);
    }
  }
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
