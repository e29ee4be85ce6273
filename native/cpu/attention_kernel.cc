// Biased attention forward for one piece of queries and keys, compiled once an instruction set.
//
// Lanes are queries. A block of 3 vectors of queries (48 with AVX-512, 24 with AVX2, 12 with 4 lanes) is
// packed once as [d][query] with the scale folded in; keys and values are read where they lie, a scalar at a
// time, broadcast. Per tile of 64 keys:
//
//   scores   8 (4 with 16 registers) keys × 3 vectors of accumulators over d, starting at the bias, so a
//            row-constant bias costs no instruction a score. Kept in L1: 64 × 48 floats are 12 KB.
//   softmax  one exp a score, in registers. The base is a lazy maximum: it moves only when a score passes
//            it by kSlack. Where a tile's bias is constant along keys its scores start at bias − base, and
//            nothing is left to subtract.
//   output   8 (4) value dims × 3 vectors over the tile's keys, starting at zero, then added to the output of
//            the block of keys, and that at its end to the running total with a compensation term (Kahan).
//            Adding key by key into one total loses accuracy in a long row: 9e-6 at 56,400 equal keys.
//
// Blocks of keys that fit L2 are the outer loop and blocks of queries the inner, so that keys and values come
// from memory once. Order in a score: scale (in the packed query), dot product, bias, masks, as in
// docs/terms.md.
//
// Local additive terms (spatial) come as lists of elements, made once a call for all heads (near_lists.h),
// and are added to the scores one by one: with 5×5 BEV and 15×15 camera cells a query, CMT's shape takes 569
// ms on one core of an AMD EPYC (family 25, model 17) with AVX-512, and 559 with modality alone; AVX2 582 and
// 566.
//
// Work per score at head dim 32: 32 + 32 FMAs and about 13 operations for exp and maximum, so 83 % of the
// vector operations are the two products.
#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace attention_bias::cpu {
namespace {

constexpr int kKeyBlock = 512;
constexpr int kKeyBlockFloats = 64 * 1024;  // keys and values of a block of keys: 256 KB, for L2
constexpr float kSlack = 7.0f;              // exp(7) = 1097: far from overflow, and sums keep their accuracy
constexpr float kFar = 4096.0f;             // bases beyond are not folded into the scores: see attend_tile

// Running state of a block of queries, all by lane.
struct Block {
  float* packed;  // [all panels' dims][kQueries]
  float*
      output;  // [value_dim + 1][kQueries] of the block of keys at hand; the last row sums exp(score − base)
  float* total;  // likewise of the blocks before; the same as output where there is but one block of keys
  float* lost;   // what total lacks by rounding
  float* base;   // [kQueries] each
  float* limit;  // what a score may be above the base before that moves: kSlack, or −∞ while there is none
  float* seen;   // 1 where a key was visible
};

constexpr int kTiles = 3;  // scores, tile_bias, local

struct Work {
  const AttentionTask* task;
  const AttentionProblem* problem;
  const Term* terms;
  uint64_t element_terms;  // all but lowRank
  uint64_t low_rank_terms;
  uint64_t patch_terms;    // local and additive: added to the scores, without a tile of biases
  uint64_t planned_terms;  // element_terms, but for patch_terms where these are listed
  int32_t packed_dims;
  int32_t panel_count;
  int32_t output_rows;  // value_dim + 1
  bool one_key_block;
  const float* key;  // of this batch row and head
  const float* value;
  float* scores;     // [kTileKeys][kQueries]: scores, then probabilities
  float* tile_bias;  // [kTileKeys][kQueries]
  float* local;      // [kTileKeys][kQueries]: a local mask being built
};

// ---- scores ----------------------------------------------------------------------------------------------

// Scores of `count` ≤ kTileKeys keys; greatest[v] is the greatest of each query that is not NaN, or −∞.
template <int NV, Start kStart>
AB_INLINE void score_tile(const Work& w, const Panel* panels, int64_t key, int count, const Vec* row,
                          Vec* greatest) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = Vec{} - kInfinity;
  int k = 0;
  for (; k + kRows <= count; k += kRows) {
    score_rows<kRows, NV, kStart>(panels, w.panel_count, key + k, row, w.tile_bias + k * kQueries,
                                  w.scores + k * kQueries, greatest);
  }
  for (; k < count; ++k) {
    score_rows<1, NV, kStart>(panels, w.panel_count, key + k, row, w.tile_bias + k * kQueries,
                              w.scores + k * kQueries, greatest);
  }
}

// ---- softmax ---------------------------------------------------------------------------------------------

// Whether a base is beyond kFar.
AB_INLINE bool any_far(Vec base) {
  return any_greater(base, Vec{} + kFar) || any_greater(Vec{} - kFar, base);
}

// Moves the base of the lanes whose greatest score, above[v] over their base, passes their limit, and
// rescales what they have summed. moved[v] is by how much.
template <int NV>
AB_INLINE void move_base(const Work& w, const Block& block, const Vec* above, Vec* base, Vec* moved,
                         bool* far) {
  Vec factor[NV];
  *far = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const Vec limit = load(block.limit + v * kLanes);
    const VecInt move = above[v] > limit;
    const Vec next = move ? base[v] + above[v] : base[v];
    // A lane without a base has nothing to rescale; 1 keeps its zeros.
    const VecInt rescale = move & (limit != -kInfinity);
    moved[v] = move ? next - base[v] : Vec{};
    factor[v] = rescale ? exp_vec(-moved[v]) : Vec{} + 1.0f;
    base[v] = next;
    *far |= any_far(next);
    store(block.base + v * kLanes, next);
    store(block.limit + v * kLanes, move ? Vec{} + kSlack : limit);
  }
  float* const sums[3] = {block.output, block.total, block.lost};
  for (int i = 0; i < (w.one_key_block ? 1 : 3); ++i) {
    for (int32_t d = 0; d < w.output_rows; ++d) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        float* at = sums[i] + d * kQueries + v * kLanes;
        store(at, load(at) * factor[v]);
      }
    }
  }
}

// ---- output ----------------------------------------------------------------------------------------------

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

// Adds the output of a block of keys to the total, and clears it for the next.
template <int NV>
AB_INLINE void fold_output(const Work& w, const Block& block) {
  for (int32_t d = 0; d < w.output_rows; ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int64_t at = d * kQueries + v * kLanes;
      const Vec old = load(block.total + at), add = load(block.output + at) + load(block.lost + at);
      const Vec next = old + add;
      const VecInt finite = next - next == Vec{};  // an infinite total stays one
      store(block.lost + at, finite ? add - (next - old) : Vec{});
      store(block.total + at, next);
      store(block.output + at, Vec{});
    }
  }
}

// ---- bias ------------------------------------------------------------------------------------------------

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

// tile_bias = row constants + the mixed terms.
void fill_tile_bias(const Work& w, uint64_t mixed, const Tile& tile, const float* row) {
  const int32_t count = tile.k1 - tile.k0;
  for (int32_t k = 0; k < count; ++k) {
    for (int32_t q = 0; q < kQueries; ++q) w.tile_bias[k * kQueries + q] = row[q];
  }
  for (; mixed != 0; mixed &= mixed - 1) {
    visit(w.terms[lowest_bit(mixed)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        add_near(term, tile, w.tile_bias, add_bias);
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
        for (int32_t i = 0; i < count * kQueries; ++i) w.tile_bias[i] = add_bias(w.tile_bias[i], w.local[i]);
      } else if constexpr (T::kKeysTogether) {
        for (int32_t q = tile.q0; q < tile.q1; ++q) {
          float* at = w.tile_bias + (q - tile.q0);
          for (int32_t k = 0; k < count; ++k, at += kQueries) {
            *at = add_bias(*at, term.template value<float>(term.column(tile.b, tile.h, tile.k0 + k), q));
          }
        }
      } else {
        for (int32_t k = 0; k < count; ++k) {
          const auto column = term.column(tile.b, tile.h, tile.k0 + k);
          float* at = w.tile_bias + k * kQueries - tile.q0;
          for (int32_t q = tile.q0; q < tile.q1; ++q) {
            at[q] = add_bias(at[q], term.template value<float>(column, q));
          }
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

// Adds additive local terms to the scores. They may lower them, so the greatest are found anew.
template <int NV>
void patch_scores(const Work& w, uint64_t patches, const Tile& tile, Vec* greatest) {
  for (; patches != 0; patches &= patches - 1) {
    visit(w.terms[lowest_bit(patches)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        const auto plus = [](float score, float bias) AB_INLINE_LAMBDA { return score + bias; };
        add_near(term, tile, w.scores, plus);
      }
    });
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = Vec{} - kInfinity;
  for (int32_t k = 0; k < tile.k1 - tile.k0; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      greatest[v] = max_or_second(load(w.scores + k * kQueries + v * kLanes), greatest[v]);
    }
  }
}

// The listed elements of a tile.
struct NearRun {
  const NearElement *begin, *end;
};

AB_INLINE NearRun near_run(const Work& w, const Tile& tile) {
  if (!w.task->near) return {nullptr, nullptr};
  const NearBlock& block = w.task->near[tile.q0 / kQueries];
  const int32_t i = tile.k0 / kTileKeys;
  return {block.elements + block.begins[i], block.elements + block.ends[i]};
}

// Adds listed elements to the scores. Where none is negative the greatest can only rise to what they touch;
// too high a one would become a base under which the sums vanish, so otherwise they are found anew.
template <int NV>
AB_INLINE void add_listed(const Work& w, const NearRun& near, const Tile& tile, Vec* greatest) {
  alignas(kVectorBytes) float most[NV * kLanes];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) store(most + v * kLanes, greatest[v]);
  bool lowers = false;
  for (const NearElement* i = near.begin; i != near.end; ++i) {
    const int32_t lane = i->at % kQueries;
    if (lane >= NV * kLanes) continue;  // left over for the kernel of rows
    const float score = w.scores[i->at] + i->bias;
    w.scores[i->at] = score;
    if (score > most[lane]) most[lane] = score;
    lowers |= i->bias < 0.0f;
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = load(most + v * kLanes);
  if (lowers) patch_scores<NV>(w, 0, tile, greatest);
}

// With kBias the tile's biases are in memory, and what scores subtract of the base they subtract in the end.
template <int NV, bool kBias, bool kCareful>
void attend_tile(const Work& w, const Block& block, const Panel* panels, const Tile& tile, const float* row,
                 uint64_t patches, const NearRun& near, bool* far) {
  const int count = tile.k1 - tile.k0;
  Vec start[NV], base[NV], greatest[NV], moved[NV], sum[NV];
  bool passed = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    base[v] = load(block.base + v * kLanes);
    start[v] = load(row + v * kLanes) - base[v];
  }
  score_tile<NV, kBias ? Start::kHiding : Start::kRow>(w, panels, tile.k0, count, start, greatest);
  if (patches != 0) patch_scores<NV>(w, patches, tile, greatest);
  if (!kBias && near.begin != near.end) add_listed<NV>(w, near, tile, greatest);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    if (kBias) greatest[v] -= base[v];
    passed |= any_greater(greatest[v], load(block.limit + v * kLanes));
  }
  if (passed) move_base<NV>(w, block, greatest, base, moved, far);
  if (kBias) {
    exp_tile<NV, true>(w.scores, count, base, sum);
  } else if (passed) {
    exp_tile<NV, true>(w.scores, count, moved, sum);
  } else {
    exp_tile<NV, false>(w.scores, count, moved, sum);
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    float* at = block.output + w.problem->value_dim * kQueries + v * kLanes;
    store(at, load(at) + sum[v]);
  }
  output_tile<NV, kCareful>(w, block, tile.k0, count);
}

void mark_seen(const Block& block, const float* tile_bias, int count) {
  Vec seen[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) seen[v] = load(block.seen + v * kLanes);
  for (int k = 0; k < count; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      seen[v] = load(tile_bias + k * kQueries + v * kLanes) == -kInfinity ? seen[v] : Vec{} + 1.0f;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store(block.seen + v * kLanes, seen[v]);
}

template <int NV, bool kCareful>
void attend_keys(const Work& w, const Block& block, const Panel* panels, const Tile& keys) {
  const TilePlan plan = plan_tile(w.terms, w.planned_terms, keys);
  if (plan.hidden) return;
  alignas(kVectorBytes) float block_row[kQueries] = {};
  add_row_constants(w.terms, plan.row_constant, keys, block_row);
  bool far = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) far |= any_far(load(block.base + v * kLanes));
  Tile tile = keys;
  for (; tile.k0 < keys.k1; tile.k0 = tile.k1) {
    tile.k1 = min_i32(tile.k0 + kTileKeys, keys.k1);
    const TilePlan part = plan_tile(w.terms, plan.mixed, tile);
    if (part.hidden) continue;
    alignas(kVectorBytes) float row[kQueries];
    for (int q = 0; q < kQueries; ++q) row[q] = block_row[q];
    add_row_constants(w.terms, part.row_constant, tile, row);
    const NearRun near = near_run(w, tile);
    if ((part.mixed & ~w.patch_terms) != 0 || kCareful || far || any_hidden(row, kQueries)) {
      fill_tile_bias(w, part.mixed, tile, row);
      for (const NearElement* i = near.begin; i != near.end; ++i) {
        w.tile_bias[i->at] = add_bias(w.tile_bias[i->at], i->bias);
      }
      mark_seen(block, w.tile_bias, tile.k1 - tile.k0);
      attend_tile<NV, true, kCareful>(w, block, panels, tile, row, 0, near, &far);
    } else {
      for (int q = 0; q < kQueries; ++q) block.seen[q] = 1.0f;
      attend_tile<NV, false, false>(w, block, panels, tile, row, part.mixed, near, &far);
    }
  }
  if (!w.one_key_block) fold_output<NV>(w, block);
}

// ---- a piece ---------------------------------------------------------------------------------------------

void reset(const Work& w, const Block& block) {
  const int64_t floats = static_cast<int64_t>(w.output_rows) * kQueries;
  for (int64_t i = 0; i < floats; ++i) block.output[i] = 0.0f;
  if (!w.one_key_block) {
    for (int64_t i = 0; i < floats; ++i) block.total[i] = block.lost[i] = 0.0f;
  }
  for (int32_t q = 0; q < kQueries; ++q) {
    block.base[q] = block.seen[q] = 0.0f;
    block.limit[q] = -kInfinity;
  }
}

// Everything of one block over keys [k0, k1).
template <bool kCareful>
void attend(const Work& w, const Block& block, int32_t q0, int32_t q1, int32_t k0, int32_t k1) {
  const AttentionTask& t = *w.task;
  Panel panels[kMaxPanels];
  panels[0] = {block.packed, w.key, w.problem->head_dim, static_cast<int32_t>(w.problem->head_dim)};
  int count = 1;
  const float* packed = block.packed + w.problem->head_dim * kQueries;
  for (uint64_t left = w.low_rank_terms; left != 0; left &= left - 1) {
    const LowRankTerm& term = w.terms[lowest_bit(left)].low_rank;
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
  const float* query = p.query.f32() + ((t.b * p.extent.heads + t.h) * p.extent.queries + q0) * p.head_dim;
  pack(query, q1 - q0, dims, static_cast<float>(p.scale), block.packed);
  float* packed = block.packed + dims * kQueries;
  for (uint64_t left = w.low_rank_terms; left != 0; left &= left - 1) {
    const LowRankTerm& term = w.terms[lowest_bit(left)].low_rank;
    const float* rows = term.column(t.b, t.h, 0).query_factors + static_cast<int64_t>(q0) * term.rank;
    pack(rows, q1 - q0, term.rank, term.scale, packed);
    packed += static_cast<int64_t>(term.rank) * kQueries;
  }
}

bool any_nan(const Work& w, const Block& block, int32_t count) {
  bool any = false;
  for (int32_t d = 0; d < w.output_rows; ++d) {
    const float* row = block.total + d * kQueries;
    for (int32_t q = 0; q < count; ++q) any |= row[q] != row[q];
  }
  return any;
}

void finish(const AttentionTask& t, const Block& block, int32_t q0, int32_t q1) {
  const int32_t value_dim = static_cast<int32_t>(t.problem->value_dim);
  const float* sum = block.total + value_dim * kQueries;
  for (int32_t q = q0; q < q1; ++q) {
    const int32_t lane = q - q0, row = q - t.q0;
    const SoftmaxState state = {block.base[lane], sum[lane], block.seen[lane] != 0.0f};
    const float scale = t.partial ? 1.0f : output_scale(state);
    float* out = t.out + static_cast<int64_t>(row) * value_dim;
    for (int32_t d = 0; d < value_dim; ++d) out[d] = block.total[d * kQueries + lane] * scale;
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
  return kTiles * kTileKeys * kQueries + blocks * kQueries * state_floats(p);
}

bool attention(const AttentionTask& t) {
  const AttentionProblem& p = *t.problem;
  Work w = {};
  w.task = &t;
  w.problem = &p;
  w.panel_count = 1;
  w.packed_dims = static_cast<int32_t>(packed_dims(p));
  w.output_rows = static_cast<int32_t>(p.value_dim) + 1;
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
  w.planned_terms = t.near ? w.element_terms & ~w.patch_terms : w.element_terms;
  const int64_t head = t.b * p.extent.heads + t.h;
  w.key = p.key.f32() + head * p.extent.keys * p.head_dim;
  w.value = p.value.f32() + head * p.extent.keys * p.value_dim;
  w.scores = t.scratch;
  w.tile_bias = t.scratch + kTileKeys * kQueries;
  w.local = t.scratch + 2 * kTileKeys * kQueries;
  float* blocks = t.scratch + kTiles * kTileKeys * kQueries;
  const int64_t floats = kQueries * state_floats(p);

  const int32_t fit = kKeyBlockFloats / (w.packed_dims + w.output_rows) / kTileKeys * kTileKeys;
  const int32_t step = max_i32(kTileKeys, min_i32(kKeyBlock, fit));
  w.one_key_block = t.k1 - t.k0 <= step;

  const auto block_at = [&](int32_t q0) AB_INLINE_LAMBDA {
    float* at = blocks + (q0 - t.q0) / kQueries * floats;
    const int64_t rows = static_cast<int64_t>(w.output_rows) * kQueries;
    float* output = at + static_cast<int64_t>(w.packed_dims) * kQueries;
    float* total = w.one_key_block ? output : output + rows;
    float* state = output + 3 * rows;
    return Block{at, output, total, output + 2 * rows, state, state + kQueries, state + 2 * kQueries};
  };
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const Block block = block_at(q0);
    pack_block(w, block, q0, min_i32(q0 + kQueries, t.q1));
    reset(w, block);
  }
  for (int32_t k0 = t.k0; k0 < t.k1; k0 += step) {
    for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
      if (aborted(t.abort)) return false;
      const Block block = block_at(q0);
      attend<false>(w, block, q0, min_i32(q0 + kQueries, t.q1), k0, min_i32(k0 + step, t.k1));
    }
  }
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const int32_t q1 = min_i32(q0 + kQueries, t.q1);
    const Block block = block_at(q0);
    // A hidden key's NaN or infinite value times its probability 0 is NaN too: once more, leaving hidden
    // pairs out.
    if (w.element_terms != 0 && any_nan(w, block, q1 - q0)) {
      reset(w, block);
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
