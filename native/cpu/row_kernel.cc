// Biased attention forward of single queries, compiled once an instruction set: for rows whose terms bound
// their keys to few (gather), and for queries that are left over where attention_kernel.cc would fill a small
// part of a vector with them (attention_rows).
//
// Lanes are head dims. Keys and values are read row by row where they lie, by a list of the row's visible
// keys, so that a hidden key's data are never read. Per tile of 64 listed keys:
//
//   scores   kGroup keys (a vector of them, at least 8) are multiplied with the packed query at once, and a
//            transposition whose steps add (lane_sums) leaves their scores in lanes: 2 shuffles and 1
//            addition a key with AVX-512, and no horizontal sum.
//   softmax  exp of whole vectors of keys, from a lazy maximum as in attention_kernel.cc.
//   output   8 independent vectors of sums, to hide the latency of adding, starting at zero in each tile;
//            tiles are summed over 512 keys, and those sums joined with a compensation term (Kahan).
//
// gather() lists the keys of some queries in closed form (visible_runs), and evaluates the other terms along
// each run of them, once for all heads of its task unless the bias differs between heads. attention_rows()
// takes its queries through a tile of keys one after the other, so that all but the first find it in L1;
// tiles are classed as in attention_kernel.cc.
//
// Work per key at head dim 32 with AVX-512: 256 bytes, 4 multiply-adds, 3 operations to bring a score to its
// lane and 1 for its exp. CMT's local attention (1×8×900×56,400×32, windows of 5×5 BEV and 15×15 image cells:
// at most 250 keys a query) has 1.8 M keys to visit, 461 MB, of which memory gives at most 115. On a Zen 4
// EPYC (family 25, model 17, 2 cores) with AVX-512: 8.2 ms with two threads (29 GFLOP/s, 56 GB/s of rows) and
// 15.6 with one, of which 6.9 remain where all queries share a window, 14 cycles a key; the rest is waiting
// for memory (the 115 MB, read in order, take 3.1 ms). Prefetching the values, the next tile or the next
// query gained nothing: what it hid, its own instructions took. A query in attention_rows() takes 2.4 ns a
// key from L1.
#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

constexpr int kGroup = kLanes < 8 ? 8 : kLanes;  // keys whose products are under way at once
constexpr int kBlockTiles = 8;                   // summed apart before they join the total
constexpr int kKeyBlock = kBlockTiles * kTileKeys;
constexpr float kSlack = 7.0f;  // as in attention_kernel.cc
constexpr float kInfinity = __builtin_inff();
constexpr int kWidest = 16;             // lanes of any instruction set: what scratch is counted in
constexpr int kGatherKeys = 16 * 1024;  // listed at once, or one row's: 128 KB with their biases
constexpr int kGatherQueries = 64;

constexpr int64_t padded(int64_t count, int64_t lanes) { return (count + lanes - 1) / lanes * lanes; }

// score += query·key over `dims` dimensions; the head's own, and one panel more for each lowRank term.
struct Panel {
  const float* key;  // row of key 0
  int32_t dims;
  int32_t offset;  // into the packed query
};
constexpr int kMaxPanels = 1 + kMaxTerms;

struct Work {
  const AttentionProblem* problem;
  const Term* terms;
  uint64_t element_terms;  // to be evaluated, all but lowRank
  uint64_t low_rank_terms;
  int32_t packed;     // floats of a packed query
  int32_t value_dim;  // of a row of values
  int32_t sums;       // floats of a row's sums: outputs, and a vector of Σ exp(score − base)
  int64_t b, h;
  const float* value;  // of this batch row and head
  int panel_count;
  int whole_vectors;  // of a row of keys, where it is the only panel and has nothing besides; or 0
  Panel panels[kMaxPanels];
};

// Running state of one query.
struct Row {
  float* query;   // packed: each panel's, scaled, with zeros up to a whole vector
  float* output;  // [sums] of the block of keys at hand
  float* total;   // of the blocks before
  float* lost;    // what total lacks by rounding
  float base;
  float limit;  // the score above which the base moves: base + kSlack, or −∞ while there is no base
  bool seen;
  bool folded;     // whether total holds anything
  float bias;      // attention_rows(): of all of the block of keys at hand, and
  uint64_t mixed;  // the terms that its tiles are still to evaluate
};

constexpr int64_t kRowFloats = (sizeof(Row) + 63) / 64 * kWidest;

int64_t row_floats(const AttentionProblem& p, int64_t panels) {
  const int64_t packed = padded(packed_dims(p), kWidest) + panels * kWidest;
  return packed + 3 * (padded(p.value_dim, kWidest) + kWidest);
}

// ---- scores ----------------------------------------------------------------------------------------------

// As products(), of one panel whose rows are NV whole vectors: the query stays in registers.
template <int NV>
AB_INLINE void short_products(const float* key, const float* query, const int32_t* keys, Vec* scores) {
  Vec q[NV], sum[kGroup];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) q[v] = load(query + v * kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < kGroup; ++i) {
    const float* row = key + static_cast<int64_t>(keys[i]) * (NV * kLanes);
    sum[i] = q[0] * load_any(row);
#pragma GCC unroll 8
    for (int v = 1; v < NV; ++v) sum[i] += q[v] * load_any(row + v * kLanes);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kGroup / kLanes; ++i) scores[i] = lane_sums(sum + i * kLanes);
}

// Products of kGroup keys with the query, lane i of vector i / kLanes for key i.
AB_INLINE void products(const Work& w, const float* query, const int32_t* keys, Vec* scores) {
  Vec sum[kGroup];
#pragma GCC unroll 16
  for (int i = 0; i < kGroup; ++i) sum[i] = Vec{};
  for (int p = 0; p < w.panel_count; ++p) {
    const int32_t dims = w.panels[p].dims;
    const float* q = query + w.panels[p].offset;
    const float* at[kGroup];
#pragma GCC unroll 16
    for (int i = 0; i < kGroup; ++i) at[i] = w.panels[p].key + static_cast<int64_t>(keys[i]) * dims;
    int32_t d = 0;
    for (; d + kLanes <= dims; d += kLanes) {
      const Vec part = load(q + d);
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; ++i) sum[i] += part * load_any(at[i] + d);
    }
    if (d < dims) {
      const Vec part = load(q + d);
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; ++i) sum[i] += part * load_part(at[i] + d, dims - d);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kGroup / kLanes; ++i) scores[i] = lane_sums(sum + i * kLanes);
}

// ---- output ----------------------------------------------------------------------------------------------

// NV vectors of the output of `count` keys, from `value` on; the last of `part` floats where kPart.
template <int NV, bool kPart>
AB_INLINE void output_columns(const float* probabilities, const int32_t* keys, int count, const float* value,
                              int32_t stride, int32_t part, float* output) {
  constexpr int kChains = 8 / NV;  // independent sums, to hide the latency of adding
  Vec sum[kChains][NV];
#pragma GCC unroll 8
  for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[c][v] = Vec{};
  }
  const auto add = [&](int k, Vec* to) AB_INLINE_LAMBDA {
    const float* row = value + static_cast<int64_t>(keys[k]) * stride;
    const Vec p = splat(probabilities[k]);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) to[v] += p * (kPart ? load_part(row, part) : load_any(row + v * kLanes));
  };
  int k = 0;
  for (; k + kChains <= count; k += kChains) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) add(k + c, sum[c]);
  }
  for (; k < count; ++k) add(k, sum[0]);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    Vec all = sum[0][v];
#pragma GCC unroll 8
    for (int c = 1; c < kChains; ++c) all += sum[c][v];
    store(output + v * kLanes, load(output + v * kLanes) + all);
  }
}

AB_INLINE void add_output(const Work& w, const float* probabilities, const int32_t* keys, int count,
                          float* output) {
  const int32_t dim = w.value_dim;
  int32_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    output_columns<4, false>(probabilities, keys, count, w.value + d, dim, 0, output + d);
  }
  if (d + 2 * kLanes <= dim) {
    output_columns<2, false>(probabilities, keys, count, w.value + d, dim, 0, output + d);
    d += 2 * kLanes;
  }
  if (d + kLanes <= dim) {
    output_columns<1, false>(probabilities, keys, count, w.value + d, dim, 0, output + d);
    d += kLanes;
  }
  if (d < dim) output_columns<1, true>(probabilities, keys, count, w.value + d, dim, dim - d, output + d);
}

// ---- a tile of keys --------------------------------------------------------------------------------------

void move_base(const Work& w, Row* row, float base) {
  if (row->limit != -kInfinity) {
    const Vec factor = exp_vec(splat(row->base - base));
    float* const sums[3] = {row->output, row->total, row->lost};
    for (int i = 0; i < (row->folded ? 3 : 1); ++i) {
      for (int32_t d = 0; d < w.sums; d += kLanes) store(sums[i] + d, load(sums[i] + d) * factor);
    }
  }
  row->base = base;
  row->limit = base + kSlack;
}

// `count` ≤ kTileKeys keys, all visible, with their biases, or the same bias of all.
void attend(const Work& w, Row* row, const int32_t* keys, int count, const float* biases, float bias) {
  alignas(kVectorBytes) float scores[kTileKeys];
  Vec greatest = splat(-kInfinity);
  for (int k = 0; k < count; k += kGroup) {
    const int32_t* at = keys + k;
    int32_t last[kGroup];
    if (k + kGroup > count) {  // the last key stands in for those past the end
      for (int i = 0; i < kGroup; ++i) last[i] = keys[min_i32(k + i, count - 1)];
      at = last;
    }
    Vec sum[kGroup / kLanes];
    switch (w.whole_vectors) {
      case 1:
        short_products<1>(w.panels[0].key, row->query, at, sum);
        break;
      case 2:
        short_products<2>(w.panels[0].key, row->query, at, sum);
        break;
      case 4:
        short_products<4>(w.panels[0].key, row->query, at, sum);
        break;
      default:
        products(w, row->query, at, sum);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kGroup / kLanes; ++i) {
      const int32_t first = k + i * kLanes, left = count - first;
      if (left >= kLanes) {
        sum[i] += biases ? load_any(biases + first) : splat(bias);
      } else {
        VecInt lane;
        for (int j = 0; j < kLanes; ++j) lane[j] = j;
        sum[i] += biases ? load_part(biases + min_i32(first, count), max_i32(left, 0)) : splat(bias);
        sum[i] = lane < left ? sum[i] : splat(-kInfinity);
      }
      greatest = max_or_second(sum[i], greatest);  // passes over NaN
      store(scores + k + i * kLanes, sum[i]);
    }
  }
  if (any_greater(greatest, splat(row->limit))) {
    float base = -kInfinity;
    for (int i = 0; i < kLanes; ++i) base = greatest[i] > base ? greatest[i] : base;
    move_base(w, row, base);
  }
  const Vec base = splat(row->base);
  Vec sum = Vec{};
  for (int k = 0; k < count; k += kLanes) {
    const Vec p = exp_vec(load(scores + k) - base);
    store(scores + k, p);
    sum += p;
  }
  float* sums = row->output + w.sums - kLanes;
  store(sums, load(sums) + sum);
  add_output(w, scores, keys, count, row->output);
  row->seen = true;
}

// Adds the sums of a block of keys to the total (Kahan), and clears them for the next.
void fold(const Work& w, Row* row) {
  for (int32_t d = 0; d < w.sums; d += kLanes) {
    if (!row->folded) {
      store(row->total + d, load(row->output + d));
      store(row->lost + d, Vec{});
    } else {
      const Vec old = load(row->total + d), add = load(row->output + d) + load(row->lost + d);
      const Vec next = old + add;
      const VecInt finite = next - next == Vec{};  // an infinite total stays one
      store(row->lost + d, finite ? add - (next - old) : Vec{});
      store(row->total + d, next);
    }
    store(row->output + d, Vec{});
  }
  row->folded = true;
}

// ---- keys and biases -------------------------------------------------------------------------------------

// Adds the terms' value at key k0: what a tile's row-constant terms come to.
AB_INLINE float add_constants(const Term* terms, uint64_t which, const Tile& tile, float bias) {
  for (; which != 0; which &= which - 1) {
    visit(terms[lowest_bit(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      bias = add_bias(bias, term.template value<float>(term.column(tile.b, tile.h, tile.k0), tile.q0));
    });
  }
  return bias;
}

// Adds the values of the terms for one query to biases[k1 − k0].
void add_elements(const Term* terms, uint64_t which, const Tile& tile, float* biases) {
  for (; which != 0; which &= which - 1) {
    visit(terms[lowest_bit(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      const auto add = [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        for (int32_t k = begin; k < end; ++k) {
          float* at = biases + (k - tile.k0);
          *at = add_bias(*at, term.template value<float>(term.column(tile.b, tile.h, k), tile.q0));
        }
      };
      if constexpr (T::kLocal && !T::kHides) {
        term.near(tile, tile.q0, add);
      } else {
        add(tile.k0, tile.k1);
      }
    });
  }
}

// Lists keys [k0, k0 + count); may write up to a vector past them.
AB_INLINE void list_keys(int32_t k0, int32_t count, int32_t* keys) {
  VecInt next;
  for (int i = 0; i < kLanes; ++i) next[i] = k0 + i;
  for (int32_t i = 0; i < count; i += kLanes, next += kLanes) __builtin_memcpy(keys + i, &next, sizeof next);
}

// Drops the hidden of `count` keys; returns how many are left.
AB_INLINE int32_t drop_hidden(int32_t count, int32_t* keys, float* biases) {
  int32_t left = 0;
  for (int32_t i = 0; i < count; ++i) {
    const float bias = biases[i];
    keys[left] = keys[i];
    biases[left] = bias;
    left += bias == -kInfinity ? 0 : 1;
  }
  return left;
}

// Lists the keys of a tile that its one query sees, and their biases; returns how many. `bias` is what terms
// that are not candidates come to.
int32_t list_visible(const Work& w, uint64_t candidates, const Tile& tile, float bias, int32_t* keys,
                     float* biases) {
  const TilePlan plan = plan_tile(w.terms, candidates, tile);
  if (plan.hidden) return 0;
  bias = add_constants(w.terms, plan.row_constant, tile, bias);
  if (bias == -kInfinity) return 0;
  const int32_t count = tile.k1 - tile.k0;
  list_keys(tile.k0, count, keys);
  for (int32_t i = 0; i < count; ++i) biases[i] = bias;
  if (plan.mixed == 0) return count;
  add_elements(w.terms, plan.mixed, tile, biases);
  return drop_hidden(count, keys, biases);
}

// ---- a row -----------------------------------------------------------------------------------------------

void pack(const float* query, int32_t dims, float scale, float* packed) {
  int32_t d = 0;
  for (; d < dims; ++d) packed[d] = query[d] * scale;
  for (; d % kLanes != 0; ++d) packed[d] = 0.0f;
}

// Readies a row for query q of the head at hand.
void start(const Work& w, Row* row, int32_t q) {
  const AttentionProblem& p = *w.problem;
  const float* query = p.query.f32() + ((w.b * p.extent.heads + w.h) * p.extent.queries + q) * p.head_dim;
  pack(query, w.panels[0].dims, static_cast<float>(p.scale), row->query);
  int panel = 1;
  for (uint64_t left = w.low_rank_terms; left != 0; left &= left - 1, ++panel) {
    const LowRankTerm& term = w.terms[lowest_bit(left)].low_rank;
    const float* factors = term.column(w.b, w.h, 0).query_factors + static_cast<int64_t>(q) * term.rank;
    pack(factors, term.rank, term.scale, row->query + w.panels[panel].offset);
  }
  for (int32_t d = 0; d < w.sums; d += kLanes) store(row->output + d, Vec{});
  row->base = 0.0f;
  row->limit = -kInfinity;
  row->seen = row->folded = false;
}

// Writes the row's results; out is [value_dim].
void finish(const Work& w, Row* row, float* out, float* lse, SoftmaxState* partial) {
  if (row->folded) fold(w, row);
  const float* sums = row->folded ? row->total : row->output;
  const Vec lanes = load(sums + w.sums - kLanes);
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  const SoftmaxState state = {row->base, sum, row->seen};
  const float scale = partial ? 1.0f : output_scale(state);
  for (int32_t d = 0; d < w.value_dim; ++d) out[d] = sums[d] * scale;
  if (partial) {
    *partial = state;
  } else {
    *lse = log_sum_exp(state);
  }
}

void prepare(Work* w, const AttentionProblem& p, uint64_t terms) {
  w->problem = &p;
  w->terms = p.bias ? p.bias->term_data() : nullptr;
  w->element_terms = w->low_rank_terms = 0;
  w->value_dim = static_cast<int32_t>(p.value_dim);
  w->sums = static_cast<int32_t>(padded(p.value_dim, kLanes)) + kLanes;
  for (; terms != 0; terms &= terms - 1) {
    const int i = lowest_bit(terms);
    (w->terms[i].type == TermType::kLowRank ? w->low_rank_terms : w->element_terms) |= uint64_t{1} << i;
  }
}

void enter_head(Work* w, int64_t b, int64_t h) {
  const AttentionProblem& p = *w->problem;
  const int64_t head = b * p.extent.heads + h;
  w->b = b;
  w->h = h;
  w->value = p.value.f32() + head * p.extent.keys * p.value_dim;
  w->panels[0] = {p.key.f32() + head * p.extent.keys * p.head_dim, static_cast<int32_t>(p.head_dim), 0};
  w->panel_count = 1;
  w->packed = static_cast<int32_t>(padded(p.head_dim, kLanes));
  for (uint64_t left = w->low_rank_terms; left != 0; left &= left - 1) {
    const LowRankTerm& term = w->terms[lowest_bit(left)].low_rank;
    w->panels[w->panel_count++] = {term.column(b, h, 0).key_factors, term.rank, w->packed};
    w->packed += static_cast<int32_t>(padded(term.rank, kLanes));
  }
  w->whole_vectors = w->panel_count == 1 && p.head_dim % kLanes == 0 ? w->packed / kLanes : 0;
}

Row row_at(const Work& w, float* floats) {
  Row row = {};
  row.query = floats;
  row.output = floats + w.packed;
  row.total = row.output + w.sums;
  row.lost = row.total + w.sums;
  return row;
}

// What a block of keys comes to for a row's query: row constants, and the terms that are left to its tiles.
void enter_block(const Work& w, Row* row, const Tile& keys) {
  const TilePlan plan = plan_tile(w.terms, w.element_terms, keys);
  row->bias = plan.hidden ? -kInfinity : add_constants(w.terms, plan.row_constant, keys, 0.0f);
  row->mixed = plan.mixed;
}

// A tile of the block, of which any key may be visible.
void attend_tile(const Work& w, Row* row, const Tile& tile) {
  if (row->bias == -kInfinity) return;
  alignas(kVectorBytes) int32_t list[kTileKeys + kLanes];
  alignas(kVectorBytes) float biases[kTileKeys];
  if (row->mixed == 0) {
    list_keys(tile.k0, tile.k1 - tile.k0, list);
    attend(w, row, list, tile.k1 - tile.k0, nullptr, row->bias);
  } else {
    const int32_t visible = list_visible(w, row->mixed, tile, row->bias, list, biases);
    if (visible != 0) attend(w, row, list, visible, biases, 0.0f);
  }
}

// A tile whose biases are given.
void attend_given(const Work& w, Row* row, const Tile& tile, const float* given) {
  alignas(kVectorBytes) int32_t list[kTileKeys + kLanes];
  alignas(kVectorBytes) float biases[kTileKeys];
  const int32_t count = tile.k1 - tile.k0;
  bool any_hidden = false;
  for (int32_t i = 0; i < count; ++i) any_hidden |= given[i] == -kInfinity;
  list_keys(tile.k0, count, list);
  if (!any_hidden) return attend(w, row, list, count, given, 0.0f);
  for (int32_t i = 0; i < count; ++i) biases[i] = given[i];
  const int32_t visible = drop_hidden(count, list, biases);
  if (visible != 0) attend(w, row, list, visible, biases, 0.0f);
}

int32_t gather_queries(const KeyBound& bound) {
  return max_i32(1, static_cast<int32_t>(kGatherKeys / (bound.most_keys + kGatherKeys / kGatherQueries)));
}

}  // namespace

namespace AB_ISA_NAME {

int32_t left_over_rows(int32_t queries) {
  const int32_t left = queries % kLanes;
  return left <= (queries < kLanes ? 3 * kLanes / 8 : kLanes / 4) ? left : 0;
}

int64_t row_scratch_floats(const AttentionProblem& p, int32_t queries) {
  return queries * (kRowFloats + row_floats(p, p.bias ? p.bias->term_count() : 0));
}

bool attention_rows(const AttentionTask& t, const float* bias_rows) {
  const AttentionProblem& p = *t.problem;
  const int32_t queries = t.q1 - t.q0;
  Work w;
  prepare(&w, p, p.bias && !bias_rows ? all_terms(p.bias->term_count()) : 0);
  enter_head(&w, t.b, t.h);
  Row* rows = reinterpret_cast<Row*>(t.scratch);
  float* floats = t.scratch + queries * kRowFloats;
  const int64_t stride = w.packed + 3 * static_cast<int64_t>(w.sums);
  for (int32_t i = 0; i < queries; ++i) {
    rows[i] = row_at(w, floats + i * stride);
    start(w, rows + i, t.q0 + i);
  }
  for (int32_t block0 = t.k0; block0 < t.k1; block0 += kKeyBlock) {
    if (aborted(t.abort)) return false;
    const int32_t block1 = min_i32(block0 + kKeyBlock, t.k1);
    for (int32_t i = 0; i < queries && !bias_rows; ++i) {
      enter_block(w, rows + i, {t.b, t.h, t.q0 + i, t.q0 + i + 1, block0, block1});
    }
    for (int32_t k0 = block0; k0 < block1; k0 += kTileKeys) {
      for (int32_t i = 0; i < queries; ++i) {
        const Tile tile = {t.b, t.h, t.q0 + i, t.q0 + i + 1, k0, min_i32(k0 + kTileKeys, block1)};
        if (bias_rows) {
          attend_given(w, rows + i, tile, bias_rows + i * static_cast<int64_t>(t.k1 - t.k0) + (k0 - t.k0));
        } else {
          attend_tile(w, rows + i, tile);
        }
      }
    }
    for (int32_t i = 0; i < queries && block1 < t.k1; ++i) fold(w, rows + i);
  }
  for (int32_t i = 0; i < queries; ++i) {
    finish(w, rows + i, t.out + static_cast<int64_t>(i) * w.value_dim, t.lse ? t.lse + i : nullptr,
           t.partial ? t.partial + i : nullptr);
  }
  return true;
}

int64_t gather_scratch_floats(const AttentionProblem& p, const KeyBound& bound) {
  const int64_t stride = padded(bound.most_keys, kWidest) + kWidest;
  return kGatherQueries + gather_queries(bound) * 2 * stride + row_floats(p, p.bias->term_count());
}

bool gather(const GatherTask& t) {
  const AttentionProblem& p = *t.problem;
  const Extent& e = p.extent;
  const KeyBound& bound = *t.bound;
  Work w;
  prepare(&w, p, bound.rest);
  const bool has_bias = w.element_terms != 0;

  const int32_t together = gather_queries(bound);
  const int64_t stride = padded(bound.most_keys, kWidest) + kWidest;
  int32_t* counts = reinterpret_cast<int32_t*>(t.scratch);
  int32_t* keys = counts + kGatherQueries;
  float* biases = t.scratch + kGatherQueries + together * stride;
  float* floats = biases + together * stride;

  const auto list_row = [&](int32_t q, int32_t* list, float* bias) AB_INLINE_LAMBDA {
    int32_t count = 0;
    const Tile all = {t.b, w.h, q, q + 1, 0, static_cast<int32_t>(e.keys)};
    visible_runs(bound, w.terms, all, q, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
      if (has_bias) {
        const Tile run = {t.b, w.h, q, q + 1, begin, end};
        count += list_visible(w, w.element_terms, run, 0.0f, list + count, bias + count);
      } else {
        list_keys(begin, end - begin, list + count);
        count += end - begin;
      }
    });
    return count;
  };

  for (int32_t i0 = 0; i0 < t.count; i0 += together) {
    const int32_t i1 = min_i32(i0 + together, t.count);
    for (int64_t h = t.h0; h < t.h1; ++h) {
      if (aborted(t.abort)) return false;
      enter_head(&w, t.b, h);
      if (h == t.h0 || t.bias_by_head) {
        for (int32_t i = 0; i < i1 - i0; ++i) {
          counts[i] = list_row(t.queries[i0 + i], keys + i * stride, biases + i * stride);
        }
      }
      for (int32_t i = 0; i < i1 - i0; ++i) {
        const int32_t q = t.queries[i0 + i], count = counts[i];
        const int32_t* list = keys + i * stride;
        const float* bias = biases + i * stride;
        Row row = row_at(w, floats);
        start(w, &row, q);
        for (int32_t k = 0; k < count; k += kTileKeys) {
          attend(w, &row, list + k, min_i32(kTileKeys, count - k), has_bias ? bias + k : nullptr, 0.0f);
          if ((k + kTileKeys) % kKeyBlock == 0 && k + kTileKeys < count) fold(w, &row);
        }
        const int64_t at = (t.b * e.heads + h) * e.queries + q;
        finish(w, &row, p.out + at * w.value_dim, p.lse + at, nullptr);
      }
    }
  }
  return true;
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
