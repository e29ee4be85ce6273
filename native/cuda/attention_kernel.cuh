// Biased attention forward for one tile of 64 queries and one run of keys, on tensor cores.
//
// Four warps, 16 queries each. Per tile of kKeys keys: K and V come to shared memory by cp.async, the next
// tile while this one is computed (kStages 2); S = Q·Kᵀ and P·V by mma.sync, with the query's scale and log2
// e folded into Q, so that probabilities are one exp2 each. Tiles that are hidden are skipped unread. A tile
// whose terms are constant along keys adds one number a row, inside the exponent's own addition: no
// instruction a score. Order in a score: scale, product, bias, masks (docs/terms.md).
//
// Precisions: bf16 and tf32 are one mma a product. f32 computes scores by plain multiply-adds, since an error
// of a score is one of its exponent and a split product's grows with large scores (5e-5 instead of 2e-6 at
// scores of 100); its P·V is three mma (hi·hi + hi·lo + lo·hi of a tf32 split), summed from zero in each tile
// and then added to the running output in float32, since tensor cores cut bits off their sums. A mixed tile's
// terms are evaluated into shared memory, a key a thread, or the few keys near a query.
//
// Work at head dim 32, a score: 64 multiply-adds on tensor cores (f32: 96 there and 32 plain) and one exp2.
// CMT's shape (1×8×900×56,400×32) is 52 GFLOP and 406 M exp2; K and V are 115 MB, read once a tile of queries
// from L2. Not yet measured on hardware. Registers a thread, budget: 255 at 128 threads (two blocks an SM up
// to dim 64).
//
// P's columns are the accumulator's: lane t of a quad holds keys 2t and 2t+1 where tf32's A operand wants t
// and t+4. The order of keys in a sum is free, so V's rows are read in that order instead.
#pragma once

#include <type_traits>

#include "core/operations.h"
#include "core/softmax.h"
#include "core/terms.h"
#include "cuda/device.cuh"
#include "cuda/tile_plan.cuh"

namespace attention_bias::cuda {

struct AttentionArguments {
  const float* query;    // [B·H, Q, D]
  HeadRows key;          // [B·H, K, D]
  HeadRows value;        // [B·H, K, Dv]
  float* out;            // [B·H, Q, Dv]; in parts: [splits][B·H, Q, Dv], not normalised
  float* lse;            // [B·H, Q]
  SoftmaxState* states;  // [splits][B·H, Q] where keys are split, base in the unit of scores; else null
  const Term* terms;
  int32_t term_count;
  int64_t first_row;  // of B·H, that the launch begins with
  int64_t rows;       // B·H
  int64_t heads;      // H
  int32_t queries, keys;
  int32_t head_dim, value_dim;
  int32_t keys_per_split;  // a multiple of kPlanKeys
  float scale;             // of query·key, in the unit of scores
  bool natural;            // the unit of scores, biases and bases: 1, or log2
};

constexpr int kAttentionRows = 64;
constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarpLanes;
constexpr int kPlanKeys = 512;  // keys of the coarser of two plans

constexpr float kLog2e = 1.44269504f;

// What fits the 99 KB of shared memory that compute capability 8.6 has for a block.
template <int kDim, Precision kPrecision>
struct AttentionTile {
  static constexpr int kKeys = kDim <= 64 ? 64 : kDim <= 128 ? 32 : 16;
  static constexpr int kStages = kDim <= 128 ? 2 : 1;
  // Rows in shared memory are padded so that the fragments of a warp lie in different banks.
  static constexpr int kKeyStride = kDim + (kPrecision == Precision::kBf16 ? 8 : 4);
  static constexpr int kValueStride = kDim + 4;
  static constexpr int kBiasStride = kKeys + 8;
  static constexpr int kStageFloats = kKeys * (kKeyStride + kValueStride);
  static constexpr int kBiasFloats = kAttentionRows * kBiasStride;
  static constexpr size_t kSharedBytes = sizeof(float) * (kStages * kStageFloats + kBiasFloats) +
                                         sizeof(uint32_t) * plan_shared_words(kAttentionWarps);
};

AB_DEVICE float negative_infinity() { return -__builtin_inff(); }

// A bias in the unit of scores: finite stays finite.
AB_DEVICE float to_unit(float bias, bool natural) {
  if (natural || bias == negative_infinity()) return bias;
  const float scaled = bias * kLog2e;
  return scaled < -kGreatestFloat ? -kGreatestFloat : scaled > kGreatestFloat ? kGreatestFloat : scaled;
}

// e^x, of an x in the unit of scores.
AB_DEVICE float exponential(float x, bool natural) { return fast_exp2(natural ? x * kLog2e : x); }

AB_DEVICE float log_sum_exp_of_unit(const SoftmaxState& state, bool natural) {
  return natural ? log_sum_exp(state) : log_sum_exp_of_log2(state);
}

// x = hi + lo, both tf32, to 2^-22.
struct SplitTf32 {
  uint32_t hi, lo;
};
AB_DEVICE SplitTf32 split_tf32(float x) {
  const uint32_t hi = to_tf32(x);
  float high;
  __builtin_memcpy(&high, &hi, 4);
  // An infinite or NaN x has no rest.
  const float rest = x - high;
  return {hi, to_tf32(rest == rest ? rest : 0.0f)};
}

// An operand's registers for one step of the product: A of 16 rows, or B of 8 columns.
template <Precision kPrecision, int kRegisters>
struct Fragment {
  uint32_t hi[kRegisters];
  uint32_t lo[kPrecision == Precision::kF32 ? kRegisters : 1];
};

// Depth of one mma.
template <Precision kPrecision>
constexpr int kStep = kPrecision == Precision::kBf16 ? 16 : 8;

// Where register i of an operand reads along the product's depth, and for bf16 the next.
template <Precision kPrecision>
AB_DEVICE int depth_of(int i, int quad) {
  return kPrecision == Precision::kBf16 ? 2 * quad + 8 * i : quad + 4 * i;
}

template <Precision kPrecision, int kRegisters>
AB_DEVICE void set(Fragment<kPrecision, kRegisters>* fragment, int i, float first, float second) {
  if constexpr (kPrecision == Precision::kBf16) {
    fragment->hi[i] = pack_bf16(first, second);
  } else if constexpr (kPrecision == Precision::kTf32) {
    fragment->hi[i] = to_tf32(first);
  } else {
    const SplitTf32 split = split_tf32(first);
    fragment->hi[i] = split.hi;
    fragment->lo[i] = split.lo;
  }
}

// sum += a·b
template <Precision kPrecision>
AB_DEVICE void multiply(float (&sum)[4], const Fragment<kPrecision, 4>& a, const Fragment<kPrecision, 2>& b) {
  if constexpr (kPrecision == Precision::kBf16) {
    mma_bf16(sum, a.hi, b.hi, sum);
  } else {
    if constexpr (kPrecision == Precision::kF32) {
      mma_tf32(sum, a.lo, b.hi, sum);
      mma_tf32(sum, a.hi, b.lo, sum);
    }
    mma_tf32(sum, a.hi, b.hi, sum);
  }
}

// A tile of keys that is not hidden.
struct KeyTile {
  int32_t k0, k1;  // none where k0 == k1
  uint64_t mixed;
  float row_constant[2];  // of this thread's two rows: −∞ hides the row
};

// Walks the tiles of keys [rows.k0, rows.k1) that are not hidden. All threads of the block walk together.
template <int kKeys>
class KeyTiles {
 public:
  AB_DEVICE KeyTiles(const AttentionArguments& a, const Tile& rows, int32_t row0, uint32_t* shared)
      : a_(a), shared_(shared), tile_(rows), row0_(row0), next_(rows.k0), block_end_(rows.k0), end_(rows.k1) {
    all_ = all_terms(a.term_count);
  }

  AB_DEVICE KeyTile next() {
    while (next_ != end_) {
      // The coarse plan of a block of keys first; what it leaves open is planned again for each tile.
      const bool coarse = next_ == block_end_;
      if (!coarse && block_mixed_ == 0) return take({false, 0, 0});
      tile_.k0 = next_;
      tile_.k1 = coarse ? min_i32(next_ + kPlanKeys, end_) : tile_end();
      slot_ ^= 1;
      const TilePlan plan = plan_together<kAttentionRows, kAttentionWarps>(
          a_.terms, coarse ? all_ : block_mixed_, tile_, shared_ + slot_ * kPlanWords * kAttentionWarps);
      if (!coarse && !plan.hidden) return take(plan);
      if (coarse) {
        block_end_ = tile_.k1;
        block_mixed_ = plan.mixed;
        constant_[0] = constant_[1] = 0.0f;
        add_constants(plan.row_constant, constant_);
      }
      if (plan.hidden) next_ = tile_.k1;
    }
    return {end_, end_, 0, {0.0f, 0.0f}};
  }

 private:
  AB_DEVICE int32_t tile_end() const { return min_i32(next_ + kKeys, block_end_); }

  AB_DEVICE KeyTile take(const TilePlan& plan) {
    KeyTile found = {next_, tile_end(), plan.mixed, {constant_[0], constant_[1]}};
    if (plan.row_constant != 0) add_constants(plan.row_constant, found.row_constant);
    next_ = found.k1;
    return found;
  }

  AB_DEVICE void add_constants(uint64_t which, float* constant) {
    for (; which != 0; which &= which - 1) {
      visit(a_.terms[lowest_bit(which)], [&](const auto& term) {
        const auto column = term.column(tile_.b, tile_.h, tile_.k0);
        for (int i = 0; i < 2; ++i) {
          const int32_t q = row0_ + 8 * i;
          if (q < tile_.q1) constant[i] = add_bias(constant[i], term.template value<float>(column, q));
        }
      });
    }
  }

  const AttentionArguments& a_;
  uint32_t* shared_;
  int slot_ = 0;
  Tile tile_;
  int32_t row0_, next_, block_end_, end_;
  uint64_t all_, block_mixed_ = 0;
  float constant_[2] = {0.0f, 0.0f};
};

// Evaluates the mixed terms of a tile into bias[row][kStride] in shared memory: each thread a key's column
// and a share of the rows, or for additive local terms a row and the keys near it. Ends with a barrier.
template <int kKeys, int kStride>
AB_DEVICE_CALL void evaluate_bias(const Term* terms, uint64_t mixed, const Tile tile, float* bias) {
  constexpr int kShares = kAttentionThreads / kKeys;
  const int key = thread_index() % kKeys, share = thread_index() / kKeys;
  const int32_t k = min_i32(tile.k0 + key, tile.k1 - 1);  // beyond the end: the last again, never read
  const int rows = tile.q1 - tile.q0;
  for (int row = share; row < kAttentionRows; row += kShares) bias[row * kStride + key] = 0.0f;
  uint64_t local = 0;
  for (uint64_t left = mixed; left != 0; left &= left - 1) {
    const bool evaluated = visit(terms[lowest_bit(left)], [&](const auto& term) {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        return false;
      } else {
        const auto column = term.column(tile.b, tile.h, k);
        AB_NO_UNROLL
        for (int row = share; row < rows; row += kShares) {
          float& sum = bias[row * kStride + key];
          sum = add_bias(sum, term.template value<float>(column, tile.q0 + row));
        }
        return true;
      }
    });
    if (!evaluated) local |= left & ~(left - 1);
  }
  barrier();
  if (local == 0) return;
  for (uint64_t left = local; left != 0; left &= left - 1) {
    visit(terms[lowest_bit(left)], [&](const auto& term) {
      using T = std::decay_t<decltype(term)>;
      if constexpr (T::kLocal && !T::kHides) {
        if (thread_index() >= rows) return;
        const int32_t q = tile.q0 + thread_index();
        term.near(tile, q, [&](int32_t begin, int32_t end) {
          for (int32_t at = begin; at < end; ++at) {
            float& sum = bias[thread_index() * kStride + at - tile.k0];
            sum = add_bias(sum, term.template value<float>(term.column(tile.b, tile.h, at), q));
          }
        });
      }
    });
  }
  barrier();
}

// Starts the copies of `kCount` rows of `columns` floats from row `first` on, padded with zeros to kDim
// columns and beyond row `end`.
template <int kDim, int kCount, int kStride>
AB_DEVICE void copy_rows(float* shared, const float* global, int32_t first, int32_t end, int32_t columns) {
  const bool wide = columns % 4 == 0;  // then every row starts at a multiple of 16 bytes
  const int width = wide ? 4 : 1;
  for (int i = thread_index(); i < kCount * kDim / width; i += kAttentionThreads) {
    const int row = i / (kDim / width), column = i % (kDim / width) * width;
    const bool valid = first + row < end && column < columns;
    const float* from = valid ? global + (static_cast<int64_t>(first) + row) * columns + column : global;
    if (wide) {
      copy_async_16(shared + row * kStride + column, from, valid);
    } else {
      copy_async_4(shared + row * kStride + column, from, valid);
    }
  }
}

template <int kDim, Precision kPrecision>
class AttentionBlock {
  using T = AttentionTile<kDim, kPrecision>;
  static constexpr int kColumns = T::kKeys / 8;  // accumulators of scores: 8 keys each
  static constexpr int kSteps = kDim / kStep<kPrecision>;
  static constexpr int kOutputs = kDim / 8;
  static constexpr bool kNatural = kPrecision == Precision::kF32;
  static constexpr bool kHoldsQuery = kPrecision != Precision::kF32 && kDim <= 64;

 public:
  AB_DEVICE explicit AttentionBlock(const AttentionArguments& a)
      : a_(a), group_(lane_index() / 4), quad_(lane_index() % 4) {
    const int64_t row_tiles = (static_cast<int64_t>(a.queries) + kAttentionRows - 1) / kAttentionRows;
    row_ = a.first_row + block_x() / row_tiles;
    q0_ = static_cast<int32_t>(block_x() % row_tiles) * kAttentionRows;
    k0_ = block_y() * a.keys_per_split;
    k1_ = min_i32(k0_ + a.keys_per_split, a.keys);
    query_ = a.query + row_ * a.queries * a.head_dim;
    key_ = a.key.f32() + row_ * a.keys * a.head_dim;
    value_ = a.value.f32() + row_ * a.keys * a.value_dim;
    if constexpr (kHoldsQuery) {
      for (int step = 0; step < kSteps; ++step) load_query(step, &held_[step]);
    }
  }

  AB_DEVICE void run() {
    float* stages = reinterpret_cast<float*>(shared_memory());
    bias_ = stages + T::kStages * T::kStageFloats;
    uint32_t* plan_words = reinterpret_cast<uint32_t*>(bias_ + T::kBiasFloats);
    rows_ = {row_ / a_.heads, row_ % a_.heads, q0_, min_i32(q0_ + kAttentionRows, a_.queries), k0_, k1_};
    KeyTiles<T::kKeys> tiles(a_, rows_, row_of(0), plan_words);
    KeyTile tile = {k0_, k0_, 0, {0.0f, 0.0f}};  // none yet
    for (int stage = 0;; stage = (stage + 1) % T::kStages) {
      const KeyTile following = tiles.next();
      float* next_stage = stages + (stage + 1) % T::kStages * T::kStageFloats;
      if constexpr (T::kStages == 2) copy(following, next_stage);
      if (tile.k0 != tile.k1) {
        copy_async_wait<T::kStages - 1>();
        barrier();
        const float* at = stages + stage * T::kStageFloats;
        attend(tile, at, at + T::kKeys * T::kKeyStride);
        barrier();
      }
      if constexpr (T::kStages == 1) copy(following, next_stage);
      if (following.k0 == following.k1) break;
      tile = following;
    }
    copy_async_wait<0>();
    finish();
  }

 private:
  AB_DEVICE int32_t row_of(int i) const { return q0_ + warp_index() * 16 + group_ + 8 * i; }

  // Starts a tile's copies, and ends their group: also an empty one, so that groups count tiles.
  AB_DEVICE void copy(const KeyTile& tile, float* stage) const {
    if (tile.k0 != tile.k1) {
      copy_rows<kDim, T::kKeys, T::kKeyStride>(stage, key_, tile.k0, tile.k1, a_.head_dim);
      copy_rows<kDim, T::kKeys, T::kValueStride>(stage + T::kKeys * T::kKeyStride, value_, tile.k0, tile.k1,
                                                 a_.value_dim);
    }
    copy_async_commit();
  }

  AB_DEVICE float query_at(int32_t q, int d) const {
    const bool valid = q < a_.queries && d < a_.head_dim;
    return valid ? query_[static_cast<int64_t>(q) * a_.head_dim + d] * a_.scale : 0.0f;
  }

  AB_DEVICE void load_query(int step, Fragment<kPrecision, 4>* fragment) const {
    AB_UNROLL
    for (int i = 0; i < 4; ++i) {  // rows g, g + 8 at the first half of the depth, then at the second
      const int d = step * kStep<kPrecision> + depth_of<kPrecision>(i / 2, quad_);
      const int32_t q = row_of(i % 2);
      set(fragment, i, query_at(q, d), kPrecision == Precision::kBf16 ? query_at(q, d + 1) : 0.0f);
    }
  }

  // scores[n] = Q·Kᵀ of keys 8n to 8n + 7
  AB_DEVICE void score(const float* keys, float (&scores)[kColumns][4]) const {
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
    if constexpr (kPrecision == Precision::kF32) {
      AB_NO_UNROLL
      for (int d = 0; d < kDim; d += 4) score_plain(d, keys, scores);
    } else if constexpr (kHoldsQuery) {
      AB_UNROLL
      for (int step = 0; step < kSteps; ++step) score_step(held_[step], step, keys, scores);
    } else {
      AB_NO_UNROLL  // a longer program would only cost registers
          for (int step = 0; step < kSteps; ++step) {
        Fragment<kPrecision, 4> query;
        load_query(step, &query);
        score_step(query, step, keys, scores);
      }
    }
  }

  // Four dims by plain multiply-adds, laid out as the accumulators of an mma.
  AB_DEVICE void score_plain(int d, const float* keys, float (&scores)[kColumns][4]) const {
    float query[2][4];
    AB_UNROLL
    for (int i = 0; i < 4; ++i) {
      query[0][i] = query_at(row_of(0), d + i);
      query[1][i] = query_at(row_of(1), d + i);
    }
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      AB_UNROLL
      for (int j = 0; j < 2; ++j) {
        const Float4 key = load_16(keys + (8 * n + 2 * quad_ + j) * T::kKeyStride + d);
        AB_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& sum = scores[n][2 * i + j];
          sum += query[i][0] * key.x;
          sum += query[i][1] * key.y;
          sum += query[i][2] * key.z;
          sum += query[i][3] * key.w;
        }
      }
    }
  }

  AB_DEVICE void score_step(const Fragment<kPrecision, 4>& query, int step, const float* keys,
                            float (&scores)[kColumns][4]) const {
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      Fragment<kPrecision, 2> key;
      AB_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float* at = keys + (8 * n + group_) * T::kKeyStride + step * kStep<kPrecision> +
                          depth_of<kPrecision>(i, quad_);
        set(&key, i, at[0], kPrecision == Precision::kBf16 ? at[1] : 0.0f);
      }
      multiply<kPrecision>(scores[n], query, key);
    }
  }

  // Adds biases to the scores; what is hidden, or beyond the last key, becomes −∞.
  AB_DEVICE void add_biases(const KeyTile& tile, float (&scores)[kColumns][4]) {
    if (tile.mixed != 0) {
      const Tile part = {rows_.b, rows_.h, rows_.q0, rows_.q1, tile.k0, tile.k1};
      evaluate_bias<T::kKeys, T::kBiasStride>(a_.terms, tile.mixed, part, bias_);
    }
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      AB_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int key = 8 * n + 2 * quad_ + i % 2;
        float bias = tile.row_constant[i / 2];
        if (tile.mixed != 0) bias = add_bias(bias, bias_[(row_of(i / 2) - q0_) * T::kBiasStride + key]);
        const bool hide = bias == negative_infinity() || tile.k0 + key >= tile.k1;
        seen_[i / 2] |= !hide;
        scores[n][i] = hide ? negative_infinity() : scores[n][i] + to_unit(bias, kNatural);
      }
    }
  }

  // One tile of keys.
  AB_DEVICE void attend(const KeyTile& tile, const float* keys, const float* values) {
    float scores[kColumns][4];
    score(keys, scores);
    float constant[2] = {to_unit(tile.row_constant[0], kNatural), to_unit(tile.row_constant[1], kNatural)};
    const bool whole = tile.k1 - tile.k0 == T::kKeys;
    const bool hidden_row = constant[0] == negative_infinity() || constant[1] == negative_infinity();
    if (tile.mixed != 0 || !whole || hidden_row) {  // mixed and whole are the same for all threads
      add_biases(tile, scores);
      constant[0] = constant[1] = 0.0f;
    } else {
      seen_[0] = seen_[1] = true;
    }

    float shift[2];
    AB_UNROLL
    for (int i = 0; i < 2; ++i) {
      float greatest = negative_infinity();
      AB_UNROLL
      for (int n = 0; n < kColumns; ++n) {  // fmax passes over NaN
        greatest = __builtin_fmaxf(greatest, __builtin_fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      }
      greatest = __builtin_fmaxf(greatest, shuffle_xor(greatest, 1));
      greatest = __builtin_fmaxf(greatest, shuffle_xor(greatest, 2));
      const float moved = __builtin_fmaxf(greatest_[i], greatest + constant[i]);
      const float base = moved == negative_infinity() ? 0.0f : moved;
      const float factor = exponential(greatest_[i] - base, kNatural);
      greatest_[i] = moved;
      shift[i] = constant[i] - base;
      sum_[i] *= factor;
      AB_UNROLL
      for (int d = 0; d < kOutputs; ++d) {
        output_[d][2 * i] *= factor;
        output_[d][2 * i + 1] *= factor;
      }
    }
    float sums[2] = {0.0f, 0.0f};
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      AB_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = exponential(scores[n][i] + shift[i / 2], kNatural);
        sums[i / 2] += scores[n][i];
      }
    }
    sum_[0] += sums[0];
    sum_[1] += sums[1];
    add_values(scores, values);
  }

  // output += P·V
  AB_DEVICE void add_values(const float (&p)[kColumns][4], const float* values) {
    constexpr int kDepth = T::kKeys / kStep<kPrecision>;
    Fragment<kPrecision, 4> probability[kDepth];
    AB_UNROLL
    for (int step = 0; step < kDepth; ++step) {
      if constexpr (kPrecision == Precision::kBf16) {
        set(&probability[step], 0, p[2 * step][0], p[2 * step][1]);
        set(&probability[step], 1, p[2 * step][2], p[2 * step][3]);
        set(&probability[step], 2, p[2 * step + 1][0], p[2 * step + 1][1]);
        set(&probability[step], 3, p[2 * step + 1][2], p[2 * step + 1][3]);
      } else {
        set(&probability[step], 0, p[step][0], 0.0f);
        set(&probability[step], 1, p[step][2], 0.0f);
        set(&probability[step], 2, p[step][1], 0.0f);
        set(&probability[step], 3, p[step][3], 0.0f);
      }
    }
    AB_UNROLL
    for (int d = 0; d < kOutputs; ++d) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      AB_UNROLL
      for (int step = 0; step < kDepth; ++step) {
        Fragment<kPrecision, 2> value;
        AB_UNROLL
        for (int i = 0; i < 2; ++i) {
          // The key that column depth_of(i) of `probability` is of.
          const int key =
              kPrecision == Precision::kBf16 ? 16 * step + 2 * quad_ + 8 * i : 8 * step + 2 * quad_ + i;
          const float* at = values + key * T::kValueStride + 8 * d + group_;
          set(&value, i, at[0], kPrecision == Precision::kBf16 ? at[T::kValueStride] : 0.0f);
        }
        multiply<kPrecision>(sum, probability[step], value);
      }
      AB_UNROLL
      for (int i = 0; i < 4; ++i) output_[d][i] += sum[i];
    }
  }

  AB_DEVICE void finish() {
    AB_UNROLL
    for (int i = 0; i < 2; ++i) {
      float sum = sum_[i];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      // Keys are shared out within a quad, so what its lanes saw is joined.
      const uint32_t lanes = ballot(seen_[i]) >> (lane_index() & ~3);
      const SoftmaxState state = {greatest_[i] == negative_infinity() ? 0.0f : greatest_[i], sum,
                                  (lanes & 15u) != 0};
      const int32_t q = row_of(i);
      if (q >= a_.queries) continue;
      const bool parts = a_.states != nullptr;
      const int64_t row = (parts ? block_y() * a_.rows : 0) * a_.queries + row_ * a_.queries + q;
      const float scale = parts ? 1.0f : output_scale(state);
      float* out = a_.out + row * a_.value_dim;
      AB_UNROLL
      for (int d = 0; d < kOutputs; ++d) {
        const int column = 8 * d + 2 * quad_;
        if (column < a_.value_dim) out[column] = output_[d][2 * i] * scale;
        if (column + 1 < a_.value_dim) out[column + 1] = output_[d][2 * i + 1] * scale;
      }
      if (quad_ != 0) continue;
      if (parts) {
        a_.states[row] = state;
      } else {
        a_.lse[row] = log_sum_exp_of_unit(state, kNatural);
      }
    }
  }

  const AttentionArguments& a_;
  int group_, quad_;
  float* bias_ = nullptr;  // [kAttentionRows][kBiasStride] in shared memory
  Tile rows_ = {};
  int64_t row_;  // b·H + h
  int32_t q0_, k0_, k1_;
  const float* query_;
  const float* key_;
  const float* value_;
  Fragment<kPrecision, 4> held_[kHoldsQuery ? kSteps : 1];
  float output_[kOutputs][4] = {};
  float greatest_[2] = {negative_infinity(), negative_infinity()};
  float sum_[2] = {0.0f, 0.0f};  // of this lane's keys
  bool seen_[2] = {false, false};
};

template <int kDim, Precision kPrecision>
AB_KERNEL void AB_LAUNCH_BOUNDS(kAttentionThreads, kDim <= 64 ? 2 : 1)
    attention_kernel(const AttentionArguments arguments) {
  AttentionBlock<kDim, kPrecision>(arguments).run();
}

}  // namespace attention_bias::cuda
