// Gradients of biased attention in float32, compiled once an instruction set: one piece of queries and keys
// of one batch row and head. With p = exp(score − lse), out·dout = Σ_d out_d·dout_d of a query:
//
//   dscore = p·(dout·value − out·dout)     which is also the gradient by the pair's bias
//   dquery = scale·Σ_k dscore·key          dkey = scale·Σ_q dscore·query          dvalue = Σ_q p·dout
//
// as in FlashAttention-2 (Dao 2023): scores are computed again, nothing of size Q·K is kept. Where float32
// rounds lse by too much (is_far), p = exp(score − base)/sum by the greatest and the sum of the very scores
// that this kernel computes, which a pass before has found (row_sums).
//
// Lanes are queries, as in attention_body.h, and per tile of 64 keys × 3 vectors of queries:
//
//   p        8 keys × 3 vectors of accumulators over d that start at bias − lse; exp in registers
//   dscore   the same over the value's dims, starting at −out·dout, then times p; what a tile's row-constant
//            terms need are its sums by query, added up beside
//   dvalue   lanes are value dims here: 8 keys × 2 vectors over the tile's queries, p broadcast from L1
//   dkey     likewise, with dscore and the queries as they lie in memory
//   dquery   8 dims × 3 vectors over the tile's keys: the forward pass's product with values
//
// p and dscore of a tile are 24 KB. Blocks of 512 keys, whose gradients are summed up in L2, are the outer
// loop, blocks of queries the inner. lowRank terms are dims more of query and key. Of other learnable terms
// those that are mixed in a tile go through their derivatives pair by pair, listed ones element by element.
//
// Work for a vector of scores at head dim 32: 5·32 multiply-adds and 8 more, so CMT (1×8×900×56,400×32,
// modality bias) takes 592 ms of two cores at 229 GFLOP/s at best. On an AMD EPYC (family 25, model 17, 2
// cores) with AVX-512 640 ms, 92 %, with spatial terms too; 670 with AVX2.
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/tile.h"
#include "cpu/tile_bias.h"

namespace attention_bias::cpu {
namespace {

constexpr int kKeyBlock = 512;
constexpr int kKeyBlockFloats = 96 * 1024;  // keys, values and their gradients of a block: 384 KB, for L2
constexpr int kDimVectors = 2;              // of a register block whose lanes are dims

// Of a block of queries, by lane.
struct Block {
  float* packed;       // [all panels' dims][kQueries], times scale
  float* grad_out;     // [value_dim][kQueries]
  float* grad_packed;  // as packed, not scaled yet
  float* shift;        // [kQueries] lse, or base
  float* factor;       // [kQueries] 1, or 1/sum
  float* mean;         // [kQueries] out·grad_out
};

struct PanelGradient {
  const float* query;  // rows of the task's batch row and head, from query 0
  float scale;
  int32_t dims;
  float* block;  // [keys of a block][padded dims]: the gradients by its keys
};

struct Work {
  const BackwardTask* task;
  const AttentionProblem* problem;
  const Term* terms;
  uint64_t planned_terms;  // all but lowRank and those that are listed
  uint64_t learned_terms;  // all but lowRank that have something learnable
  uint64_t shared_terms;  // of these: whose gradients are summed up over batch rows, by tile, before they are
                          // theirs
  int32_t first_learnable[kMaxTerms];
  int32_t value_dim;
  int32_t packed_dims;
  int panel_count;
  Panel panels[kMaxPanels];  // the query is a block's
  PanelGradient gradients[kMaxPanels];
  const float* value;     // of this batch row and head
  const float* grad_out;  // rows, likewise
  float* value_block;     // gradients by the values of a block of keys
  float* probabilities;   // [kTileKeys][kQueries]
  float* grad_scores;     // likewise
  float* tile_bias;       // likewise
  float* local;           // likewise
  float* blocks;          // of queries
};

AB_INLINE int32_t padded(int32_t dims) { return (dims + kLanes - 1) / kLanes * kLanes; }

// ---- a tile's pairs --------------------------------------------------------------------------------------

// What a tile's pairs become: probabilities of scores that start at `row`; or at the tile's biases, of which
// −∞ hides, and `row` is taken off at the end; or the scores themselves, from the tile's biases.
enum class Pairs { kFromRow, kFromBias, kScores };

// Of NR keys. What scores are over lse ends at `most`: 0 where it is all of a score, since a probability is
// at most 1 and both are rounded.
template <int NR, int NV, Pairs kPairs>
AB_INLINE void pair_rows(const Work& w, const Panel* panels, int64_t key, int in_tile, const Vec* row,
                         const float* factor, Vec most) {
  constexpr bool kHiding = kPairs != Pairs::kFromRow;
  Vec sum[NR][NV];
  const float* bias = w.tile_bias + in_tile * kQueries;
  start_rows<NR, NV, kHiding ? Start::kHiding : Start::kRow>(row, bias, sum);
  for (int p = 0; p < w.panel_count; ++p) add_products(panels[p], key, sum);
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      Vec pair = sum[r][v];
      if (kHiding) {
        const VecInt hide = load(bias + r * kQueries + v * kLanes) == -kInfinity;
        if (kPairs == Pairs::kFromBias) pair -= row[v];
        pair = hide ? Vec{} - kInfinity : pair;
      }
      if (kPairs != Pairs::kScores) pair = exp_vec(min_or_second(most, pair));
      if (kPairs == Pairs::kFromBias) pair *= load(factor + v * kLanes);
      store(w.probabilities + (in_tile + r) * kQueries + v * kLanes, pair);
    }
  }
}

template <int NV, Pairs kPairs>
AB_INLINE void pair_tile(const Work& w, const Panel* panels, int64_t key, int count, const Vec* row,
                         const float* factor, Vec most) {
  int k = 0;
  for (; k + kRows <= count; k += kRows) {
    pair_rows<kRows, NV, kPairs>(w, panels, key + k, k, row, factor, most);
  }
  for (; k < count; ++k) pair_rows<1, NV, kPairs>(w, panels, key + k, k, row, factor, most);
}

// Gradients by the scores of NR keys, whose sums by query join `sums`. With kCareful those of hidden pairs
// are 0 whatever their value is.
template <int NR, int NV, bool kCareful>
AB_INLINE void grad_score_rows(const Work& w, const Panel& panel, int64_t key, int in_tile, const Vec* start,
                               Vec* sums) {
  Vec sum[NR][NV];
  start_rows<NR, NV, Start::kRow>(start, nullptr, sum);
  add_products(panel, key, sum);
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int64_t at = (in_tile + r) * kQueries + v * kLanes;
      Vec grad = sum[r][v] * load(w.probabilities + at);
      if (kCareful) grad = load(w.tile_bias + at) == -kInfinity ? Vec{} : grad;
      store(w.grad_scores + at, grad);
      sums[v] += grad;
    }
  }
}

template <int NV, bool kCareful>
AB_INLINE void grad_score_tile(const Work& w, const Block& block, int64_t key, int count, Vec* sums) {
  Vec start[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    start[v] = Vec{} - load(block.mean + v * kLanes);
    sums[v] = Vec{};
  }
  const Panel panel = {block.grad_out, w.value, w.value_dim, w.value_dim};
  int k = 0;
  for (; k + kRows <= count; k += kRows) {
    grad_score_rows<kRows, NV, kCareful>(w, panel, key + k, k, start, sums);
  }
  for (; k < count; ++k) grad_score_rows<1, NV, kCareful>(w, panel, key + k, k, start, sums);
}

// ---- gradients by keys and values ------------------------------------------------------------------------

// to[k] += Σ_q weights[k][q]·rows[q] for NK keys and ND vectors of dims, of the last of which `part` dims are
// there where that is not 0.
template <int NK, int ND>
AB_INLINE void key_rows(const float* weights, int32_t queries, const float* rows, int64_t stride,
                        int32_t part, float* to, int64_t to_stride) {
  Vec sum[NK][ND];
  clear_rows(sum);
  for (int32_t q = 0; q < queries; ++q, ++weights, rows += stride) {
    Vec x[ND];
#pragma GCC unroll 8
    for (int d = 0; d < ND; ++d) {
      const float* at = rows + d * kLanes;
      x[d] = d + 1 == ND && part != 0 ? load_part(at, part) : load_any(at);
    }
#pragma GCC unroll 8
    for (int k = 0; k < NK; ++k) {
      const Vec weight = splat(weights[k * kQueries]);
#pragma GCC unroll 8
      for (int d = 0; d < ND; ++d) sum[k][d] += weight * x[d];
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < NK; ++k) {
#pragma GCC unroll 8
    for (int d = 0; d < ND; ++d) {
      float* at = to + k * to_stride + d * kLanes;
      store(at, load(at) + sum[k][d]);
    }
  }
}

template <int ND>
AB_INLINE void key_columns(const float* weights, int count, int32_t queries, const float* rows,
                           int64_t stride, int32_t part, float* to, int64_t to_stride) {
  int k = 0;
  for (; k + kRows <= count; k += kRows) {
    key_rows<kRows, ND>(weights + k * kQueries, queries, rows, stride, part, to + k * to_stride, to_stride);
  }
  for (; k < count; ++k) {
    key_rows<1, ND>(weights + k * kQueries, queries, rows, stride, part, to + k * to_stride, to_stride);
  }
}

// The same of a whole tile and all dims; to has padded(dims) a row.
void key_tile(const float* weights, int count, int32_t queries, const float* rows, int32_t dims, float* to) {
  const int64_t to_stride = padded(dims);
  int32_t d = 0;
  for (; d + kDimVectors * kLanes <= dims; d += kDimVectors * kLanes) {
    key_columns<kDimVectors>(weights, count, queries, rows + d, dims, 0, to + d, to_stride);
  }
  for (; d < dims; d += kLanes) {
    const int32_t part = dims - d < kLanes ? dims - d : 0;
    key_columns<1>(weights, count, queries, rows + d, dims, part, to + d, to_stride);
  }
}

// The same, a pair at a time, without those that are hidden, whatever is in their rows.
void key_tile_careful(const Work& w, const float* weights, int count, int32_t queries, const float* rows,
                      int32_t dims, float* to) {
  for (int k = 0; k < count; ++k) {
    float* row = to + static_cast<int64_t>(k) * padded(dims);
    for (int32_t q = 0; q < queries; ++q) {
      const int at = k * kQueries + q;
      if (w.tile_bias[at] == -kInfinity) continue;
      for (int32_t d = 0; d < dims; ++d) row[d] += weights[at] * rows[static_cast<int64_t>(q) * dims + d];
    }
  }
}

// ---- gradients by queries --------------------------------------------------------------------------------

template <int NV, bool kCareful>
AB_INLINE void query_tile(const Work& w, const Panel& panel, int64_t key, int count, float* grad) {
  const float* rows = panel.key + key * panel.key_stride;
  int32_t d = 0;
  for (; d + kRows <= panel.dims; d += kRows) {
    output_rows<kRows, NV, kCareful>(w.grad_scores, w.tile_bias, count, rows + d, panel.key_stride,
                                     grad + d * kQueries);
  }
  for (; d < panel.dims; ++d) {
    output_rows<1, NV, kCareful>(w.grad_scores, w.tile_bias, count, rows + d, panel.key_stride,
                                 grad + d * kQueries);
  }
}

// ---- gradients by terms ----------------------------------------------------------------------------------

AB_INLINE void add_to(const GradientSink& sink, int64_t at, double x) {
  if (sink.sums) {
    sink.sums[at - sink.first] += x;
  } else {
    sink.floats[at] += static_cast<float>(x);
  }
}

// Terms that are constant along some keys, k0 one of them: sums[q] is what their gradients sum up to.
void add_row_gradients(const Work& w, uint64_t which, const Tile& tile, const float* sums) {
  for (; which != 0; which &= which - 1) {
    const int i = lowest_bit(which);
    const GradientSink* sinks = w.task->sinks + w.first_learnable[i];
    visit(w.terms[i], [&](const auto& term) AB_INLINE_LAMBDA {
      if constexpr (std::decay_t<decltype(term)>::kLearns) {
        for (int32_t q = tile.q0; q < tile.q1; ++q) {
          const double sum = sums[q - tile.q0];
          term.template derivatives<double>(
              tile.b, tile.h, tile.k0, q, [&](int32_t slot, int64_t at, double derivative) AB_INLINE_LAMBDA {
                add_to(sinks[slot], at, sum * derivative);
              });
        }
      }
    });
  }
}

// Terms of which the tile's pairs differ.
void add_pair_gradients(const Work& w, uint64_t which, const Tile& tile) {
  for (; which != 0; which &= which - 1) {
    const int i = lowest_bit(which);
    const GradientSink* sinks = w.task->sinks + w.first_learnable[i];
    visit(w.terms[i], [&](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLearns && T::kLocal) {
        for (int32_t q = tile.q0; q < tile.q1; ++q) {
          const float* grads = w.grad_scores + (q - tile.q0);
          term.template near_derivatives<float>(
              tile, q,
              [&](int32_t slot, int64_t at, int32_t begin, int32_t end, auto derivative) AB_INLINE_LAMBDA {
                double sum = 0;
                for (int32_t k = begin; k < end; ++k) {
                  sum += static_cast<double>(grads[(k - tile.k0) * kQueries] * derivative(k - begin));
                }
                add_to(sinks[slot], at, sum);
              });
        }
      } else if constexpr (T::kLearns) {
        const auto add = [&](int32_t k, int32_t q) AB_INLINE_LAMBDA {
          const double grad = w.grad_scores[(k - tile.k0) * kQueries + q - tile.q0];
          term.template derivatives<double>(
              tile.b, tile.h, k, q, [&](int32_t slot, int64_t at, double derivative) AB_INLINE_LAMBDA {
                add_to(sinks[slot], at, grad * derivative);
              });
        };
        if constexpr (T::kKeysTogether) {
          for (int32_t q = tile.q0; q < tile.q1; ++q) {
            for (int32_t k = tile.k0; k < tile.k1; ++k) add(k, q);
          }
        } else {
          for (int32_t k = tile.k0; k < tile.k1; ++k) {
            for (int32_t q = tile.q0; q < tile.q1; ++q) add(k, q);
          }
        }
      }
    });
  }
}

void add_near_gradients(const Work& w, const Tile& tile, const NearGradient* begin, const NearGradient* end) {
  const int64_t at = tile.b * w.problem->extent.queries + tile.q0;
  for (const NearGradient* i = begin; i != end; ++i) {
    const double grad = w.grad_scores[i->at];
    add_to(w.task->sinks[i->learnable], at + i->at % kQueries, grad * static_cast<double>(i->derivative));
  }
}

// Where the tile lies in SharedTiles.
AB_INLINE int64_t shared_tile(const AttentionProblem& p, const Tile& tile) {
  const int64_t blocks = (p.extent.queries + kQueries - 1) / kQueries;
  const int64_t tiles = (p.extent.keys + kTileKeys - 1) / kTileKeys;
  return (tile.h * blocks + tile.q0 / kQueries) * tiles + tile.k0 / kTileKeys;
}

// The tile's biases at w.tile_bias: those of a batch row like this one where they are at hand.
void find_tile_bias(Work* w, uint64_t mixed, const Tile& tile, const float* row) {
  const SharedTiles* shared = w->task->near ? nullptr : w->task->shared;
  if (shared) {
    const int64_t at = shared_tile(*w->problem, tile), alike = w->problem->bias->first_alike(tile.b);
    w->tile_bias = shared->biases + at * kTileKeys * kQueries;
    if (shared->bias_of[at] == alike) return;
    shared->bias_of[at] = alike;
  }
  fill_tile_bias({w->terms, w->tile_bias, w->local}, mixed, tile, row);
}

void add_shared_gradients(const Work& w, const Tile& tile) {
  float* to = w.task->shared->grad_sums + shared_tile(*w.problem, tile) * kTileKeys * kQueries;
  const float* from = w.grad_scores;
  const float* const end = from + (tile.k1 - tile.k0) * kQueries;
  for (; from != end; from += kLanes, to += kLanes) store(to, load(to) + load(from));
}

// ---- one block of queries over one block of keys ---------------------------------------------------------

template <int NV, bool kHiding, bool kCareful>
__attribute__((noinline)) void differentiate_tile(const Work& w, const Block& block, const Panel* panels,
                                                  const Tile& tile, int32_t block_k0, const float* row,
                                                  const NearGradient* near, const NearGradient* near_end,
                                                  Vec* sums) {
  const int count = tile.k1 - tile.k0;
  const int32_t queries = tile.q1 - tile.q0;
  Vec from[NV], grad_sums[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const Vec shift = load(block.shift + v * kLanes);
    from[v] = kHiding ? shift : load(row + v * kLanes) - shift;
  }
  // Where listed biases are still to come, scores may be above lse, and exp ends before infinity.
  const bool patched = !kHiding && near != near_end;
  pair_tile<NV, kHiding ? Pairs::kFromBias : Pairs::kFromRow>(w, panels, tile.k0, count, from, block.factor,
                                                              splat(patched ? 88.0f : 0.0f));
  if (patched) {
    for (const NearGradient* i = near; i != near_end; ++i) w.probabilities[i->at] *= i->factor;
    for (const NearGradient* i = near; i != near_end; ++i) {  // all of a pair's
      float& p = w.probabilities[i->at];
      p = p > 1.0f ? 1.0f : p;  // NaN stays
    }
  }
  grad_score_tile<NV, kCareful>(w, block, tile.k0, count, grad_sums);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) sums[v] = grad_sums[v];

  const int64_t in_block = tile.k0 - block_k0;
  const auto add_keys = [&](const float* weights, const float* rows, int32_t dims, float* to)
                            AB_INLINE_LAMBDA {
                              rows += static_cast<int64_t>(tile.q0) * dims;
                              to += in_block * padded(dims);
                              if (kCareful) {
                                key_tile_careful(w, weights, count, queries, rows, dims, to);
                              } else {
                                key_tile(weights, count, queries, rows, dims, to);
                              }
                            };
  add_keys(w.probabilities, w.grad_out, w.value_dim, w.value_block);
  float* grad_packed = block.grad_packed;
  for (int p = 0; p < w.panel_count; ++p) {
    add_keys(w.grad_scores, w.gradients[p].query, w.gradients[p].dims, w.gradients[p].block);
    query_tile<NV, kCareful>(w, panels[p], tile.k0, count, grad_packed);
    grad_packed += static_cast<int64_t>(w.gradients[p].dims) * kQueries;
  }
}

// Calls body(tile, part, row, near, near_end, hiding) for the tiles that are not hidden whole of a block of
// queries over a block of keys, which `plan` is of: the plan of those of its terms that are mixed, what the
// other biases come to by query, and the listed ones. With `hiding` all of them are at w.tile_bias.
template <int NV, class Body>
AB_INLINE void each_tile(Work* work, const Block& block, const Tile& keys, const TilePlan& plan,
                         const Body& body) {
  const Work& w = *work;
  const BackwardTask& t = *w.task;
  alignas(kVectorBytes) float block_row[kQueries] = {};
  add_row_constants(w.terms, plan.row_constant, keys, block_row);
  bool far = false;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    far |=
        any_far(load(block.shift + v * kLanes)) || any_greater(splat(1.0f), load(block.factor + v * kLanes));
  }
  const bool block_hides = any_hidden(block_row);
  Tile tile = keys;
  for (; tile.k0 < keys.k1; tile.k0 = tile.k1) {
    tile.k1 = min_i32(tile.k0 + kTileKeys, keys.k1);
    const float* row = block_row;
    TilePlan part = {false, 0, 0};
    bool hides = block_hides;
    alignas(kVectorBytes) float tile_row[kQueries];
    if (plan.mixed != 0) {
      part = plan_tile(w.terms, plan.mixed, tile);
      if (part.hidden) continue;
      if (part.row_constant != 0) {
        for (int q = 0; q < kQueries; ++q) tile_row[q] = block_row[q];
        add_row_constants(w.terms, part.row_constant, tile, tile_row);
        row = tile_row;
        hides = any_hidden(row);
      }
    }
    const NearGradient *near = nullptr, *near_end = nullptr;
    if (t.near) {
      const NearBlockOf<NearGradient>& list = t.near[tile.q0 / kQueries];
      near = list.elements + list.begins[tile.k0 / kTileKeys];
      near_end = list.elements + list.ends[tile.k0 / kTileKeys];
    }
    bool row_far = far;
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) row_far |= any_far(load(row + v * kLanes));
    const bool hiding = part.mixed != 0 || row_far || hides;
    if (hiding) {
      find_tile_bias(work, part.mixed, tile, row);
      for (const NearGradient* i = near; i != near_end; ++i) {
        w.tile_bias[i->at] = add_bias(w.tile_bias[i->at], i->bias);
      }
    }
    body(tile, part, row, near, near_end, hiding);
  }
}

// The block's queries as the panels have them.
AB_INLINE void set_queries(const Work& w, const Block& block, Panel* panels) {
  const float* packed = block.packed;
  for (int p = 0; p < w.panel_count; ++p) {
    panels[p] = w.panels[p];
    panels[p].query = packed;
    packed += static_cast<int64_t>(panels[p].dims) * kQueries;
  }
}

template <int NV>
void differentiate_keys(Work* work, const Block& block, const Tile& keys) {
  const Work& w = *work;
  const BackwardTask& t = *w.task;
  const TilePlan plan = plan_tile(w.terms, w.planned_terms, keys);
  if (plan.hidden) return;
  Panel panels[kMaxPanels];
  set_queries(w, block, panels);
  alignas(kVectorBytes) float block_sums[kQueries] = {};
  each_tile<NV>(work, block, keys, plan,
                [&](const Tile& tile, const TilePlan& part, const float* row, const NearGradient* near,
                    const NearGradient* near_end, bool hiding) AB_INLINE_LAMBDA {
                  Vec tile_sums[NV];
                  const auto differentiate = !hiding     ? differentiate_tile<NV, false, false>
                                             : t.careful ? differentiate_tile<NV, true, true>
                                                         : differentiate_tile<NV, true, false>;
                  differentiate(w, block, panels, tile, keys.k0, row, near, near_end, tile_sums);
                  if (!t.sinks) return;
                  alignas(kVectorBytes) float sums[kQueries];
#pragma GCC unroll 8
                  for (int v = 0; v < NV; ++v) {
                    store(sums + v * kLanes, tile_sums[v]);
                    store(block_sums + v * kLanes, load(block_sums + v * kLanes) + tile_sums[v]);
                  }
                  add_row_gradients(w, part.row_constant & w.learned_terms, tile, sums);
                  if (part.mixed & w.shared_terms) add_shared_gradients(w, tile);
                  add_pair_gradients(w, part.mixed & w.learned_terms & ~w.shared_terms, tile);
                  add_near_gradients(w, tile, near, near_end);
                });
  if (t.sinks) add_row_gradients(w, plan.row_constant & w.learned_terms, keys, block_sums);
}

// Of a block of queries, by lane, as far as scores have been seen.
struct ScoreSums {
  alignas(kVectorBytes) float greatest[kQueries];
  double sum[kQueries];  // Σ exp(score − greatest)
};

// Adds a block of keys, in whose tiles scores start as where they are differentiated.
template <int NV>
void sum_keys(Work* work, const Block& block, const Tile& keys, ScoreSums* sums) {
  const Work& w = *work;
  const TilePlan plan = plan_tile(w.terms, w.planned_terms, keys);
  if (plan.hidden) return;
  Panel panels[kMaxPanels];
  set_queries(w, block, panels);
  each_tile<NV>(work, block, keys, plan,
                [&](const Tile& tile, const TilePlan&, const float*, const NearGradient*, const NearGradient*,
                    bool) AB_INLINE_LAMBDA {
                  const int count = tile.k1 - tile.k0;
                  pair_tile<NV, Pairs::kScores>(w, panels, tile.k0, count, nullptr, nullptr, Vec{});
#pragma GCC unroll 8
                  for (int v = 0; v < NV; ++v) {
                    const float* const scores = w.probabilities + v * kLanes;
                    const Vec before = load(sums->greatest + v * kLanes);
                    Vec greatest = before, part = {};
                    for (int k = 0; k < count; ++k) {
                      greatest = max_or_second(load(scores + k * kQueries), greatest);
                    }
                    const Vec from = greatest == -kInfinity ? Vec{} : greatest;  // nothing seen yet
                    for (int k = 0; k < count; ++k) part += exp_vec(load(scores + k * kQueries) - from);
                    const Vec rebase = exp_vec(before - from);
                    store(sums->greatest + v * kLanes, greatest);
                    for (int i = 0; i < kLanes; ++i) {
                      double& sum = sums->sum[v * kLanes + i];
                      sum = sum * static_cast<double>(rebase[i]) + static_cast<double>(part[i]);
                    }
                  }
                });
}

// ---- a piece ---------------------------------------------------------------------------------------------

int32_t padded_dims(const AttentionProblem& p) {
  int32_t dims = padded(static_cast<int32_t>(p.head_dim)) + padded(static_cast<int32_t>(p.value_dim));
  for (int i = 0; p.bias && i < p.bias->term_count(); ++i) {
    const Term& term = p.bias->term_data()[i];
    if (term.type == TermType::kLowRank) dims += padded(term.low_rank.rank);
  }
  return dims;
}

int32_t key_block(const AttentionProblem& p) {
  const int64_t fit = kKeyBlockFloats / (2 * padded_dims(p)) / kTileKeys * kTileKeys;
  return max_i32(kTileKeys, min_i32(kKeyBlock, static_cast<int32_t>(fit)));
}

int64_t block_floats(const AttentionProblem& p) { return kQueries * (2 * packed_dims(p) + p.value_dim + 3); }

void pack_queries(const Work& w, const Block& block, int32_t q0, int32_t q1) {
  float* packed = block.packed;
  for (int p = 0; p < w.panel_count; ++p) {
    const PanelGradient& g = w.gradients[p];
    pack(g.query + static_cast<int64_t>(q0) * g.dims, q1 - q0, g.dims, g.scale, packed);
    packed += static_cast<int64_t>(g.dims) * kQueries;
  }
}

// What is taken off a row's scores; infinity where it sees no key, whose probabilities are then 0.
AB_INLINE float shift_of(float lse) { return lse == -kInfinity ? kInfinity : lse; }

// One block of queries, packed.
void pack_block(const Work& w, const Block& block, int32_t q0, int32_t q1) {
  pack_queries(w, block, q0, q1);
  pack(w.grad_out + static_cast<int64_t>(q0) * w.value_dim, q1 - q0, w.value_dim, 1.0f, block.grad_out);
  const int64_t floats = static_cast<int64_t>(w.packed_dims) * kQueries;
  for (int64_t i = 0; i < floats; ++i) block.grad_packed[i] = 0.0f;
  const BackwardTask& t = *w.task;
  const int64_t first = (t.b * w.problem->extent.heads + t.h) * w.problem->extent.queries;
  for (int32_t lane = 0; lane < kQueries; ++lane) {
    block.shift[lane] = block.mean[lane] = 0.0f;
    block.factor[lane] = 1.0f;
    if (lane >= q1 - q0) continue;
    const int32_t q = q0 + lane;
    if (t.row_sums) {
      block.shift[lane] = t.row_sums[first + q].base;
      block.factor[lane] = t.row_sums[first + q].factor;
    } else {
      block.shift[lane] = shift_of(w.problem->lse[first + q]);
    }
    const float* out = w.problem->out + (first + q) * w.value_dim;
    const float* grad = w.grad_out + static_cast<int64_t>(q) * w.value_dim;
    double sums[4] = {};  // one would wait for itself
    for (int32_t d = 0; d < w.value_dim; ++d) {
      sums[d % 4] += static_cast<double>(out[d]) * static_cast<double>(grad[d]);
    }
    block.mean[lane] = static_cast<float>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

AB_INLINE void clear_keys(float* block, int32_t count, int32_t dims) {
  float* const end = block + static_cast<int64_t>(count) * padded(dims);
  for (; block != end; block += kLanes) store(block, Vec{});
}

// Writes or adds the gradients by a block of keys, [keys][padded dims], times scale to their rows.
AB_INLINE void flush_keys(const float* from, int32_t count, int32_t dims, float scale, bool adds, float* to) {
  for (int32_t k = 0; k < count; ++k, from += padded(dims), to += dims) {
    for (int32_t d = 0; d < dims; ++d) to[d] = adds ? to[d] + from[d] * scale : from[d] * scale;
  }
}

// The task and its terms, but for lowRank ones.
Work work_of(const BackwardTask& t) {
  Work w = {};
  w.task = &t;
  w.problem = &t.problem->attention;
  const Program* bias = w.problem->bias;
  if (!bias) return w;
  w.terms = bias->term_data();
  int32_t learnable = 0;
  for (int i = 0; i < bias->term_count(); ++i) {
    const uint64_t bit = uint64_t{1} << i;
    w.first_learnable[i] = learnable;
    learnable += bias->learnable_count(i);
    if (w.terms[i].type == TermType::kLowRank) continue;
    const bool listed = visit(w.terms[i], [](const auto& term) AB_INLINE_LAMBDA {
      using T = std::decay_t<decltype(term)>;
      return T::kLocal && !T::kHides;
    });
    if (!listed || !t.near) w.planned_terms |= bit;
    if (bias->learnable_count(i) != 0) w.learned_terms |= bit;
  }
  if (t.shared) w.shared_terms = w.learned_terms & ~bias->batch_terms();
  return w;
}

// The task, with its panels and scratch.
Work begin(const BackwardTask& t) {
  const AttentionProblem& p = t.problem->attention;
  const int64_t head = t.b * p.extent.heads + t.h;
  Work w = work_of(t);
  w.value_dim = static_cast<int32_t>(p.value_dim);
  w.packed_dims = static_cast<int32_t>(packed_dims(p));
  w.value = p.value.f32() + head * p.extent.keys * p.value_dim;
  w.grad_out = t.problem->grad_out + head * p.extent.queries * p.value_dim;
  w.probabilities = t.scratch;
  w.grad_scores = t.scratch + kTileKeys * kQueries;
  w.tile_bias = t.scratch + 2 * kTileKeys * kQueries;
  w.local = t.scratch + 3 * kTileKeys * kQueries;
  const int32_t step = key_block(p);
  float* next = t.scratch + 4 * kTileKeys * kQueries;
  w.value_block = next;
  next += static_cast<int64_t>(step) * padded(w.value_dim);
  const auto add_panel = [&](const float* query, const float* key, int32_t dims, float scale)
                             AB_INLINE_LAMBDA {
                               w.panels[w.panel_count] = {nullptr, key, dims, dims};
                               w.gradients[w.panel_count++] = {query, scale, dims, next};
                               next += static_cast<int64_t>(step) * padded(dims);
                             };
  add_panel(p.query.f32() + head * p.extent.queries * p.head_dim,
            p.key.f32() + head * p.extent.keys * p.head_dim, static_cast<int32_t>(p.head_dim),
            static_cast<float>(p.scale));
  for (int i = 0; p.bias && i < p.bias->term_count(); ++i) {
    if (w.terms[i].type != TermType::kLowRank) continue;
    const LowRankTerm& term = w.terms[i].low_rank;
    const LowRankTerm::Column column = term.column(t.b, t.h, 0);
    add_panel(column.query_factors, column.key_factors, term.rank, term.scale);
  }
  w.blocks = next;
  return w;
}

Block block_at(const Work& w, int32_t q0) {
  float* const at = w.blocks + (q0 - w.task->q0) / kQueries * block_floats(*w.problem);
  float* const grad_out = at + static_cast<int64_t>(w.packed_dims) * kQueries;
  float* const grad_packed = grad_out + static_cast<int64_t>(w.value_dim) * kQueries;
  float* const shift = grad_packed + static_cast<int64_t>(w.packed_dims) * kQueries;
  return {at, grad_out, grad_packed, shift, shift + kQueries, shift + 2 * kQueries};
}

// Calls f with a constant: the vectors that `queries` of a block fill.
template <class F>
AB_INLINE void with_vectors(int32_t queries, F f) {
  switch ((queries + kLanes - 1) / kLanes) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    default:
      return f(std::integral_constant<int, 3>());
  }
}

}  // namespace

namespace AB_ISA_NAME {

int64_t backward_scratch_floats(const AttentionProblem& p, int32_t queries) {
  const int64_t blocks = (queries + kQueries - 1) / kQueries;
  return 4 * kTileKeys * kQueries + static_cast<int64_t>(key_block(p)) * padded_dims(p) +
         blocks * block_floats(p);
}

bool backward(const BackwardTask& t) {
  const AttentionProblem& p = t.problem->attention;
  Work w = begin(t);
  const int32_t step = key_block(p);
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    pack_block(w, block_at(w, q0), q0, min_i32(q0 + kQueries, t.q1));
  }
  for (int32_t k0 = t.k0; k0 < t.k1; k0 += step) {
    const int32_t k1 = min_i32(k0 + step, t.k1);
    clear_keys(w.value_block, k1 - k0, w.value_dim);
    for (int i = 0; i < w.panel_count; ++i) clear_keys(w.gradients[i].block, k1 - k0, w.gradients[i].dims);
    for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
      if (aborted(t.abort)) return false;
      const int32_t q1 = min_i32(q0 + kQueries, t.q1);
      const Tile keys = {t.b, t.h, q0, q1, k0, k1};
      with_vectors(q1 - q0, [&](auto vectors) {
        differentiate_keys<decltype(vectors)::value>(&w, block_at(w, q0), keys);
      });
    }
    flush_keys(w.value_block, k1 - k0, w.value_dim, 1.0f, t.adds,
               t.grad_value + static_cast<int64_t>(k0) * w.value_dim);
    for (int i = 0; i < w.panel_count; ++i) {
      const PanelGradient& g = w.gradients[i];
      if (!t.grad_key[i]) continue;
      flush_keys(g.block, k1 - k0, g.dims, g.scale, t.adds,
                 t.grad_key[i] + static_cast<int64_t>(k0) * g.dims);
    }
  }
  for (int32_t q0 = t.q0; q0 < t.q1; q0 += kQueries) {
    const int32_t q1 = min_i32(q0 + kQueries, t.q1);
    const float* packed = block_at(w, q0).grad_packed;
    for (int i = 0; i < w.panel_count; ++i) {
      const PanelGradient& g = w.gradients[i];
      const Vec scale = splat(g.scale);
      const Vec factor[kVectors] = {scale, scale, scale};
      if (t.grad_query[i]) {
        unpack(packed, q1 - q0, g.dims, factor, t.grad_query[i] + static_cast<int64_t>(q0 - t.q0) * g.dims);
      }
      packed += static_cast<int64_t>(g.dims) * kQueries;
    }
  }
  return true;
}

bool row_sums(const BackwardTask& t, int32_t key_run, RowSum* to) {
  const AttentionProblem& p = t.problem->attention;
  const int64_t first = (t.b * p.extent.heads + t.h) * p.extent.queries + t.q0;
  bool any = false;
  for (int32_t q = 0; q < t.q1 - t.q0; ++q) {
    const float lse = p.lse[first + q];
    to[first + q] = {shift_of(lse), 1.0f};
    any |= is_far(lse);
  }
  if (!any) return true;
  Work w = begin(t);
  const Block block = block_at(w, t.q0);
  pack_queries(w, block, t.q0, t.q1);
  ScoreSums sums;
  for (int i = 0; i < kQueries; ++i) {
    block.shift[i] = sums.greatest[i] = -kInfinity;
    block.factor[i] = 1.0f;
    sums.sum[i] = 0;
  }
  const int32_t step = key_block(p);
  for (int32_t run = t.k0; run < t.k1; run += key_run) {
    for (int32_t k0 = run; k0 < min_i32(run + key_run, t.k1); k0 += step) {
      if (aborted(t.abort)) return false;
      const Tile keys = {t.b, t.h, t.q0, t.q1, k0, min_i32(k0 + step, min_i32(run + key_run, t.k1))};
      with_vectors(t.q1 - t.q0,
                   [&](auto vectors) { sum_keys<decltype(vectors)::value>(&w, block, keys, &sums); });
    }
  }
  for (int32_t q = 0; q < t.q1 - t.q0; ++q) {
    if (!is_far(p.lse[first + q]) || sums.sum[q] == 0) continue;
    to[first + q] = {sums.greatest[q], static_cast<float>(1 / sums.sum[q])};
  }
  return true;
}

void flush_grad_sums(const BackwardTask& t) {
  Work w = work_of(t);
  const Extent& e = w.problem->extent;
  Tile tile = {t.b, 0, 0, 0, 0, 0};
  for (tile.h = 0; tile.h < e.heads; ++tile.h) {
    for (tile.q0 = 0; tile.q0 < e.queries; tile.q0 = tile.q1) {
      tile.q1 = min_i32(tile.q0 + kQueries, static_cast<int32_t>(e.queries));
      for (tile.k0 = t.k0; tile.k0 < t.k1; tile.k0 = tile.k1) {
        tile.k1 = min_i32(tile.k0 + kTileKeys, t.k1);
        float* sums = t.shared->grad_sums + shared_tile(*w.problem, tile) * kTileKeys * kQueries;
        w.grad_scores = sums;
        add_pair_gradients(w, plan_tile(w.terms, w.shared_terms, tile).mixed, tile);
        for (int i = 0; i < kTileKeys * kQueries; ++i) sums[i] = 0.0f;
      }
    }
  }
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
