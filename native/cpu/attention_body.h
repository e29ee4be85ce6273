// Biased attention forward of one piece of queries and keys, whose products and exponentials are of a class
// `Arithmetic`: Float32 in attention_kernel.cc, Bfloat16 in bf16_kernel.cc. Everything is internal to the
// including file.
//
// Lanes are queries. A block of 3 vectors of queries (48 with AVX-512, 24 with AVX2, 12 with 4 lanes) is
// packed once as [d][query] with the scale folded in. Per tile of 64 keys:
//
//   scores   8 (4 with 16 registers) keys × 3 vectors of accumulators over d, starting at the bias, so a
//            row-constant bias costs no instruction a score. Kept in L1: 64 × 48 floats are 12 KB.
//   softmax  one exp a score, in registers. The base is a lazy maximum: it moves only when a score passes
//            it by kSlack. Where a tile's bias is constant along keys its scores start at bias − base, and
//            nothing is left to subtract.
//   output   8 (4) value dims × 3 vectors over the tile's keys, starting at zero, then added to the output of
//            some blocks of keys, and that at their end to the running total with a compensation term
//            (Kahan). Adding key by key into one total loses accuracy in a long row: 9e-6 at 56,400 equal
//            keys.
//
// Blocks of keys that fit L2 are the outer loop and blocks of queries the inner, so that keys and values come
// from memory once. Order in a score: scale (in the packed query), dot product, bias, masks, as in
// docs/terms.md.
//
// Local additive terms (spatial) come as lists of elements, made once a call for all heads (near_lists.h),
// and are added to the scores one by one: with 5×5 BEV and 15×15 camera cells a query they add 2 % to CMT's
// time.
//
// An Arithmetic has
//   kUnit          what scores, biases and bases are multiplied by: 1, or log2 e where its exp is 2^x
//   kConverts      whether enter_block converts a block of keys, into block_floats of scratch
//   pack           a block of queries for score_rows
//   score_rows     scores of some keys from their start, as tile.h's; with kExp it also takes, as exp_tile,
//                  the exponentials of the scores that it replaces
//   exp_tile       w.scores to w.probabilities, and their sums
//   kBeside        whether whole tiles' exponentials wait for the products of the next tile (score_rows with
//                  kExp), to run beside them
//   output_rows    probabilities times some of the value dims, added to the block's output
//   kFoldKeys      keys whose outputs are added up before they join the total
//   kRedoesAsRows  whether a block of queries to whose output hidden keys may have brought a NaN is attended
//                  again by attention_rows, in float32, rather than by output_rows with kCareful
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/terms.h"
#include "cpu/kernels.h"
#include "cpu/tile.h"
#include "cpu/tile_bias.h"

namespace attention_bias::cpu {
namespace {

constexpr int kKeyBlock = 512;
constexpr int kKeyBlockFloats = 64 * 1024;  // keys and values of a block of keys: 256 KB, for L2
constexpr float kSlack = 7.0f;              // exp(7) = 1097: far from overflow, and sums keep their accuracy

// Running state of a block of queries, all by lane.
struct Block {
  float* packed;  // [all panels' dims][kQueries]
  float* output;  // [value_dim + 1][kQueries] of the keys at hand; the last row sums exp(score − base)
  float* total;   // likewise of those before; the same as output where nothing is folded
  float* lost;    // what total lacks by rounding
  float* base;    // [kQueries] each
  float* limit;  // what a score may be above the base before that moves: kSlack, or −∞ while there is none
  float* seen;   // 1 where a key was visible
};

constexpr int kTiles = 4;  // scores, tile_bias, local, probabilities

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
  bool two_levels;      // whether outputs of some blocks of keys are summed apart: Arithmetic::kFoldKeys
  bool folds;           // whether they join the total after this block
  const float* key;     // of this batch row and head
  const float* value;
  float* converted;  // Arithmetic::enter_block's keys, from block_k0 on, and their values
  float* converted_values;
  int32_t block_k0;
  float* scores;         // [kTileKeys][kQueries]
  float* probabilities;  // likewise, as Arithmetic has them; the same memory but for kBeside
  float* tile_bias;      // [kTileKeys][kQueries]
  float* local;          // [kTileKeys][kQueries]: a local mask being built
};

// ---- scores ----------------------------------------------------------------------------------------------

// Scores of `count` ≤ kTileKeys keys; greatest[v] is the greatest of each query that is not NaN, or −∞.
// With kExp the scores that were there, of a whole tile, become probabilities, and their sums join `sums`.
template <class Arithmetic, int NV, Start kStart, bool kExp = false>
AB_INLINE void score_tile(const Work& w, const Panel* panels, int64_t key, int count, const Vec* row,
                          Vec* greatest, float* sums = nullptr) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = Vec{} - kInfinity;
  int k = 0;
  constexpr int kGroup = kExp ? kRows / 2 : kRows;  // exponentials want registers too
  for (; k + kGroup <= count; k += kGroup) {
    Arithmetic::template score_rows<kGroup, NV, kStart, kExp>(w, panels, key + k, k, row, greatest, sums);
  }
  for (; !kExp && k < count; ++k) {
    Arithmetic::template score_rows<1, NV, kStart, false>(w, panels, key + k, k, row, greatest, sums);
  }
}

// A whole tile's, out of line: products and exponentials side by side want all registers.
template <class Arithmetic, int NV>
__attribute__((noinline)) void score_beside(const Work& w, const Panel* panels, int64_t key, const Vec* row,
                                            Vec* greatest, float* sums) {
  Vec start[NV], most[NV];  // not in memory that scores might be
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) start[v] = row[v];
  score_tile<Arithmetic, NV, Start::kRow, true>(w, panels, key, kTileKeys, start, most, sums);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = most[v];
}

// ---- softmax ---------------------------------------------------------------------------------------------

// Moves the base of the lanes whose greatest score passes their limit, and rescales what they have summed.
// With kAbsolute scores are themselves, and become relative to the new base; otherwise they are relative to
// the old one, and moved[v] is what to take off. Where the old base is far, old base + (score − old base) can
// be far from the score: so the base is then the score itself, or scores lose what was added to the base,
// within 1 for those that float32 has, and what they are above the old base for those that it can't reach.
template <class Arithmetic, int NV, bool kAbsolute>
AB_INLINE void move_base(const Work& w, const Block& block, const Vec* greatest, Vec* base, Vec* moved,
                         bool* far) {
  Vec factor[NV];
  *far = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const Vec limit = load(block.limit + v * kLanes);
    const Vec above = kAbsolute ? greatest[v] - base[v] : greatest[v];
    const VecInt move = above > limit;
    const Vec next = !move ? base[v] : kAbsolute ? greatest[v] : base[v] + above;
    // A lane without a base has nothing to rescale; 1 keeps its zeros.
    const VecInt rescale = move & (limit != -kInfinity);
    Vec by = next - base[v];
    by = by < above - 1.0f ? above - 1.0f : by;
    by = by > above + 1.0f ? above + 1.0f : by;
    moved[v] = move ? by : Vec{};
    factor[v] = rescale ? exp_vec(moved[v] * (-1.0f / Arithmetic::kUnit)) : Vec{} + 1.0f;
    base[v] = next;
    *far |= any_far(next);
    store(block.base + v * kLanes, next);
    store(block.limit + v * kLanes, move ? Vec{} + kSlack : limit);
  }
  float* const sums[3] = {block.output, block.total, block.lost};
  for (int i = 0; i < (w.two_levels ? 3 : 1); ++i) {
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

template <class Arithmetic, int NV, bool kCareful>
AB_INLINE void output_tile(const Work& w, const Block& block, int64_t key, int count) {
  const int32_t value_dim = static_cast<int32_t>(w.problem->value_dim);
  int32_t d = 0;
  for (; d + kRows <= value_dim; d += kRows) {
    Arithmetic::template output_rows<kRows, NV, kCareful>(w, key, count, d, block.output + d * kQueries);
  }
  for (; d < value_dim; ++d) {
    Arithmetic::template output_rows<1, NV, kCareful>(w, key, count, d, block.output + d * kQueries);
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

// ---- bias ----------------------------------------------------------------------------------------------

// to = biases·unit. The least finite one stays what it is: as a mask it is common, and nothing is below it.
// False where another has no such product.
AB_INLINE bool scale_biases(const float* biases, float unit, int32_t count, float* to) {
  Vec lost = {};
  for (int32_t i = 0; i < count; i += kLanes) {
    const Vec x = load(biases + i), product = x * unit;
    const VecInt least = x == -__FLT_MAX__;
    const VecInt overflows = (product == kInfinity) | (product == -kInfinity);
    lost = overflows & (x != -kInfinity) & ~least ? Vec{} + 1.0f : lost;
    store(to + i, least ? x : product);
  }
  return !any_greater(lost, Vec{});
}

// ---- one block of queries over one block of keys ---------------------------------------------------------

template <int NV>
AB_INLINE void find_greatest(const Work& w, int count, Vec* greatest) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = Vec{} - kInfinity;
  for (int k = 0; k < count; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      greatest[v] = max_or_second(load(w.scores + k * kQueries + v * kLanes), greatest[v]);
    }
  }
}

// Adds additive local terms to the scores. They may lower them, so the greatest are found anew.
template <int NV>
__attribute__((noinline)) void patch_scores(const Work& w, uint64_t patches, const Tile& tile, float unit,
                                            Vec* greatest) {
  for (; patches != 0; patches &= patches - 1) {
    visit(w.terms[lowest_bit(patches)], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        const auto plus = [unit](float score, float bias) AB_INLINE_LAMBDA { return score + bias * unit; };
        add_near(term, tile, w.scores, plus);
      }
    });
  }
  find_greatest<NV>(w, tile.k1 - tile.k0, greatest);
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
AB_INLINE void add_listed(const Work& w, const NearRun& near, int count, float unit, Vec* greatest) {
  alignas(kVectorBytes) float most[NV * kLanes];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) store(most + v * kLanes, greatest[v]);
  bool lowers = false;
  for (const NearElement* i = near.begin; i != near.end; ++i) {
    const int32_t lane = i->at % kQueries;
    if (lane >= NV * kLanes) continue;  // left over for the kernel of rows
    const float score = w.scores[i->at] + i->bias * unit;
    w.scores[i->at] = score;
    if (score > most[lane]) most[lane] = score;
    lowers |= i->bias < 0.0f;
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) greatest[v] = load(most + v * kLanes);
  if (lowers) find_greatest<NV>(w, count, greatest);
}

// Probabilities of w.scores, less `subtract`, into the block's sums and outputs.
template <class Arithmetic, int NV, bool kSubtract, bool kCareful>
AB_INLINE void weigh_tile(const Work& w, const Block& block, int64_t key, int count, const Vec* subtract) {
  Vec sum[NV];
  Arithmetic::template exp_tile<NV, kSubtract>(w, count, subtract, sum);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    float* at = block.output + w.problem->value_dim * kQueries + v * kLanes;
    store(at, load(at) + sum[v]);
  }
  output_tile<Arithmetic, NV, kCareful>(w, block, key, count);
}

constexpr int32_t kNone = -1;

// The same of the tile that waits, if one does.
template <class Arithmetic, int NV>
AB_INLINE void weigh_waiting(const Work& w, const Block& block, int32_t* waiting) {
  if (*waiting != kNone) weigh_tile<Arithmetic, NV, false, false>(w, block, *waiting, kTileKeys, nullptr);
  *waiting = kNone;
}

// With kBias the tile's biases are in memory, and what scores subtract of the base they subtract in the end.
// `waiting` is the first key of a whole tile whose scores are there and not weighed yet, or kNone.
template <class Arithmetic, int NV, bool kBias, bool kCareful>
void attend_tile(const Work& w, const Block& block, const Panel* panels, const Tile& tile, const float* row,
                 uint64_t patches, const NearRun& near, bool* far, int32_t* waiting) {
  const int count = tile.k1 - tile.k0;
  const bool beside = Arithmetic::kBeside && !kBias && count == kTileKeys;
  if (!beside) weigh_waiting<Arithmetic, NV>(w, block, waiting);
  Vec start[NV], base[NV], greatest[NV], moved[NV];
  bool passed = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    base[v] = load(block.base + v * kLanes);
    start[v] = load(row + v * kLanes) - base[v];
  }
  if (beside && *waiting != kNone) {
    float* const sums = block.output + w.problem->value_dim * kQueries;
    score_beside<Arithmetic, NV>(w, panels, tile.k0, start, greatest, sums);
    output_tile<Arithmetic, NV, false>(w, block, *waiting, kTileKeys);
    *waiting = kNone;
  } else {
    score_tile<Arithmetic, NV, kBias ? Start::kHiding : Start::kRow>(w, panels, tile.k0, count, start,
                                                                     greatest);
  }
  if (patches != 0) patch_scores<NV>(w, patches, tile, Arithmetic::kUnit, greatest);
  if (!kBias && near.begin != near.end) add_listed<NV>(w, near, count, Arithmetic::kUnit, greatest);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    passed |= any_greater(kBias ? greatest[v] - base[v] : greatest[v], load(block.limit + v * kLanes));
  }
  if (passed) move_base<Arithmetic, NV, kBias>(w, block, greatest, base, moved, far);
  if (kBias) {
    weigh_tile<Arithmetic, NV, true, kCareful>(w, block, tile.k0, count, base);
  } else if (passed) {
    weigh_tile<Arithmetic, NV, true, kCareful>(w, block, tile.k0, count, moved);
  } else if (beside) {
    *waiting = tile.k0;
  } else {
    weigh_tile<Arithmetic, NV, false, kCareful>(w, block, tile.k0, count, nullptr);
  }
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

template <class Arithmetic, int NV, bool kCareful>
void attend_keys(const Work& w, const Block& block, const Panel* panels, const Tile& keys) {
  const TilePlan plan = plan_tile(w.terms, w.planned_terms, keys);
  if (plan.hidden) {
    if (w.folds) fold_output<NV>(w, block);
    return;
  }
  alignas(kVectorBytes) float block_row[kQueries] = {};
  add_row_constants(w.terms, plan.row_constant, keys, block_row);
  bool far = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) far |= any_far(load(block.base + v * kLanes));
  const bool block_hides = any_hidden(block_row);
  constexpr bool kScales = Arithmetic::kUnit != 1.0f;
  alignas(kVectorBytes) float unit_row[kQueries];  // block_row or tile_row, times kUnit
  bool exact = !kScales || scale_biases(block_row, Arithmetic::kUnit, kQueries, unit_row);
  bool block_scaled = true;
  bool all_seen = false;
  int32_t waiting = kNone;
  Tile tile = keys;
  for (; tile.k0 < keys.k1; tile.k0 = tile.k1) {
    tile.k1 = min_i32(tile.k0 + kTileKeys, keys.k1);
    // Most tiles have nothing but what holds for the block of keys: for them as little as can be is done
    // here.
    const float* row = block_row;
    uint64_t mixed = 0;
    bool hides = block_hides;
    alignas(kVectorBytes) float tile_row[kQueries];
    if (plan.mixed != 0) {
      const TilePlan part = plan_tile(w.terms, plan.mixed, tile);
      if (part.hidden) continue;
      mixed = part.mixed;
      if (part.row_constant != 0) {
        for (int q = 0; q < kQueries; ++q) tile_row[q] = block_row[q];
        add_row_constants(w.terms, part.row_constant, tile, tile_row);
        row = tile_row;
        hides = any_hidden(row);
      }
    }
    const NearRun near = near_run(w, tile);
    if ((mixed & ~w.patch_terms) != 0 || kCareful || far || hides) {
      fill_tile_bias({w.terms, w.tile_bias, w.local}, mixed, tile, row);
      for (const NearElement* i = near.begin; i != near.end; ++i) {
        w.tile_bias[i->at] = add_bias(w.tile_bias[i->at], i->bias);
      }
      mark_seen(block, w.tile_bias, tile.k1 - tile.k0);
      const int32_t count = (tile.k1 - tile.k0) * kQueries;
      exact &= !kScales || scale_biases(w.tile_bias, Arithmetic::kUnit, count, w.tile_bias);
      attend_tile<Arithmetic, NV, true, kCareful>(w, block, panels, tile, row, 0, near, &far, &waiting);
    } else {
      if (kScales && (row == tile_row || !block_scaled)) {
        exact &= scale_biases(row, Arithmetic::kUnit, kQueries, unit_row);
        block_scaled = row == block_row;
      }
      if (!all_seen) {
        for (int q = 0; q < kQueries; ++q) block.seen[q] = 1.0f;
        all_seen = true;
      }
      attend_tile<Arithmetic, NV, false, false>(w, block, panels, tile, kScales ? unit_row : row, mixed, near,
                                                &far, &waiting);
    }
  }
  if (!exact) block.output[0] = __builtin_nanf("");  // to be attended again: see attend_piece
  if (Arithmetic::kBeside) weigh_waiting<Arithmetic, NV>(w, block, &waiting);
  if (w.folds) fold_output<NV>(w, block);
}

// ---- a piece ---------------------------------------------------------------------------------------------

void reset(const Work& w, const Block& block) {
  const int64_t floats = static_cast<int64_t>(w.output_rows) * kQueries;
  for (int64_t i = 0; i < floats; ++i) block.output[i] = 0.0f;
  if (w.two_levels) {
    for (int64_t i = 0; i < floats; ++i) block.total[i] = block.lost[i] = 0.0f;
  }
  for (int32_t q = 0; q < kQueries; ++q) {
    block.base[q] = block.seen[q] = 0.0f;
    block.limit[q] = -kInfinity;
  }
}

// Everything of one block over keys [k0, k1).
template <class Arithmetic, bool kCareful>
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
      return attend_keys<Arithmetic, 1, kCareful>(w, block, panels, keys);
    case 2:
      return attend_keys<Arithmetic, 2, kCareful>(w, block, panels, keys);
    default:
      return attend_keys<Arithmetic, 3, kCareful>(w, block, panels, keys);
  }
}

template <class Arithmetic>
void pack_block(const Work& w, const Block& block, int32_t q0, int32_t q1) {
  const AttentionTask& t = *w.task;
  const AttentionProblem& p = *w.problem;
  const int32_t dims = static_cast<int32_t>(p.head_dim);
  const float* query = p.query.f32() + ((t.b * p.extent.heads + t.h) * p.extent.queries + q0) * p.head_dim;
  Arithmetic::pack(query, q1 - q0, dims, static_cast<float>(p.scale) * Arithmetic::kUnit, block.packed);
  float* packed = block.packed + dims * kQueries;
  for (uint64_t left = w.low_rank_terms; left != 0; left &= left - 1) {
    const LowRankTerm& term = w.terms[lowest_bit(left)].low_rank;
    const float* rows = term.column(t.b, t.h, 0).query_factors + static_cast<int64_t>(q0) * term.rank;
    pack(rows, q1 - q0, term.rank, term.scale * Arithmetic::kUnit, packed);
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

template <class Arithmetic>
void finish(const AttentionTask& t, const Block& block, int32_t q0, int32_t q1) {
  const int32_t value_dim = static_cast<int32_t>(t.problem->value_dim);
  const float* sum = block.total + value_dim * kQueries;
  for (int32_t q = q0; q < q1; ++q) {
    const int32_t lane = q - q0, row = q - t.q0;
    const float base = block.base[lane];
    const SoftmaxState state = {base == -__FLT_MAX__ ? base : base / Arithmetic::kUnit, sum[lane],
                                block.seen[lane] != 0.0f};
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

// Keys of a block.
int32_t key_block(const AttentionProblem& p) {
  const int64_t fit = kKeyBlockFloats / (packed_dims(p) + p.value_dim + 1) / kTileKeys * kTileKeys;
  return max_i32(kTileKeys, min_i32(kKeyBlock, static_cast<int32_t>(fit)));
}

template <class Arithmetic>
int64_t scratch_floats(const AttentionProblem& p, int32_t queries) {
  const int64_t blocks = (queries + kQueries - 1) / kQueries;
  return kTiles * kTileKeys * kQueries + blocks * kQueries * state_floats(p) +
         Arithmetic::block_floats(p, key_block(p)) +
         (Arithmetic::kRedoesAsRows ? AB_ISA_NAME::row_scratch_floats(p, kQueries) : 0);
}

// A share of the next block's keys and values, for L2: enter_block reads them faster than memory gives them.
AB_INLINE void prefetch_share(const Work& w, int32_t k0, int32_t k1, int32_t share, int32_t shares) {
  const int64_t keys = k1 - k0;
  const auto fetch = [&](const float* rows, int64_t dims) AB_INLINE_LAMBDA {
    const float* end = rows + (k0 + keys * (share + 1) / shares) * dims;
    for (const float* at = rows + (k0 + keys * share / shares) * dims; at < end; at += 16) {
      __builtin_prefetch(at, 0, 2);
    }
  };
  fetch(w.key, w.problem->head_dim);
  fetch(w.value, w.problem->value_dim);
}

template <class Arithmetic>
bool attend_piece(const AttentionTask& t) {
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
  w.probabilities = Arithmetic::kBeside ? t.scratch + 3 * kTileKeys * kQueries : w.scores;
  const int32_t step = key_block(p);
  w.converted = t.scratch + kTiles * kTileKeys * kQueries;
  float* const row_scratch = w.converted + Arithmetic::block_floats(p, step);
  float* blocks = row_scratch;
  if (Arithmetic::kRedoesAsRows) blocks += AB_ISA_NAME::row_scratch_floats(p, kQueries);
  const int64_t floats = kQueries * state_floats(p);

  const int32_t fold_keys = max_i32(step, Arithmetic::kFoldKeys / step * step);
  w.two_levels = t.k1 - t.k0 > fold_keys;
  const auto enter = [&](int32_t k0) AB_INLINE_LAMBDA {
    const int32_t k1 = min_i32(k0 + step, t.k1);
    w.folds = w.two_levels && ((k1 - t.k0) % fold_keys == 0 || k1 == t.k1);
    Arithmetic::enter_block(&w, k0, k1);
    return k1;
  };

  const auto block_at = [&](int32_t q0) AB_INLINE_LAMBDA {
    float* at = blocks + (q0 - t.q0) / kQueries * floats;
    const int64_t rows = static_cast<int64_t>(w.output_rows) * kQueries;
    float* output = at + static_cast<int64_t>(w.packed_dims) * kQueries;
    float* total = w.two_levels ? output + rows : output;
    float* state = output + 3 * rows;
    return Block{at, output, total, output + 2 * rows, state, state + kQueries, state + 2 * kQueries};
  };
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const Block block = block_at(q0);
    pack_block<Arithmetic>(w, block, q0, min_i32(q0 + kQueries, t.q1));
    reset(w, block);
  }
  const int32_t query_blocks = (t.q1 - t.q0 + kQueries - 1) / kQueries;
  for (int32_t k0 = t.k0; k0 < t.k1; k0 += step) {
    const int32_t k1 = enter(k0);
    for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
      if (aborted(t.abort)) return false;
      const Block block = block_at(q0);
      if (Arithmetic::kConverts) {
        prefetch_share(w, k1, min_i32(k1 + step, t.k1), (q0 - t.q0) / kQueries, query_blocks);
      }
      attend<Arithmetic, false>(w, block, q0, min_i32(q0 + kQueries, t.q1), k0, k1);
    }
  }
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const int32_t q1 = min_i32(q0 + kQueries, t.q1);
    const Block block = block_at(q0);
    // A hidden key's NaN or infinite value times its probability 0 is NaN too: once more, leaving hidden
    // pairs out. The same where a bias was not exact.
    if (w.element_terms != 0 && any_nan(w, block, q1 - q0)) {
      if constexpr (Arithmetic::kRedoesAsRows) {
        AttentionTask rows = t;
        rows.q0 = q0, rows.q1 = q1;
        rows.scratch = row_scratch;
        rows.out += (q0 - t.q0) * p.value_dim;
        if (rows.lse) rows.lse += q0 - t.q0;
        if (rows.partial) rows.partial += q0 - t.q0;
        if (!AB_ISA_NAME::attention_rows(rows, nullptr)) return false;
        continue;
      } else {
        reset(w, block);
        for (int32_t k0 = t.k0; k0 < t.k1; k0 += step) {
          if (aborted(t.abort)) return false;
          attend<Arithmetic, true>(w, block, q0, q1, k0, enter(k0));
        }
      }
    }
    finish<Arithmetic>(t, block, q0, q1);
  }
  return true;
}

}  // namespace
}  // namespace attention_bias::cpu
