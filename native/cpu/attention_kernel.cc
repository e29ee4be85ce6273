// Biased attention forward for one piece of queries and keys, compiled once an instruction set.
//
// Lanes are queries. A block of 3 vectors of queries (48 with AVX-512, 24 with AVX2, 12 with 4 lanes) is
// packed once as [d][query] with the scale folded in; keys and values are read where they lie, a scalar at a
// time, broadcast. Per tile of 64 keys:
//
//   scores   8 (4 with 16 registers) keys × 3 vectors of accumulators over d, starting at the bias, so a
//            row-constant bias costs no instruction a score. Kept in L1: 64 × 48 floats are 12 KB.
//   softmax  one exp a score, in registers. The base is a lazy maximum: it moves only when a score passes
//            it by kSlack.
//   output   8 (4) value dims × 3 vectors over the tile's keys, starting at zero, then added to the running
//            output. Two-level sums: adding key by key into the running output loses accuracy in a long row.
//
// Blocks of keys that fit L2 are the outer loop and blocks of queries the inner, so that keys and values come
// from memory once. Order in a score: scale (in the packed query), dot product, bias, masks, as in
// CONTRACT.md.
//
// Work per score at head dim 32: 32 + 32 FMAs and about 13 operations for exp and maximum, so 83 % of the
// vector operations are the two products.
#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

constexpr int kVectors = 3;
constexpr int kQueries = kVectors * kLanes;
constexpr int kRows = kRegisters == 32 ? 8 : 4;  // keys, or value dims, of one register block
constexpr int kTileKeys = 64;
constexpr int kKeyBlock = 512;
constexpr int kKeyBlockFloats = 64 * 1024;  // keys and values of a block of keys: 256 KB, for L2
constexpr float kSlack = 7.0f;              // exp(7) = 1097: far from overflow, and sums keep their accuracy
constexpr float kInfinity = __builtin_inff();

// scores += query·key over `dims` dimensions; the head's own, and one panel more for each lowRank term.
struct Panel {
  const float* query;  // packed [dims][kQueries]
  const float* key;    // row of key 0
  int64_t key_stride;
  int32_t dims;
};
constexpr int kMaxPanels = 1 + kMaxTerms;

// Running state of a block of queries, all by lane.
struct Block {
  float* packed;  // [all panels' dims][kQueries]
  float* output;  // [value_dim][kQueries]
  float* base;    // [kQueries] each
  float* sum;
  float* limit;  // the score above which the base moves: base + kSlack, or −∞ while there is no base
  float* seen;   // 1 where a key was visible
};

constexpr int kStateRows = 4;  // base, sum, limit, seen
constexpr int kTiles = 3;      // scores, tile_bias, local

struct Work {
  const AttentionTask* task;
  const AttentionProblem* problem;
  const Term* terms;
  uint64_t element_terms;  // all but lowRank
  uint64_t low_rank_terms;
  uint64_t patch_terms;  // local and additive: added to the scores, without a tile of biases
  int32_t packed_dims;
  int32_t panel_count;
  const float* key;  // of this batch row and head
  const float* value;
  float* scores;     // [kTileKeys][kQueries]: scores, then probabilities
  float* tile_bias;  // [kTileKeys][kQueries]
  float* local;      // [kTileKeys][kQueries]: a local mask being built
};

// ---- scores ----------------------------------------------------------------------------------------------

// NR keys' scores for NV vectors of queries, from row constants; with kBias the tile's bias is read from
// memory instead, and hidden pairs become −∞ whatever their product is.
template <int NR, int NV, bool kBias>
AB_INLINE void score_rows(const Panel* panels, int panel_count, int64_t key, const Vec* row,
                          const float* bias, float* scores, Vec* greatest) {
  Vec sum[NR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[r][v] = kBias ? load(bias + r * kQueries + v * kLanes) : row[v];
  }
  for (int p = 0; p < panel_count; ++p) {
    const float* query = panels[p].query;
    const float* at = panels[p].key + key * panels[p].key_stride;
    const int64_t stride = panels[p].key_stride;
    for (int32_t d = 0; d < panels[p].dims; ++d, query += kQueries, ++at) {
      Vec q[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) q[v] = load(query + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) {
        const Vec k = splat(at[r * stride]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[r][v] += q[v] * k;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      if (kBias) {
        const Vec given = load(bias + r * kQueries + v * kLanes);
        sum[r][v] = given == -kInfinity ? Vec{} - kInfinity : sum[r][v];
      }
      store(scores + r * kQueries + v * kLanes, sum[r][v]);
      greatest[v] = max_or_second(sum[r][v], greatest[v]);  // passes over NaN
    }
  }
}

// Scores of `count` ≤ kTileKeys keys; greatest[v] is the greatest of each query that is not NaN, or −∞.
template <int NV, bool kBias>
AB_INLINE void score_tile(const Work& w, const Panel* panels, int64_t key, int count, const Vec* row,
                          Vec* greatest) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = Vec{} - kInfinity;
  int k = 0;
  for (; k + kRows <= count; k += kRows) {
    score_rows<kRows, NV, kBias>(panels, w.panel_count, key + k, row, w.tile_bias + k * kQueries,
                                 w.scores + k * kQueries, greatest);
  }
  for (; k < count; ++k) {
    score_rows<1, NV, kBias>(panels, w.panel_count, key + k, row, w.tile_bias + k * kQueries,
                             w.scores + k * kQueries, greatest);
  }
}

// ---- softmax ---------------------------------------------------------------------------------------------

// Scores to probabilities exp(score − base), added up in sum.
template <int NV>
AB_INLINE void exp_tile(float* scores, int count, const Vec* base, Vec* sum) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) sum[v] = Vec{};
  for (int k = 0; k < count; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* at = scores + k * kQueries + v * kLanes;
      const Vec p = exp_vec(load(at) - base[v]);
      store(at, p);
      sum[v] += p;
    }
  }
}

// Moves the base of the lanes whose greatest score passes their limit, and rescales what they have summed.
template <int NV>
AB_INLINE void move_base(const Block& block, int32_t value_dim, const Vec* greatest, Vec* base) {
  Vec factor[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const Vec limit = load(block.limit + v * kLanes);
    const VecInt move = greatest[v] > limit;
    // A lane without a base has nothing to rescale; 1 keeps its zeros.
    const VecInt rescale = move & (limit != -kInfinity);
    factor[v] = rescale ? exp_vec(base[v] - greatest[v]) : Vec{} + 1.0f;
    base[v] = move ? greatest[v] : base[v];
    store(block.base + v * kLanes, base[v]);
    store(block.limit + v * kLanes, move ? base[v] + kSlack : limit);
    store(block.sum + v * kLanes, load(block.sum + v * kLanes) * factor[v]);
  }
  for (int32_t d = 0; d < value_dim; ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* at = block.output + d * kQueries + v * kLanes;
      store(at, load(at) * factor[v]);
    }
  }
}

// ---- output ----------------------------------------------------------------------------------------------

// ND value dims from `value`. With kCareful a hidden pair is left out even where its value is NaN or
// infinite.
template <int ND, int NV, bool kCareful>
AB_INLINE void output_rows(const float* probabilities, const float* tile_bias, int count, const float* value,
                           int64_t value_stride, float* output) {
  Vec sum[ND][NV];
#pragma GCC unroll 8
  for (int d = 0; d < ND; ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[d][v] = Vec{};
  }
  for (int k = 0; k < count; ++k, probabilities += kQueries, value += value_stride) {
    Vec p[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) p[v] = load(probabilities + v * kLanes);
#pragma GCC unroll 8
    for (int d = 0; d < ND; ++d) {
      const Vec x = splat(value[d]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        if (kCareful) {
          const VecInt hide = load(tile_bias + k * kQueries + v * kLanes) == -kInfinity;
          sum[d][v] = hide ? sum[d][v] : sum[d][v] + p[v] * x;
        } else {
          sum[d][v] += p[v] * x;
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int d = 0; d < ND; ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* at = output + d * kQueries + v * kLanes;
      store(at, load(at) + sum[d][v]);
    }
  }
}

template <int NV, bool kCareful>
AB_INLINE void output_tile(const Work& w, const Block& block, int64_t key, int count) {
  const int32_t value_dim = static_cast<int32_t>(w.problem->value_dim);
  const float* value = w.value + key * value_dim;
  int32_t d = 0;
  for (; d + kRows <= value_dim; d += kRows) {
    output_rows<kRows, NV, kCareful>(w.scores, w.tile_bias, count, value + d, value_dim,
                                     block.output + d * kQueries);
  }
  for (; d < value_dim; ++d) {
    output_rows<1, NV, kCareful>(w.scores, w.tile_bias, count, value + d, value_dim,
                                 block.output + d * kQueries);
  }
}

// ---- bias ------------------------------------------------------------------------------------------------

// Adds the terms' value at key k0 for each query: what a tile's row-constant terms come to.
AB_INLINE void add_row_constants(const Term* terms, uint64_t which, const Tile& tile, float* row) {
  for (; which != 0; which &= which - 1) {
    visit(terms[__builtin_ctzll(which)], [&](const auto& term) AB_INLINE_LAMBDA {
      const auto column = term.column(tile.b, tile.h, tile.k0);
      for (int32_t q = tile.q0; q < tile.q1; ++q) row[q - tile.q0] += term.template value<float>(column, q);
    });
  }
}

// Adds a local term's values to a tile [key][query] of biases or scores, where it is not 0. `greatest`,
// unless null, is raised to the greatest element touched, for each query.
template <class T>
AB_INLINE void add_near(const T& term, const Tile& tile, float* at, float* greatest) {
  for (int32_t q = tile.q0; q < tile.q1; ++q) {
    float* lane = at + (q - tile.q0);
    term.near(tile, q, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
      for (int32_t k = begin; k < end; ++k) {
        float* element = lane + (k - tile.k0) * kQueries;
        *element += term.template value<float>(term.column(tile.b, tile.h, k), q);
        if (greatest && *element > greatest[q - tile.q0]) greatest[q - tile.q0] = *element;
      }
    });
  }
}

// tile_bias = row constants + the mixed terms.
void fill_tile_bias(const Work& w, uint64_t mixed, const Tile& tile, const float* row) {
  const int32_t count = tile.k1 - tile.k0;
  for (int32_t k = 0; k < count; ++k) {
    for (int32_t q = 0; q < kQueries; ++q) w.tile_bias[k * kQueries + q] = row[q];
  }
  for (; mixed != 0; mixed &= mixed - 1) {
    visit(w.terms[__builtin_ctzll(mixed)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        add_near(term, tile, w.tile_bias, nullptr);
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
        for (int32_t i = 0; i < count * kQueries; ++i) w.tile_bias[i] += w.local[i];
      } else {
        for (int32_t k = 0; k < count; ++k) {
          const auto column = term.column(tile.b, tile.h, tile.k0 + k);
          float* at = w.tile_bias + k * kQueries;
          for (int32_t q = tile.q0; q < tile.q1; ++q)
            at[q - tile.q0] += term.template value<float>(column, q);
        }
      }
    });
  }
}

AB_INLINE bool any_hidden(const float* row, int32_t count) {
  bool any = false;
  for (int32_t i = 0; i < count; ++i) any |= row[i] == -kInfinity;
  return any;
}

// ---- one block of queries over one block of keys ---------------------------------------------------------

template <int NV>
void patch_scores(const Work& w, uint64_t patches, const Tile& tile, Vec* greatest) {
  alignas(kVectorBytes) float raised[kQueries];
  for (int v = 0; v < NV; ++v) store(raised + v * kLanes, greatest[v]);
  for (; patches != 0; patches &= patches - 1) {
    visit(w.terms[__builtin_ctzll(patches)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) add_near(term, tile, w.scores, raised);
    });
  }
  for (int v = 0; v < NV; ++v) greatest[v] = load(raised + v * kLanes);
}

template <int NV, bool kBias, bool kCareful>
void attend_tile(const Work& w, Block& block, const Panel* panels, const Tile& tile, const float* row,
                 uint64_t patches) {
  const int count = tile.k1 - tile.k0;
  Vec constants[NV], base[NV], greatest[NV], sum[NV];
  bool passed = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    constants[v] = load(row + v * kLanes);
    base[v] = load(block.base + v * kLanes);
  }
  score_tile<NV, kBias>(w, panels, tile.k0, count, constants, greatest);
  if (patches != 0) patch_scores<NV>(w, patches, tile, greatest);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) passed |= any_greater(greatest[v], load(block.limit + v * kLanes));
  if (passed) move_base<NV>(block, static_cast<int32_t>(w.problem->value_dim), greatest, base);
  exp_tile<NV>(w.scores, count, base, sum);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    float* at = block.sum + v * kLanes;
    store(at, load(at) + sum[v]);
  }
  output_tile<NV, kCareful>(w, block, tile.k0, count);
}

void mark_seen(const Block& block, const float* tile_bias, int count) {
  for (int k = 0; k < count; ++k) {
    for (int q = 0; q < kQueries; ++q) {
      if (tile_bias[k * kQueries + q] != -kInfinity) block.seen[q] = 1.0f;
    }
  }
}

template <int NV, bool kCareful>
void attend_keys(const Work& w, Block& block, const Panel* panels, const Tile& keys) {
  const TilePlan plan = plan_tile(w.terms, w.element_terms, keys);
  if (plan.hidden) return;
  alignas(kVectorBytes) float block_row[kQueries] = {};
  add_row_constants(w.terms, plan.row_constant, keys, block_row);
  Tile tile = keys;
  for (; tile.k0 < keys.k1; tile.k0 = tile.k1) {
    tile.k1 = min_i32(tile.k0 + kTileKeys, keys.k1);
    const TilePlan part = plan_tile(w.terms, plan.mixed, tile);
    if (part.hidden) continue;
    alignas(kVectorBytes) float row[kQueries];
    for (int q = 0; q < kQueries; ++q) row[q] = block_row[q];
    add_row_constants(w.terms, part.row_constant, tile, row);
    if ((part.mixed & ~w.patch_terms) != 0 || kCareful || any_hidden(row, kQueries)) {
      fill_tile_bias(w, part.mixed, tile, row);
      mark_seen(block, w.tile_bias, tile.k1 - tile.k0);
      attend_tile<NV, true, kCareful>(w, block, panels, tile, row, 0);
    } else {
      for (int q = 0; q < kQueries; ++q) block.seen[q] = 1.0f;
      attend_tile<NV, false, false>(w, block, panels, tile, row, part.mixed);
    }
  }
}

// ---- a piece ---------------------------------------------------------------------------------------------

// [d][query] from rows of queries, times scale; lanes past the last query are 0.
void pack(const float* rows, int32_t count, int32_t dims, float scale, float* packed) {
  for (int32_t d = 0; d < dims; ++d) {
    for (int32_t q = 0; q < count; ++q)
      packed[d * kQueries + q] = rows[static_cast<int64_t>(q) * dims + d] * scale;
    for (int32_t q = count; q < kQueries; ++q) packed[d * kQueries + q] = 0.0f;
  }
}

void reset(const Block& block, int32_t value_dim) {
  for (int32_t i = 0; i < value_dim * kQueries; ++i) block.output[i] = 0.0f;
  for (int32_t q = 0; q < kQueries; ++q) {
    block.base[q] = block.sum[q] = block.seen[q] = 0.0f;
    block.limit[q] = -kInfinity;
  }
}

int64_t block_floats(int32_t packed_dims, int64_t value_dim) {
  return (packed_dims + value_dim + kStateRows) * kQueries;
}

int32_t low_rank_dims(const AttentionProblem& p) {
  int32_t dims = 0;
  if (!p.bias) return 0;
  const Term* terms = p.bias->term_data();
  for (int i = 0; i < p.bias->term_count(); ++i) {
    if (terms[i].type == TermType::kLowRank) dims += terms[i].low_rank.rank;
  }
  return dims;
}

// Everything of one block over keys [k0, k1).
template <bool kCareful>
void attend(const Work& w, Block& block, int32_t q0, int32_t q1, int32_t k0, int32_t k1) {
  const AttentionTask& t = *w.task;
  Panel panels[kMaxPanels];
  panels[0] = {block.packed, w.key, w.problem->head_dim, static_cast<int32_t>(w.problem->head_dim)};
  int count = 1;
  const float* packed = block.packed + w.problem->head_dim * kQueries;
  for (uint64_t left = w.low_rank_terms; left != 0; left &= left - 1) {
    const LowRankTerm& term = w.terms[__builtin_ctzll(left)].low_rank;
    panels[count++] = {packed, term.column(t.b, t.h, 0).key_factors, term.rank, term.rank};
    packed += static_cast<int64_t>(term.rank) * kQueries;
  }
  const Tile keys = {t.b, t.h, q0, q1, k0, k1};
  switch ((q1 - q0 + kLanes - 1) / kLanes) {
    case 1:
      return attend_keys<1, kCareful>(w, block, panels, keys);
    case 2:
      return attend_keys<2, kCareful>(w, block, panels, keys);
    default:
      return attend_keys<3, kCareful>(w, block, panels, keys);
  }
}

void pack_block(const Work& w, const Block& block, int32_t q0, int32_t q1) {
  const AttentionTask& t = *w.task;
  const AttentionProblem& p = *w.problem;
  const int32_t dims = static_cast<int32_t>(p.head_dim);
  const float* query = p.query + ((t.b * p.extent.heads + t.h) * p.extent.queries + q0) * p.head_dim;
  pack(query, q1 - q0, dims, static_cast<float>(p.scale), block.packed);
  float* packed = block.packed + dims * kQueries;
  for (uint64_t left = w.low_rank_terms; left != 0; left &= left - 1) {
    const LowRankTerm& term = w.terms[__builtin_ctzll(left)].low_rank;
    const float* rows = term.column(t.b, t.h, 0).query_factors + static_cast<int64_t>(q0) * term.rank;
    pack(rows, q1 - q0, term.rank, term.scale, packed);
    packed += static_cast<int64_t>(term.rank) * kQueries;
  }
}

bool any_nan(const Block& block, int32_t count, int32_t value_dim) {
  bool any = false;
  for (int32_t q = 0; q < count; ++q) any |= block.sum[q] != block.sum[q];
  for (int32_t d = 0; d < value_dim; ++d) {
    for (int32_t q = 0; q < count; ++q)
      any |= block.output[d * kQueries + q] != block.output[d * kQueries + q];
  }
  return any;
}

void finish(const AttentionTask& t, const Block& block, int32_t q0, int32_t q1) {
  const int32_t value_dim = static_cast<int32_t>(t.problem->value_dim);
  for (int32_t q = q0; q < q1; ++q) {
    const int32_t lane = q - q0, row = q - t.q0;
    const SoftmaxState state = {block.base[lane], block.sum[lane], block.seen[lane] != 0.0f};
    const float scale = t.partial ? 1.0f : output_scale(state);
    float* out = t.out + static_cast<int64_t>(row) * value_dim;
    for (int32_t d = 0; d < value_dim; ++d) out[d] = block.output[d * kQueries + lane] * scale;
    if (t.partial) {
      t.partial[row] = state;
    } else {
      t.lse[row] = log_sum_exp(state);
    }
  }
}

}  // namespace

namespace AB_ISA_NAME {

int32_t query_block() { return kQueries; }

int64_t attention_scratch_floats(const AttentionProblem& p, int32_t queries) {
  const int64_t blocks = (queries + kQueries - 1) / kQueries;
  const int32_t packed_dims = static_cast<int32_t>(p.head_dim) + low_rank_dims(p);
  return kTiles * kTileKeys * kQueries + blocks * block_floats(packed_dims, p.value_dim);
}

bool attention(const AttentionTask& t) {
  const AttentionProblem& p = *t.problem;
  Work w = {};
  w.task = &t;
  w.problem = &p;
  w.panel_count = 1;
  if (p.bias) {
    w.terms = p.bias->term_data();
    for (int i = 0; i < p.bias->term_count(); ++i) {
      const bool low_rank = w.terms[i].type == TermType::kLowRank;
      (low_rank ? w.low_rank_terms : w.element_terms) |= uint64_t{1} << i;
      w.panel_count += low_rank ? 1 : 0;
      const bool patch = visit(w.terms[i], [](const auto& term) AB_INLINE_LAMBDA {
        using T = std::decay_t<decltype(term)>;
        return T::kLocal && !T::kHides;
      });
      w.patch_terms |= uint64_t{patch} << i;
    }
  }
  w.packed_dims = static_cast<int32_t>(p.head_dim) + low_rank_dims(p);
  const int64_t head = t.b * p.extent.heads + t.h;
  w.key = p.key + head * p.extent.keys * p.head_dim;
  w.value = p.value + head * p.extent.keys * p.value_dim;
  w.scores = t.scratch;
  w.tile_bias = t.scratch + kTileKeys * kQueries;
  w.local = t.scratch + 2 * kTileKeys * kQueries;
  float* blocks = t.scratch + kTiles * kTileKeys * kQueries;
  const int32_t value_dim = static_cast<int32_t>(p.value_dim);
  const int64_t floats = block_floats(w.packed_dims, value_dim);

  const auto block_at = [&](int32_t q0) AB_INLINE_LAMBDA {
    float* at = blocks + (q0 - t.q0) / kQueries * floats;
    float* output = at + w.packed_dims * kQueries;
    float* state = output + value_dim * kQueries;
    return Block{at, output, state, state + kQueries, state + 2 * kQueries, state + 3 * kQueries};
  };
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const Block block = block_at(q0);
    pack_block(w, block, q0, min_i32(q0 + kQueries, t.q1));
    reset(block, value_dim);
  }

  const int32_t fit = kKeyBlockFloats / (w.packed_dims + value_dim) / kTileKeys * kTileKeys;
  const int32_t step = max_i32(kTileKeys, min_i32(kKeyBlock, fit));
  for (int32_t k0 = t.k0; k0 < t.k1; k0 += step) {
    for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
      if (aborted(t.abort)) return false;
      Block block = block_at(q0);
      attend<false>(w, block, q0, min_i32(q0 + kQueries, t.q1), k0, min_i32(k0 + step, t.k1));
    }
  }
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const int32_t q1 = min_i32(q0 + kQueries, t.q1);
    Block block = block_at(q0);
    // A hidden key's NaN or infinite value times its probability 0 is NaN too: once more, leaving hidden
    // pairs out.
    if (w.element_terms != 0 && any_nan(block, q1 - q0, value_dim)) {
      reset(block, value_dim);
      for (int32_t k0 = t.k0; k0 < t.k1; k0 += step) {
        if (aborted(t.abort)) return false;
        attend<true>(w, block, q0, q1, k0, min_i32(k0 + step, t.k1));
      }
    }
    finish(t, block, q0, q1);
  }
  return true;
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
