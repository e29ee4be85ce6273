// Bias generation and mask fusion in one pass over the output, compiled once an instruction set. A row is cut
// where a segment ends; a stretch in which every term but the local ones is constant is filled, and the keys
// near the query are written over it while they are in cache. Where other terms are open, the row is cut into
// chunks and those into parts, until a fill will do or elements are evaluated one by one. Terms are evaluated
// and summed in float64 and rounded once to float32, and from there to bfloat16 where that is asked for.
// Batch rows that are alike by the terms' fields (Swin: as many as four differ) are written once and copied.
//
// It writes 4 or 2 bytes an element and reads little: the bound is a fill of the output, by the same threads
// into the same warm memory. AMD EPYC (Zen 4, family 25 model 17), two cores and two threads, x86-64-v4,
// medians of four runs interleaved with fills, in ms (and in percent of the fastest fill's speed):
//
//   900 × 56,400                        float32        bfloat16
//   modality                            7.4 (99 %)     3.3 (98 %)
//   modality, spatial of 3 and 8 cells  7.4 (98 %)     3.4 (97 %)
//   windows of 5 and 15 cells           7.3 (99 %)     3.4 (98 %)
//   Swin, 4,096 × 3 × 49 × 49           4.5 (87 %)     1.8 (83 %)
//
// The host's memory is shared, and was twice as fast at times (fills in 4.3 and 2.2 ms). What is computed
// near a query shows then: modality and spatial in bfloat16 ran at 81 %. Swin's copies read what a fill does
// not; a copy alone reached 91 to 95 %. Stores past the cache lost up to 13 % to these where memory was slow,
// and won 10 % where it was fast.
#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

constexpr int32_t kChunk = 2048;  // keys that are classed together where a class is not known by segments
constexpr int32_t kPart = 128;    // keys that are evaluated together

// Of anything, on their boundaries or not.
typedef VecInt __attribute__((may_alias)) AlignedVecInt;
typedef VecInt __attribute__((aligned(1), may_alias)) AnyVecInt;

// As memcpy, of fewer than 2·kBytes bytes.
template <int kBytes>
AB_INLINE void copy_less_than_twice(int32_t bytes, char* to, const char* from) {
  if constexpr (kBytes > 0) {
    if (bytes & kBytes) __builtin_memcpy(to, from, kBytes);
    copy_less_than_twice<kBytes / 2>(bytes, to + (bytes & kBytes), from + (bytes & kBytes));
  }
}

// As memcpy, by vectors on the boundaries of `to`. The C library's takes another way at sizes and places like
// these, a quarter slower.
AB_INLINE void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes < kVectorBytes) {
    copy_less_than_twice<kVectorBytes / 2>(static_cast<int32_t>(bytes), to, from);
    return;
  }
  char* const end = to + bytes;
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

// The same, with a vector of equal elements for a source.
template <class Out>
AB_INLINE void fill(Out* out, int32_t count, float bias) {
  Out value;
  set_bias(&value, bias);
  uint32_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(Out));
  if (sizeof(Out) == 2) word |= word << 16;
  const VecInt lanes = static_cast<int32_t>(word) - VecInt{};
  constexpr int32_t kStep = kVectorBytes / sizeof(Out);
  if (count < kStep) {
    const int32_t bytes = count * static_cast<int32_t>(sizeof(Out));
    copy_less_than_twice<kVectorBytes / 2>(bytes, reinterpret_cast<char*>(out),
                                           reinterpret_cast<const char*>(&lanes));
    return;
  }
  Out* const end = out + count;
  *reinterpret_cast<AnyVecInt*>(out) = lanes;
  Out* at = out + (kVectorBytes - reinterpret_cast<uintptr_t>(out) % kVectorBytes) / sizeof(Out);
  for (; end - at >= 4 * kStep; at += 4 * kStep) {
    for (int i = 0; i < 4; ++i) reinterpret_cast<AlignedVecInt*>(at)[i] = lanes;
  }
  for (; end - at >= kStep; at += kStep) *reinterpret_cast<AlignedVecInt*>(at) = lanes;
  *reinterpret_cast<AnyVecInt*>(end - kStep) = lanes;
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

// Elements that are evaluated side by side. Sums have room for a whole number of groups, so that loops over
// them need no end of single elements; what lies beyond a run is never written.
constexpr int32_t kGroup = 16;
static_assert(kPart % kGroup == 0, "groups must fit a part");
AB_INLINE int32_t in_groups(int32_t count) { return (count + kGroup - 1) & -kGroup; }

// Adds a term's values for one query to the sums of a part of its row.
void add_elements(const Term& term, const Tile& tile, double* sums) {
  visit(term, [&](const auto& t) AB_INLINE_LAMBDA {
    using T = std::decay_t<decltype(t)>;
    if constexpr (T::kLocal && T::kHides) {
      double local[kPart];
      for (int32_t k = tile.k0; k < tile.k1; ++k) local[k - tile.k0] = t.outside(k);
      t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        for (int32_t k = begin; k < end; ++k) local[k - tile.k0] = 0;
      });
      for (int32_t k = tile.k0; k < tile.k1; ++k) sums[k - tile.k0] += local[k - tile.k0];
    } else if constexpr (T::kLocal) {
      const auto add_run = [&](int32_t begin, int32_t end, const auto& value) AB_INLINE_LAMBDA {
        for (int32_t k = begin; k < end; ++k) sums[k - tile.k0] += value(k - begin);
      };
      t.template near_values<double>(tile, tile.q0, add_run);
    } else {
      for (int32_t k = tile.k0; k < tile.k1; ++k) {
        sums[k - tile.k0] += t.template value<double>(t.column(tile.b, tile.h, k), tile.q0);
      }
    }
  });
}

// Sums of some runs of a row, on their way to it: rounding them together costs less than one by one.
template <class Out>
struct Runs {
  static constexpr int32_t kSums = 4 * kPart, kMost = 32;
  double sums[kSums];
  int32_t used = 0, count = 0;
  struct {
    Out* out;
    int32_t first, count;
  } runs[kMost];

  // Room for the sums of a run of at most kPart, and of whole groups.
  AB_INLINE double* add(Out* out, int32_t length) {
    if (count == kMost || used + kPart > kSums) flush();
    runs[count++] = {out, used, length};
    used += in_groups(length);
    return sums + used - in_groups(length);
  }
  // One loop a width of elements: the compiler makes vectors of each. Sums within bfloat16's range, which
  // their bits tell at once, need no choice between results.
  AB_INLINE void flush() {
    constexpr int32_t kCareful = 0x7f7f0000;  // the greatest bfloat16
    union {
      float rounded[kSums];
      int32_t bits[kSums];
      uint32_t wide[kSums];
    };
    uint16_t narrow[kSums];
    int32_t greatest = 0;
    for (int32_t i = 0; i < used; ++i) rounded[i] = static_cast<float>(sums[i]);
    for (int32_t i = 0; i < used; ++i) greatest = max_i32(greatest, bits[i] & 0x7fffffff);
    if (greatest >= kCareful) {
      for (int32_t i = 0; i < used; ++i) rounded[i] = round_bias(sums[i]);
    }
    if constexpr (sizeof(Out) == 2) {
      if (greatest >= kCareful) {
        for (int32_t i = 0; i < used; ++i) wide[i] = bias_to_bf16(rounded[i]);
      } else {
        for (int32_t i = 0; i < used; ++i) wide[i] = nearest_bf16(wide[i]);
      }
      for (int32_t i = 0; i < used; ++i) narrow[i] = static_cast<uint16_t>(wide[i]);
    }
    const char* from = reinterpret_cast<const char*>(rounded);
    if constexpr (sizeof(Out) == 2) from = reinterpret_cast<const char*>(narrow);
    constexpr int32_t kSize = sizeof(Out);
    for (int32_t i = 0; i < count; ++i) {
      copy_bytes(reinterpret_cast<char*>(runs[i].out), from + runs[i].first * kSize, runs[i].count * kSize);
    }
    used = count = 0;
  }
};

// Writes what local terms make of the keys near the query over what the row was filled with. Where one hides
// all but its near keys, no other matters beyond them.
template <class Out>
void write_near(const Term* terms, uint64_t local, uint64_t hiding, double constant, const Tile& tile,
                Out* out) {
  Runs<Out> runs;
  // What is written next comes from memory while this is computed. Past the output it is a hint of nothing.
  constexpr int kAhead = 8;
  const char* ahead = reinterpret_cast<const char*>(out + (tile.k1 - tile.k0));
  uint64_t leading = hiding != 0 ? hiding & (~hiding + 1) : local;
  for (; leading != 0; leading &= leading - 1) {
    const int leader = lowest_bit(leading);
    const uint64_t others = local & ~(uint64_t{1} << leader);
    const auto add_others = [&](int32_t begin, int32_t end, double* sums) AB_INLINE_LAMBDA {
      const Tile run = {tile.b, tile.h, tile.q0, tile.q1, begin, end};
      for (uint64_t left = others; left != 0; left &= left - 1) {
        add_elements(terms[lowest_bit(left)], run, sums);
      }
    };
    const auto write_run = [&](int32_t begin, int32_t end, const auto& value) AB_INLINE_LAMBDA {
      for (int32_t k = begin; k < end; k += kPart) {
        const int32_t count = min_i32(kPart, end - k), groups = in_groups(count);
        for (int i = 0; i < kAhead; ++i, ahead += 64) __builtin_prefetch(ahead, 1);
        double* const sums = runs.add(out + (k - tile.k0), count);
        for (int32_t i = 0; i < groups; ++i) sums[i] = constant + value(k - begin + i);
        add_others(k, k + count, sums);
      }
    };
    visit(terms[leader], [&](const auto& t) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(t)>;
      if constexpr (T::kLocal && T::kHides) {
        t.near(tile, tile.q0, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
          if (others == 0) return fill(out + (begin - tile.k0), end - begin, round_bias(constant));
          write_run(begin, end, [](int32_t) AB_INLINE_LAMBDA { return 0.0; });
        });
      } else if constexpr (T::kLocal) {
        t.template near_values<double>(tile, tile.q0, write_run);
      }
    });
  }
  runs.flush();
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
      Runs<Out> runs;
      double* const sums = runs.add(at, count);
      for (int32_t i = 0; i < in_groups(count); ++i) sums[i] = sum;
      for (uint64_t left = plan.mixed | local; left != 0; left &= left - 1) {
        add_elements(terms[lowest_bit(left)], part, sums);
      }
      runs.flush();
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
