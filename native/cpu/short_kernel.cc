// Biased attention forward of many batch rows and heads that have few keys each, such as Swin's windows,
// compiled once an instruction set. Their bias, where there is one, was written once for all batch rows that
// share it (Program::first_alike), in the layout in which scores are kept, by expand_bias.
//
// Lanes are queries, as in attention_kernel.cc, but a row's scores are all there before its softmax: the
// maximum is exact, nothing is rescaled, and no state is kept from tile to tile. Per batch row and head, and
// block of 3 vectors of queries:
//
//   scores   8 keys × 3 vectors over d from the biases; 7 keys where that divides their number (49 = 7·7).
//   output   8 value dims × 3 vectors, 64 keys at a time.
//   queries  are packed, and outputs brought back to rows, by transposing squares of registers.
//
// Queries that would fill a small part of a vector (the 49th) go to row_kernel.cc. The next head's queries,
// keys, values and output are prefetched, a line at each turn of this one's innermost loops: a head's work is
// too short for the processor to see the next by itself, and a burst of lines is waited for.
//
// Swin (4,096 windows × 3 heads × 49×49×32, table and shifted mask) has 3.8 GFLOP to do and 308 MB to move.
// On an AMD EPYC (family 25, model 17, 2 cores) with AVX-512: 54.5 ms with one thread (69 GFLOP/s, 60 % of
// what its multipliers can do) and 27.3 ms with two (139 GFLOP/s, 11 GB/s), of which expand_bias is under
// 1 %; AVX2: 56.3 and 28.2 ms. 512 heads of 256×256×64 without bias: 200 GFLOP/s, 87 %.
#include <cstdint>
#include <type_traits>

#include "core/softmax.h"
#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace attention_bias::cpu {
namespace {

constexpr int kPartKeys = 64;  // added up before they join the output

// How the queries of a head are divided: blocks of kQueries, of which the last may be smaller, and rows.
struct Division {
  int32_t blocks, in_blocks, rows;
};

Division divide(int32_t queries) {
  const int32_t rows = AB_ISA_NAME::left_over_rows(queries);
  const int32_t in_blocks = queries - rows;
  return {(in_blocks + kQueries - 1) / kQueries, in_blocks, rows};
}

// Memory to have in L2 before the next head: a line at each step of this one's innermost loops, of which
// there are about as many as lines. In larger steps they would be waited for: a core can ask for few at a
// time.
class Ahead {
 public:
  AB_INLINE void clear() { count_ = 0, at_ = end_ = nullptr; }
  AB_INLINE void add(const float* at, int64_t floats) {
    ats_[count_] = at_, ends_[count_++] = end_;
    at_ = at, end_ = at + floats;
  }
  AB_INLINE void operator()() {
    if (!at_) return;
    __builtin_prefetch(at_, 0, 2);
    at_ += kLine;
    if (at_ >= end_) --count_, at_ = ats_[count_], end_ = ends_[count_];
  }

 private:
  static constexpr int64_t kLine = 16;  // floats
  const float *at_, *end_, *ats_[4], *ends_[4];
  int32_t count_;
};

struct Work {
  const AttentionProblem* problem;
  int32_t keys, head_dim, value_dim;
  float* packed;  // [head_dim][kQueries]
  float* scores;  // [keys][kQueries]
  float* output;  // [value_dim][kQueries]
  Ahead* ahead;
};

template <int NV, Start kStart>
AB_INLINE void score_keys(const Work& w, const float* key, const float* biases, Vec* greatest) {
  const Panel panel = {w.packed, key, w.head_dim, w.head_dim};
  const Vec none[NV] = {};
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = Vec{} - kInfinity;
  // Without biases there is no place of a key's.
  const auto at = [biases](int32_t k)
                      AB_INLINE_LAMBDA { return kStart == Start::kRow ? nullptr : biases + k * kQueries; };
  int32_t k = 0;
  if (kRows == 8 && w.keys % 8 != 0 && w.keys % 7 == 0) {
    for (; k < w.keys; k += 7) {
      score_rows<7, NV, kStart>(&panel, 1, k, none, at(k), w.scores + k * kQueries, greatest, *w.ahead);
    }
  }
  for (; k + kRows <= w.keys; k += kRows) {
    score_rows<kRows, NV, kStart>(&panel, 1, k, none, at(k), w.scores + k * kQueries, greatest, *w.ahead);
  }
  for (; k < w.keys; ++k) {
    score_rows<1, NV, kStart>(&panel, 1, k, none, at(k), w.scores + k * kQueries, greatest, *w.ahead);
  }
}

// A part of the keys; their first with kFirst.
template <int NV, bool kCareful, bool kFirst>
AB_INLINE void output_part(const Work& w, const float* value, const float* biases, int32_t k) {
  const int32_t count = min_i32(w.keys - k, kPartKeys);
  const float* part = value + static_cast<int64_t>(k) * w.value_dim;
  const float *scores = w.scores + k * kQueries, *bias = biases ? biases + k * kQueries : nullptr;
  int32_t d = 0;
  for (; d + kRows <= w.value_dim; d += kRows) {
    output_rows<kRows, NV, kCareful, kFirst>(scores, bias, count, part + d, w.value_dim,
                                             w.output + d * kQueries, *w.ahead);
  }
  for (; d < w.value_dim; ++d) {
    output_rows<1, NV, kCareful, kFirst>(scores, bias, count, part + d, w.value_dim, w.output + d * kQueries,
                                         *w.ahead);
  }
}

template <int NV, bool kCareful>
AB_INLINE void output_keys(const Work& w, const float* value, const float* biases) {
  output_part<NV, kCareful, true>(w, value, biases, 0);
  for (int32_t k = kPartKeys; k < w.keys; k += kPartKeys) {
    output_part<NV, kCareful, false>(w, value, biases, k);
  }
}

template <int NV>
AB_INLINE bool any_nan(const Work& w) {
  bool any = false;
  for (int32_t i = 0; i < w.value_dim * kQueries; ++i) any |= w.output[i] != w.output[i];
  return any;
}

// A block of `count` queries. biases: [keys][kQueries], then whether each query sees a key (1 or 0); null for
// none.
template <int NV, Start kStart>
void attend_block(const Work& w, const float* query, const float* key, const float* value,
                  const float* biases, int32_t count, float* out, float* lse) {
  pack(query, count, w.head_dim, static_cast<float>(w.problem->scale), w.packed);
  Vec base[NV], sum[NV], factor[NV];
  score_keys<NV, kStart>(w, key, biases, base);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) base[v] = base[v] == -kInfinity ? Vec{} : base[v];
  exp_tile<NV, true>(w.scores, w.keys, base, sum);
  output_keys<NV, false>(w, value, biases);
  // A hidden key's NaN or infinite value times its probability 0 is NaN too: once more, without hidden pairs.
  if (kStart == Start::kHiding && any_nan<NV>(w)) output_keys<NV, true>(w, value, biases);
  alignas(kVectorBytes) float lses[kQueries];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    // The rules of softmax.h.
    const Vec nan = Vec{} + __builtin_nanf("");
    factor[v] = sum[v] == 0.0f ? nan : 1.0f / sum[v];
    Vec logs = sum[v] == 0.0f ? nan : base[v] + log_vec(sum[v]);
    if (kStart == Start::kHiding) {
      const VecInt seen = load(biases + w.keys * kQueries + v * kLanes) != 0.0f;
      factor[v] = seen ? factor[v] : Vec{};
      logs = seen ? logs : Vec{} - kInfinity;
    }
    store(lses + v * kLanes, logs);
  }
  unpack(w.output, count, w.value_dim, factor, out);
  for (int32_t q = 0; q < count; ++q) lse[q] = lses[q];
}

template <Start kStart>
AB_INLINE void attend_queries(const Work& w, const float* query, const float* key, const float* value,
                              const float* biases, int32_t count, float* out, float* lse) {
  switch ((count + kLanes - 1) / kLanes) {
    case 1:
      return attend_block<1, kStart>(w, query, key, value, biases, count, out, lse);
    case 2:
      return attend_block<2, kStart>(w, query, key, value, biases, count, out, lse);
    default:
      return attend_block<3, kStart>(w, query, key, value, biases, count, out, lse);
  }
}

}  // namespace

namespace AB_ISA_NAME {

int64_t shared_bias_floats(int32_t queries, int32_t keys) {
  const Division d = divide(queries);
  const int64_t floats =
      static_cast<int64_t>(d.blocks) * (keys + 1) * kQueries + static_cast<int64_t>(d.rows) * keys;
  return (floats + 15) / 16 * 16;
}

void expand_bias(const Program& bias, int64_t b, int64_t h, float* to) {
  const Term* terms = bias.term_data();
  const int32_t queries = static_cast<int32_t>(bias.extent().queries);
  const int32_t keys = static_cast<int32_t>(bias.extent().keys);
  const Division division = divide(queries);
  const auto at = [&](int32_t q, int32_t k) AB_INLINE_LAMBDA -> float* {
    if (q >= division.in_blocks) {
      float* rows = to + static_cast<int64_t>(division.blocks) * (keys + 1) * kQueries;
      return rows + static_cast<int64_t>(q - division.in_blocks) * keys + k;
    }
    return to + (static_cast<int64_t>(q / kQueries) * (keys + 1) + k) * kQueries + q % kQueries;
  };
  for (int64_t i = 0; i < shared_bias_floats(queries, keys); ++i) to[i] = 0.0f;
  for (int i = 0; i < bias.term_count(); ++i) {
    visit(terms[i], [&](const auto& term) AB_INLINE_LAMBDA {
      for (int32_t k = 0; k < keys; ++k) {
        const auto column = term.column(b, h, k);
        for (int32_t q = 0; q < queries; ++q) {
          *at(q, k) = add_bias(*at(q, k), term.template value<float>(column, q));
        }
      }
    });
  }
  for (int32_t q = 0; q < division.in_blocks; ++q) {
    for (int32_t k = 0; k < keys; ++k) {
      if (*at(q, k) != -kInfinity) *at(q, keys) = 1.0f;
    }
  }
}

int64_t short_scratch_floats(const AttentionProblem& p) {
  return (p.head_dim + p.value_dim + p.extent.keys) * kQueries +
         row_scratch_floats(p, divide(static_cast<int32_t>(p.extent.queries)).rows);
}

bool attention_short(const ShortTask& t) {
  const AttentionProblem& p = *t.problem;
  const Extent& e = p.extent;
  const Division division = divide(static_cast<int32_t>(e.queries));
  Work w = {};
  w.problem = &p;
  w.keys = static_cast<int32_t>(e.keys);
  w.head_dim = static_cast<int32_t>(p.head_dim);
  w.value_dim = static_cast<int32_t>(p.value_dim);
  w.packed = t.scratch;
  w.scores = w.packed + p.head_dim * kQueries;
  w.output = w.scores + e.keys * kQueries;
  Ahead ahead;
  w.ahead = &ahead;
  const int64_t queries = e.queries * p.head_dim, outs = e.queries * p.value_dim;
  const int64_t keys = e.keys * p.head_dim, values = e.keys * p.value_dim;
  float* const row_scratch = w.output + p.value_dim * kQueries;
  for (int64_t row = t.row0; row < t.row1; ++row) {
    if (aborted(t.abort)) return false;
    const int64_t b = row / e.heads, h = row % e.heads;
    const float* biases = t.biases ? t.biases[b] + h * t.head_stride : nullptr;
    const float* query = p.query.f32() + row * e.queries * p.head_dim;
    const float* key = p.key.f32() + row * e.keys * p.head_dim;
    const float* value = p.value.f32() + row * e.keys * p.value_dim;
    float* out = p.out + row * e.queries * p.value_dim;
    float* lse = p.lse + row * e.queries;
    ahead.clear();
    if (row + 1 < t.row1) {  // the last added is the first to come
      ahead.add(out + outs, outs);
      ahead.add(value + values, values);
      ahead.add(key + keys, keys);
      ahead.add(query + queries, queries);
    }
    for (int32_t q0 = 0; q0 < division.in_blocks; q0 += kQueries) {
      const int32_t count = min_i32(division.in_blocks - q0, kQueries);
      const float* block = biases ? biases + static_cast<int64_t>(q0) * (e.keys + 1) : nullptr;
      const float* at = query + q0 * p.head_dim;
      float* out_at = out + q0 * p.value_dim;
      if (!biases) {
        attend_queries<Start::kRow>(w, at, key, value, nullptr, count, out_at, lse + q0);
      } else if (!t.hides) {
        attend_queries<Start::kFinite>(w, at, key, value, block, count, out_at, lse + q0);
      } else {
        attend_queries<Start::kHiding>(w, at, key, value, block, count, out_at, lse + q0);
      }
    }
    if (division.rows != 0) {
      AttentionTask rest = {};
      rest.problem = &p;
      rest.b = b, rest.h = h;
      rest.q0 = division.in_blocks, rest.q1 = static_cast<int32_t>(e.queries);
      rest.k1 = w.keys;
      rest.scratch = row_scratch;
      rest.abort = t.abort;
      rest.out = out + rest.q0 * p.value_dim;
      rest.lse = lse + rest.q0;
      const int64_t blocks_floats = static_cast<int64_t>(division.blocks) * (e.keys + 1) * kQueries;
      if (!attention_rows(rest, biases ? biases + blocks_floats : nullptr)) return false;
    }
  }
  return true;
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
