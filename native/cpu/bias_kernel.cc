// Bias generation and mask fusion in one pass over the output, compiled once an instruction set. A row is cut
// into chunks; a chunk in which every term is constant is filled, and only the rest is evaluated element by
// element. It writes 4 bytes an element and reads little, so memory bandwidth is its bound.
#include <cstdint>

#include "core/terms.h"
#include "cpu/kernels.h"

namespace attention_bias::cpu {
namespace {

constexpr int32_t kChunk = 2048;
constexpr int32_t kPart = 128;

void fill(float* out, int32_t count, float value) {
  for (int32_t i = 0; i < count; ++i) out[i] = value;
}

float row_constant(const Term* terms, uint64_t which, const Tile& tile) {
  float sum = 0.0f;
  for (; which != 0; which &= which - 1) {
    sum += visit(terms[__builtin_ctzll(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      return term.template value<float>(term.column(tile.b, tile.h, tile.k0), tile.q0);
    });
  }
  return sum;
}

void add_elements(const Term& term, const Tile& tile, float* out) {
  visit(term, [&](const auto& t) AB_INLINE_LAMBDA {
    for (int32_t k = tile.k0; k < tile.k1; ++k) {
      out[k - tile.k0] += t.template value<float>(t.column(tile.b, tile.h, k), tile.q0);
    }
  });
}

// Writes the tile, of one query, given the constant that is settled already and the terms that are not.
void write_row(const Term* terms, uint64_t open, float constant, const Tile& tile, int32_t step, float* out) {
  Tile part = tile;
  for (; part.k0 < tile.k1; part.k0 = part.k1) {
    part.k1 = min_i32(part.k0 + step, tile.k1);
    const int32_t count = part.k1 - part.k0;
    float* at = out + (part.k0 - tile.k0);
    const TilePlan plan = plan_tile(terms, open, part);
    if (plan.hidden) {
      fill(at, count, hidden<float>());
      continue;
    }
    const float sum = constant + row_constant(terms, plan.row_constant, part);
    if (plan.mixed == 0) {
      fill(at, count, sum);
    } else if (step > kPart) {
      write_row(terms, plan.mixed, sum, part, kPart, at);
    } else {
      fill(at, count, sum);
      for (uint64_t left = plan.mixed; left != 0; left &= left - 1)
        add_elements(terms[__builtin_ctzll(left)], part, at);
    }
  }
}

}  // namespace

namespace AB_ISA_NAME {

void bias_rows(const BiasProblem& p, int64_t row0, int64_t row1) {
  const Program& bias = *p.bias;
  const Extent& e = bias.extent();
  const int64_t heads = bias.depends_on_head() ? e.heads : 1;
  const uint64_t all = bias.term_count() == 0 ? 0 : ~uint64_t{0} >> (64 - bias.term_count());
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t bh = row / e.queries;
    const int32_t q = static_cast<int32_t>(row - bh * e.queries);
    const Tile tile = {bh / heads, bh % heads, q, q + 1, 0, static_cast<int32_t>(e.keys)};
    write_row(bias.term_data(), all, 0.0f, tile, kChunk, p.out + row * e.keys);
  }
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
