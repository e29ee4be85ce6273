// Bias generation and mask fusion in one pass over the output, compiled once an instruction set. A row is cut
// into chunks; a chunk in which every term is constant is filled, and only the rest is evaluated element by
// element. Terms are evaluated and summed in float64 and rounded once to float32, and from there to bfloat16
// where that is asked for. It writes 4 or 2 bytes an element and reads little, so memory bandwidth is its
// bound.
#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

constexpr int32_t kChunk = 2048;
constexpr int32_t kPart = 128;

typedef VecInt __attribute__((may_alias)) AlignedVecInt;

// Whole vectors on their boundaries; what is left at either end is one vector that overlaps them.
template <class Out>
void fill(Out* out, int32_t count, float bias) {
  Out value;
  set_bias(&value, bias);
  constexpr int32_t kStep = kVectorBytes / sizeof(Out);
  if (count < kStep) {
    for (int32_t i = 0; i < count; ++i) out[i] = value;
    return;
  }
  uint32_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(Out));
  if (sizeof(Out) == 2) word |= word << 16;
  const VecInt lanes = static_cast<int32_t>(word) - VecInt{};
  Out* const end = out + count;
  __builtin_memcpy(out, &lanes, sizeof(lanes));
  Out* at = out + (kVectorBytes - reinterpret_cast<uintptr_t>(out) % kVectorBytes) / sizeof(Out);
  for (; end - at >= 4 * kStep; at += 4 * kStep) {
    for (int i = 0; i < 4; ++i) reinterpret_cast<AlignedVecInt*>(at)[i] = lanes;
  }
  for (; end - at >= kStep; at += kStep) *reinterpret_cast<AlignedVecInt*>(at) = lanes;
  __builtin_memcpy(end - kStep, &lanes, sizeof(lanes));
}

typedef VecInt __attribute__((aligned(1), may_alias)) AnyVecInt;

// As memcpy, by vectors on the boundaries of `to`. The C library's takes another way for sizes and places
// like these, which was a quarter slower.
void copy_bytes(char* to, const char* from, int64_t bytes) {
  char* const end = to + bytes;
  if (bytes < kVectorBytes) {
    while (to != end) *to++ = *from++;
    return;
  }
  const AnyVecInt last = *reinterpret_cast<const AnyVecInt*>(from + bytes - kVectorBytes);
  *reinterpret_cast<AnyVecInt*>(to) = *reinterpret_cast<const AnyVecInt*>(from);
  const int64_t head = kVectorBytes - static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kVectorBytes);
  to += head, from += head;
  constexpr int kUnroll = 4;
  for (; end - to >= kUnroll * kVectorBytes; to += kUnroll * kVectorBytes, from += kUnroll * kVectorBytes) {
    VecInt vectors[kUnroll];
    for (int i = 0; i < kUnroll; ++i) vectors[i] = reinterpret_cast<const AnyVecInt*>(from)[i];
    for (int i = 0; i < kUnroll; ++i) reinterpret_cast<AlignedVecInt*>(to)[i] = vectors[i];
  }
  for (; end - to >= kVectorBytes; to += kVectorBytes, from += kVectorBytes) {
    *reinterpret_cast<AlignedVecInt*>(to) = *reinterpret_cast<const AnyVecInt*>(from);
  }
  *reinterpret_cast<AnyVecInt*>(end - kVectorBytes) = last;
}

// Terms of which next_cut tells: where no other is open, a row is cut at their segments' ends alone.
template <class T, class = void>
struct HasCuts : std::false_type {};
template <class T>
struct HasCuts<T, std::void_t<decltype(&T::next_cut)>> : std::true_type {};

// The terms' bits by what a row does with them.
struct Kinds {
  uint64_t cuts, local, hiding;  // hiding: of the local ones
};

Kinds kinds_of(const Term* terms, int count) {
  Kinds kinds = {0, 0, 0};
  for (int i = 0; i < count; ++i) {
    visit(terms[i], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      const uint64_t bit = uint64_t{1} << i;
      if (HasCuts<T>::value) kinds.cuts |= bit;
      if (T::kLocal) kinds.local |= bit;
      if (T::kLocal && T::kHides) kinds.hiding |= bit;
    });
  }
  return kinds;
}

int32_t next_cut(const Term* terms, uint64_t which, int32_t k, int32_t end) {
  for (; which != 0; which &= which - 1) {
    visit(terms[lowest_bit(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      if constexpr (HasCuts<std::decay_t<decltype(term)>>::value) end = term.next_cut(k, end);
    });
  }
  return end;
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
    if constexpr (T::kLocal && !T::kHides) {
      t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        t.template row_values<double>(tile.b, tile.q0, begin, end,
                                      [&](int32_t k, double value)
                                          AB_INLINE_LAMBDA { sums[k - tile.k0] += value; });
      });
    } else if constexpr (T::kLocal) {
      double local[kPart];
      for (int32_t k = tile.k0; k < tile.k1; ++k) local[k - tile.k0] = t.outside(k);
      t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        t.template row_values<double>(tile.b, tile.q0, begin, end,
                                      [&](int32_t k, double value)
                                          AB_INLINE_LAMBDA { local[k - tile.k0] = value; });
      });
      for (int32_t k = tile.k0; k < tile.k1; ++k) sums[k - tile.k0] += local[k - tile.k0];
    } else {
      for (int32_t k = tile.k0; k < tile.k1; ++k) {
        sums[k - tile.k0] += t.template value<double>(t.column(tile.b, tile.h, k), tile.q0);
      }
    }
  });
}

template <class Out>
void round_sums(const double* sums, int32_t count, Out* out) {
  for (int32_t i = 0; i < count; ++i) set_bias(out + i, round_bias(sums[i]));
}

// Writes again what local terms make of the keys near the query, the rest of the row being filled. Where one
// hides all but its near keys, the others' do not count beyond them.
template <class Out>
void write_near(const Term* terms, uint64_t local, uint64_t hiding, double constant, const Tile& tile,
                Out* out) {
  uint64_t leading = hiding != 0 ? hiding & (~hiding + 1) : local;
  for (; leading != 0; leading &= leading - 1) {
    const int leader = lowest_bit(leading);
    const uint64_t others = local & ~(uint64_t{1} << leader);
    visit(terms[leader], [&](const auto& t) AB_INLINE_LAMBDA {
      if constexpr (std::decay_t<decltype(t)>::kLocal) {
        t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
          Tile run = tile;
          for (run.k0 = begin; run.k0 < end; run.k0 = run.k1) {
            run.k1 = min_i32(run.k0 + kPart, end);
            double sums[kPart];
            t.template row_values<double>(run.b, run.q0, run.k0, run.k1,
                                          [&](int32_t k, double value)
                                              AB_INLINE_LAMBDA { sums[k - run.k0] = constant + value; });
            for (uint64_t left = others; left != 0; left &= left - 1) {
              add_elements(terms[lowest_bit(left)], run, sums);
            }
            round_sums(sums, run.k1 - run.k0, out + (run.k0 - tile.k0));
          }
        });
      }
    });
  }
}

// Writes the tile, of one query, given the constant that is settled already and the terms that are not.
template <class Out>
void write_row(const Term* terms, const Kinds& kinds, uint64_t open, double constant, const Tile& tile,
               int32_t step, Out* out) {
  Tile part = tile;
  for (; part.k0 < tile.k1; part.k0 = part.k1) {
    part.k1 = next_cut(terms, open & kinds.cuts, part.k0, min_i32(part.k0 + step, tile.k1));
    const int32_t count = part.k1 - part.k0;
    Out* at = out + (part.k0 - tile.k0);
    const uint64_t local = open & kinds.local;
    const TilePlan plan = plan_tile(terms, open & ~local, part);
    const double sum = constant + row_constant(terms, plan.row_constant, part);
    if (plan.hidden || sum == hidden<double>()) {
      fill(at, count, hidden<float>());
    } else if (plan.mixed == 0) {
      uint64_t hiding = 0;  // the whole part, but for the near keys
      for (uint64_t left = local & kinds.hiding; left != 0; left &= left - 1) {
        visit(terms[lowest_bit(left)], [&](const auto& term) AB_INLINE_LAMBDA {
          if constexpr (std::decay_t<decltype(term)>::kLocal) {
            if (term.outside(part.k0) == hidden<float>()) hiding |= left & (~left + 1);
          }
        });
      }
      fill(at, count, hiding != 0 ? hidden<float>() : round_bias(sum));
      write_near(terms, local, hiding, sum, part, at);
    } else if (step > kPart) {
      write_row(terms, kinds, plan.mixed | local, sum, part, step > kChunk ? kChunk : kPart, at);
    } else {
      double sums[kPart];
      for (int32_t i = 0; i < count; ++i) sums[i] = sum;
      for (uint64_t left = plan.mixed | local; left != 0; left &= left - 1) {
        add_elements(terms[lowest_bit(left)], part, sums);
      }
      round_sums(sums, count, at);
    }
  }
}

}  // namespace

namespace AB_ISA_NAME {

void bias_rows(const BiasProblem& p, int64_t row0, int64_t row1) {
  const Program& bias = *p.bias;
  const Extent& e = bias.extent();
  const int64_t heads = bias.depends_on_head() ? e.heads : 1;
  const Term* terms = bias.term_data();
  const uint64_t all = all_terms(bias.term_count());
  const Kinds kinds = kinds_of(terms, bias.term_count());
  const int32_t keys = static_cast<int32_t>(e.keys);
  const int32_t step = (all & ~kinds.cuts) == 0 ? keys : kChunk;
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t bh = row / e.queries;
    const int32_t q = static_cast<int32_t>(row - bh * e.queries);
    const Tile tile = {bh / heads, bh % heads, q, q + 1, 0, keys};
    if (p.dtype == DType::kBfloat16) {
      write_row(terms, kinds, all, 0.0, tile, step, static_cast<uint16_t*>(p.out) + row * e.keys);
    } else {
      write_row(terms, kinds, all, 0.0, tile, step, static_cast<float*>(p.out) + row * e.keys);
    }
  }
}

void bias_copies(const BiasProblem& p, int64_t b0, int64_t b1) {
  const Extent& e = p.bias->extent();
  const int64_t rows = (p.bias->depends_on_head() ? e.heads : 1) * e.queries;
  const int64_t bytes = rows * e.keys * (p.dtype == DType::kBfloat16 ? 2 : 4);
  char* const out = static_cast<char*>(p.out);
  for (int64_t b = b0; b < b1; ++b) {
    const int64_t first = p.bias->first_alike(b);
    if (first != b) copy_bytes(out + b * bytes, out + first * bytes, bytes);
  }
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
