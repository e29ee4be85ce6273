// Biased attention forward for one tile of queries and one run of keys, on tensor cores.
//
// To head dim 64 four warps of 32 queries, two mma tiles that share each fragment of K and V, so that a block
// of 128 queries reads K and V once; 16 a warp where all queries fit 64 rows. Head dims 96 and 128 leave
// registers for 16 queries a warp: eight warps, or four in f32 and above 128 (AttentionTile). Per tile of
// kKeys keys: K and V come to shared memory by cp.async while the tile before is computed; S = Q·Kᵀ and P·V
// by mma.sync, of fragments that ldmatrix brings (but V in float32), with the query's scale and log2 e folded
// into Q. Tiles that are hidden are skipped unread. A tile whose terms are constant along keys adds one
// number a row, which a thread a row evaluates, inside the exponent's own addition: no instruction a score.
// Order in a score: scale, product, bias, masks (docs/terms.md). A mixed tile's terms are evaluated into
// shared memory, a key a thread, or the few keys near a query.
//
// Precisions: bf16 and tf32 are one mma a product; bf16 reads K and V as bfloat16 (convert_kernel.cuh).
// f32 computes scores by plain multiply-adds, since an error of a score is one of its exponent and a split
// product's grows with large scores (5e-5 instead of 2e-6 at scores of 100); its P·V is three mma (hi·hi +
// hi·lo + lo·hi of a tf32 split), summed from zero in each tile and then added to the running output in
// float32, since tensor cores cut bits off their sums. In bf16 and tf32 such a cut is below the tolerance for
// the 65,536 keys that a run has at most.
//
// A row's base is not its maximum but at most kBaseSlack below: a warp votes whether any of its rows has
// outgrown its own, and exchanges maxima and rescales only then. Whether a row moves depends on that row
// alone.
//
// CMT's shape (1×8×900×56,400×32) is 52 GFLOP and 406 M exp2, 105 µs of an H100's exponent units. Its 8 tiles
// of queries a head read K and V (58 MB in bf16, 115 MB in float32) 8 times from L2: 84 or 168 µs at 5.5
// TB/s. Instructions a score of a plain tile, counted in PTX without moves (8 take as long to issue as the
// exponent itself): bf16 8, tf32 13, f32 52, of which 32 are multiply-adds; that is 116, 180 and 740 µs at
// 1.755 GHz, and copies and plans come on top. Not yet measured on hardware.
//
// Registers a thread, budget: 168 for bf16 at head dim 32, three blocks a multiprocessor; else 255, two
// blocks to head dim 64 and one above (scripts/check-cuda-resources.sh). Shared memory: at most 99 KB a
// block.
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
  const float* query;          // [B·H, Q, D]
  HeadRows key;                // [B·H, K, D]; float32 for f32 and tf32
  HeadRows value;              // [B·H, K, Dv]
  const uint16_t* key_bf16;    // for bf16: `key`, its rows padded to a multiple of 8 with zeros
  const uint16_t* value_bf16;  // likewise
  float* out;                  // [B·H, Q, Dv]; in parts: [splits][B·H, Q, Dv], not normalised
  float* lse;                  // [B·H, Q]
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

constexpr int kPlanKeys = 512;  // keys of the coarser of two plans

constexpr double kExactLog2e = 1.4426950408889634;
constexpr float kLog2e = static_cast<float>(kExactLog2e);

// A row's base follows its greatest score only where that has outgrown it by more than this: e^8 or 2^8,
// which a sum of float32 holds as well as 1, so that outputs are rescaled in hardly any tile but the first.
constexpr float kBaseSlack = 8.0f;

// The tile of a block: kRowTiles mma tiles of 16 queries a warp, and kKeys keys.
template <int kHeadDim, Precision kOf, int kRowTilesOfWarp>
struct AttentionTile {
  static constexpr int kDim = kHeadDim;
  static constexpr Precision kPrecision = kOf;
  static constexpr int kRowTiles = kRowTilesOfWarp;
  static constexpr bool kBf16 = kPrecision == Precision::kBf16, kF32 = kPrecision == Precision::kF32;
  using Element = std::conditional_t<kBf16, uint16_t, float>;  // of keys and values

  static constexpr int kWarps = !kF32 && (kDim == 96 || kDim == 128) ? 8 : 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kRows = kWarps * 16 * kRowTiles;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Element));
  static constexpr int kKeys = kRowBytes <= 128 ? 64 : kRowBytes <= (kF32 ? 384 : 512) ? 32 : 16;
  static constexpr int kStages = 2;
  // Keys whose scores a warp holds at once: for f32 all, so that what is read from shared memory serves many
  // products, else as many as leave registers for the query.
  static constexpr int kPart = kF32 || kKeys == 16 ? kKeys : !kBf16 && kDim > 32 ? 16 : 32;
  // Blocks that a multiprocessor shall hold, which bounds the registers of a thread.
  static constexpr int kBlocks = kDim > 64 ? 1 : kDim == 32 && kBf16 ? 3 : 2;

  // The query as fragments in registers, in shared memory for f32, or where neither has the room read anew.
  static constexpr bool kHoldsQuery = !kF32 && kDim <= 128, kSharesQuery = kF32 && kDim <= 128;

  // Rows in shared memory are padded by 16 bytes, so that the fragments of a warp lie in different banks.
  static constexpr int kStride = kDim + 16 / static_cast<int>(sizeof(Element));
  static constexpr int kQueryStride = kDim + 4;
  static constexpr int kBiasStride = kKeys + 8;
  static constexpr size_t kStageBytes = sizeof(Element) * 2 * kKeys * kStride;
  static constexpr size_t kBiasFloats = kRows * kBiasStride;
  // What is known of a tile's biases: a constant of each row, and which terms are mixed, as two words.
  static constexpr int kSlotFloats = kRows + 2;
  static constexpr size_t kQueryFloats = kSharesQuery ? kRows * kQueryStride : 0;
  static constexpr size_t kSharedBytes = kStages * kStageBytes +
                                         sizeof(float) * (kBiasFloats + kQueryFloats + 2 * kSlotFloats) +
                                         sizeof(uint32_t) * plan_shared_words(kWarps);
  static_assert(kSharedBytes <= 99 * 1024, "what compute capability 8.6 has for a block");
};

// Rows in bfloat16 are padded to a multiple of 16 bytes.
AB_HD int32_t padded_dim(int32_t dim) { return (dim + 7) / 8 * 8; }

AB_DEVICE float negative_infinity() { return -__builtin_inff(); }

AB_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
AB_DEVICE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

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

// An operand's registers for one step of the product: A of 16 rows, or B of 8 columns.
template <Precision kPrecision, int kRegisters>
struct Fragment {
  uint32_t hi[kRegisters];
  uint32_t lo[kPrecision == Precision::kF32 ? kRegisters : 1];
};

// Depth of one mma: 32 bytes of a row.
template <Precision kPrecision>
constexpr int kStep = kPrecision == Precision::kBf16 ? 16 : 8;

// x = hi + lo, both tf32, to 2^-21; NaN where x is infinite (repair_kernel). The mma ignores what of `lo` is
// no tf32.
template <Precision kPrecision, int kRegisters>
AB_DEVICE void set(Fragment<kPrecision, kRegisters>* fragment, int i, float x) {
  if constexpr (kPrecision == Precision::kTf32) {
    fragment->hi[i] = to_tf32(x);
  } else {
    fragment->hi[i] = (bits_of(x) + 0x1000) & 0xffffe000;
    fragment->lo[i] = bits_of(x - float_of(fragment->hi[i]));
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
  bool mixed;
  int turn;  // which of two slots in shared memory tells of its biases
};

// `sum`, and the terms whose bits are in `which`.
AB_DEVICE float bias_of(const Term* terms, uint64_t which, int64_t b, int64_t h, int32_t q, int32_t k,
                        float sum = 0.0f) {
  for (; which != 0; which &= which - 1) {
    sum = add_bias(sum, visit(terms[lowest_bit(which)], [&](const auto& term) {
                     return term.template value<float>(term.column(b, h, k), q);
                   }));
  }
  return sum;
}

AB_DEVICE_CALL float add_row_constants(const Term* terms, uint64_t which, const Tile tile, int32_t q,
                                       float sum) {
  return bias_of(terms, which, tile.b, tile.h, q, tile.k0, sum);
}

// Walks the tiles of keys [rows.k0, rows.k1) that are not hidden. All threads of the block walk together, and
// there is a barrier between what they do with a tile and the call that yields the tile after the next.
template <class T>
class KeyTiles {
 public:
  // In shared memory: `slots` [2][T::kSlotFloats] gets the row constants of the tiles, −∞ for a hidden row,
  // in the unit of scores unless the tile has mixed terms, and those terms; `plans` is for planning.
  AB_DEVICE KeyTiles(const AttentionArguments& a, const Tile& rows, float* slots, uint32_t* plans)
      : a_(a), rows_(rows), slots_(slots), plans_(plans), next_(rows.k0), block_end_(rows.k0) {}

  AB_DEVICE KeyTile next() {
    while (next_ != rows_.k1) {
      // The coarse plan of a block of keys first; what it leaves open is planned again for each tile.
      const bool coarse = next_ == block_end_;
      if (!coarse && block_mixed_ == 0) return take({false, 0, 0});
      const Tile tile = tile_to(coarse ? min_i32(next_ + kPlanKeys, rows_.k1) : tile_end());
      slot_ ^= 1;
      const TilePlan plan =
          plan_together<T::kRows, T::kWarps>(a_.terms, coarse ? all_terms(a_.term_count) : block_mixed_, tile,
                                             plans_ + slot_ * kPlanWords * T::kWarps);
      if (!coarse && !plan.hidden) return take(plan);
      if (coarse) {
        block_end_ = tile.k1;
        block_mixed_ = plan.mixed;
        block_constant_ = add_constants(plan.row_constant, 0.0f);
      }
      if (plan.hidden) next_ = tile.k1;
    }
    return {next_, next_, false, 0};
  }

 private:
  AB_DEVICE int32_t tile_end() const { return min_i32(next_ + T::kKeys, block_end_); }
  AB_DEVICE Tile tile_to(int32_t end) const { return {rows_.b, rows_.h, rows_.q0, rows_.q1, next_, end}; }

  AB_DEVICE KeyTile take(const TilePlan& plan) {
    turn_ ^= 1;
    const float constant = add_constants(plan.row_constant, block_constant_);
    float* slot = slots_ + turn_ * T::kSlotFloats;
    if (thread_index() < T::kRows) {
      slot[thread_index()] = plan.mixed != 0 ? constant : to_unit(constant, T::kF32);
    }
    if (thread_index() == 0) __builtin_memcpy(slot + T::kRows, &plan.mixed, sizeof plan.mixed);
    const KeyTile found = {next_, tile_end(), plan.mixed != 0, turn_};
    next_ = found.k1;
    return found;
  }

  // A thread a row.
  AB_DEVICE float add_constants(uint64_t which, float sum) const {
    const int32_t q = rows_.q0 + thread_index() % T::kRows;
    if (which == 0 || q >= rows_.q1) return sum;
    return add_row_constants(a_.terms, which, tile_to(next_ + 1), q, sum);
  }

  const AttentionArguments& a_;
  const Tile& rows_;
  float* slots_;
  uint32_t* plans_;
  int slot_ = 0, turn_ = 0;
  int32_t next_, block_end_;
  uint64_t block_mixed_ = 0;
  float block_constant_ = 0.0f;
};

// Evaluates a tile's biases, of row constants and mixed terms, into bias[row][kBiasStride] in shared memory:
// each thread a key's column and a share of the rows, or for additive local terms a row and the keys near it.
// Ends with a barrier.
template <class T>
AB_DEVICE_CALL void evaluate_bias(const Term* terms, const Tile tile, const float* slot, float* bias) {
  uint64_t mixed;
  __builtin_memcpy(&mixed, slot + T::kRows, sizeof mixed);
  constexpr int kShares = T::kThreads / T::kKeys;
  const int key = thread_index() % T::kKeys, share = thread_index() / T::kKeys;
  const int32_t k = min_i32(tile.k0 + key, tile.k1 - 1);  // beyond the end: the last again, never read
  const int rows = tile.q1 - tile.q0;
  for (int row = share; row < T::kRows; row += kShares) bias[row * T::kBiasStride + key] = slot[row];
  uint64_t local = 0;
  for (uint64_t left = mixed; left != 0; left &= left - 1) {
    const bool evaluated = visit(terms[lowest_bit(left)], [&](const auto& term) {
      using OfTerm = std::decay_t<decltype(term)>;
      if constexpr (OfTerm::kLocal && !OfTerm::kHides) {
        return false;
      } else {
        const auto column = term.column(tile.b, tile.h, k);
        AB_NO_UNROLL
        for (int row = share; row < rows; row += kShares) {
          float& sum = bias[row * T::kBiasStride + key];
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
      using OfTerm = std::decay_t<decltype(term)>;
      if constexpr (OfTerm::kLocal && !OfTerm::kHides) {
        if (thread_index() >= rows) return;
        const int32_t q = tile.q0 + thread_index();
        term.near(tile, q, [&](int32_t begin, int32_t end) {
          for (int32_t at = begin; at < end; ++at) {
            float& sum = bias[thread_index() * T::kBiasStride + at - tile.k0];
            sum = add_bias(sum, term.template value<float>(term.column(tile.b, tile.h, at), q));
          }
        });
      }
    });
  }
  barrier();
}

// Starts the copies of kKeys rows of `columns` elements from row `first` on, padded with zeros to kDim
// columns and beyond row `end`; kWidth elements a copy.
template <class T, int kWidth>
AB_DEVICE void copy_rows(typename T::Element* shared, const typename T::Element* global, int32_t first,
                         int32_t end, int32_t columns) {
  constexpr int kRowCopies = T::kDim / kWidth;
  for (int i = thread_index(); i < T::kKeys * kRowCopies; i += T::kThreads) {
    const int row = i / kRowCopies, column = i % kRowCopies * kWidth;
    const bool valid = first + row < end && column < columns;
    const auto* from = valid ? global + (static_cast<int64_t>(first) + row) * columns + column : global;
    if constexpr (kWidth * sizeof(*from) == 16) {
      copy_async_16(shared + row * T::kStride + column, from, valid);
    } else {
      copy_async_4(shared + row * T::kStride + column, from, valid);
    }
  }
}

template <class T>
AB_DEVICE void copy_rows(typename T::Element* shared, const typename T::Element* global, int32_t first,
                         int32_t end, int32_t columns) {
  if constexpr (T::kBf16) {
    copy_rows<T, 8>(shared, global, first, end, columns);
  } else if (columns % 4 == 0) {  // then every row starts at a multiple of 16 bytes
    copy_rows<T, 4>(shared, global, first, end, columns);
  } else {
    copy_rows<T, 1>(shared, global, first, end, columns);
  }
}

template <class T>
class AttentionBlock {
  using Element = typename T::Element;
  static constexpr Precision kPrecision = T::kPrecision;
  static constexpr int kDim = T::kDim, kRowTiles = T::kRowTiles;
  static constexpr int kRows = 2 * kRowTiles;    // of a thread
  static constexpr int kColumns = T::kPart / 8;  // accumulators of scores: 8 keys each
  static constexpr int kSteps = kDim / kStep<kPrecision>;
  static constexpr int kOutputs = kDim / 8;
  static constexpr bool kNatural = T::kF32;

  using Scores = float[kRowTiles][kColumns][4];
  using Query = Fragment<kPrecision, 4>;

 public:
  AB_DEVICE explicit AttentionBlock(const AttentionArguments& a)
      : a_(a), group_(lane_index() / 4), quad_(lane_index() % 4) {
    const int64_t row_tiles = (static_cast<int64_t>(a.queries) + T::kRows - 1) / T::kRows;
    row_ = a.first_row + block_x() / row_tiles;
    const int32_t q0 = static_cast<int32_t>(block_x() % row_tiles) * T::kRows;
    const int32_t k0 = block_y() * a.keys_per_split;
    rows_ = {row_ / a.heads,
             row_ % a.heads,
             q0,
             min_i32(q0 + T::kRows, a.queries),
             k0,
             min_i32(k0 + a.keys_per_split, a.keys)};
    query_ = a.query + row_ * a.queries * a.head_dim;
    for (float& base : base_) base = -kGreatestFloat;
    if constexpr (T::kBf16) {
      key_columns_ = padded_dim(a.head_dim);
      value_columns_ = padded_dim(a.value_dim);
      key_ = a.key_bf16 + row_ * a.keys * key_columns_;
      value_ = a.value_bf16 + row_ * a.keys * value_columns_;
    } else {
      key_columns_ = a.head_dim;
      value_columns_ = a.value_dim;
      key_ = a.key.f32() + row_ * a.keys * key_columns_;
      value_ = a.value.f32() + row_ * a.keys * value_columns_;
    }
  }

  AB_DEVICE void run() {
    char* stages = shared_memory();
    bias_ = reinterpret_cast<float*>(stages + T::kStages * T::kStageBytes);
    shared_query_ = bias_ + T::kBiasFloats;
    constants_ = shared_query_ + T::kQueryFloats;
    KeyTiles<T> tiles(a_, rows_, constants_, reinterpret_cast<uint32_t*>(constants_ + 2 * T::kSlotFloats));
    if constexpr (T::kHoldsQuery) {
      AB_UNROLL
      for (int step = 0; step < kSteps; ++step) load_query(step, held_[step]);
    }
    if constexpr (T::kSharesQuery) share_query();
    const bool has_rows = row_of(0) - group_ < a_.queries;  // the same for a warp

    KeyTile tile = tiles.next();
    copy(tile, stages);
    for (int stage = 0; tile.k0 != tile.k1; stage ^= 1) {
      copy_async_wait<0>();
      barrier();  // the tile is there, and all are done with the one before
      const KeyTile following = tiles.next();
      copy(following, stages + (stage ^ 1) * T::kStageBytes);
      if (tile.mixed) {
        const Tile part = {rows_.b, rows_.h, rows_.q0, rows_.q1, tile.k0, tile.k1};
        evaluate_bias<T>(a_.terms, part, constants_ + tile.turn * T::kSlotFloats, bias_);
      }
      const Element* keys = reinterpret_cast<const Element*>(stages + stage * T::kStageBytes);
      if (has_rows) attend(tile, keys, keys + T::kKeys * T::kStride);
      tile = following;
    }
    finish();
  }

 private:
  // Rows i of this thread: g and g + 8 of each of its warp's mma tiles.
  AB_DEVICE int row_in_block(int i) const {
    return (warp_index() * kRowTiles + i / 2) * 16 + i % 2 * 8 + group_;
  }
  AB_DEVICE int32_t row_of(int i) const { return rows_.q0 + row_in_block(i); }

  AB_DEVICE void copy(const KeyTile& tile, char* stage) const {
    if (tile.k0 == tile.k1) return;
    Element* keys = reinterpret_cast<Element*>(stage);
    copy_rows<T>(keys, key_, tile.k0, tile.k1, key_columns_);
    copy_rows<T>(keys + T::kKeys * T::kStride, value_, tile.k0, tile.k1, value_columns_);
    copy_async_commit();
  }

  AB_DEVICE float query_at(int32_t q, int d) const {
    const bool valid = q < a_.queries && d < a_.head_dim;
    return valid ? query_[static_cast<int64_t>(q) * a_.head_dim + d] * a_.scale : 0.0f;
  }

  AB_DEVICE void load_query(int step, Query (&query)[kRowTiles]) const {
    AB_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      AB_UNROLL
      for (int i = 0; i < 4; ++i) {  // rows g, g + 8 at the first half of the depth, then at the second
        const int32_t q = row_of(2 * r + i % 2);
        if constexpr (T::kBf16) {
          const int d = step * 16 + 2 * quad_ + i / 2 * 8;
          query[r].hi[i] = pack_bf16(query_at(q, d), query_at(q, d + 1));
        } else {
          set(&query[r], i, query_at(q, step * 8 + quad_ + i / 2 * 4));
        }
      }
    }
  }

  AB_DEVICE void share_query() const {
    for (int i = thread_index(); i < T::kRows * kDim; i += T::kThreads) {
      const int row = i / kDim, d = i % kDim;
      shared_query_[row * T::kQueryStride + d] = query_at(rows_.q0 + row, d);
    }
  }

  // scores[r][n] = Q·Kᵀ of keys 8n to 8n + 7
  AB_DEVICE void score(const Element* keys, Scores& scores) const {
    AB_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      AB_UNROLL
      for (int n = 0; n < kColumns; ++n)
        scores[r][n][0] = scores[r][n][1] = scores[r][n][2] = scores[r][n][3] = 0.0f;
    }
    if constexpr (T::kF32) {
      AB_NO_UNROLL
      for (int d = 0; d < kDim; d += 4) score_plain(d, keys, scores);
    } else if constexpr (T::kHoldsQuery) {
      AB_UNROLL
      for (int step = 0; step < kSteps; step += 2)
        score_steps(held_[step], held_[step + 1], step, keys, scores);
    } else {
      AB_NO_UNROLL  // a longer program would only cost registers
          for (int step = 0; step < kSteps; step += 2) {
        Query query[2][kRowTiles];
        load_query(step, query[0]);
        load_query(step + 1, query[1]);
        score_steps(query[0], query[1], step, keys, scores);
      }
    }
  }

  // Four dims by plain multiply-adds, laid out as the accumulators of an mma.
  AB_DEVICE void score_plain(int d, const float* keys, Scores& scores) const {
    Float4 query[kRows];
    AB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      if constexpr (T::kSharesQuery) {
        query[i] = load_16(shared_query_ + row_in_block(i) * T::kQueryStride + d);
      } else {
        const int32_t q = row_of(i);
        query[i] = {query_at(q, d), query_at(q, d + 1), query_at(q, d + 2), query_at(q, d + 3)};
      }
    }
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      AB_UNROLL
      for (int j = 0; j < 2; ++j) {
        const Float4 key = load_16(keys + (8 * n + 2 * quad_ + j) * T::kStride + d);
        AB_UNROLL
        for (int i = 0; i < kRows; ++i) {
          float& sum = scores[i / 2][n][i % 2 * 2 + j];
          sum += query[i].x * key.x;
          sum += query[i].y * key.y;
          sum += query[i].z * key.z;
          sum += query[i].w * key.w;
        }
      }
    }
  }

  // Two steps on tensor cores: 64 bytes of 8 keys are one load of four matrices, each half a step of the
  // operand.
  AB_DEVICE void score_steps(const Query (&first)[kRowTiles], const Query (&second)[kRowTiles], int step,
                             const Element* keys, Scores& scores) const {
    const Element* own = keys + lane_index() % 8 * T::kStride + step * kStep<kPrecision> +
                         lane_index() / 8 * (kStep<kPrecision> / 2);
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      uint32_t words[4];
      load_matrices(words, own + 8 * n * T::kStride);
      if constexpr (!T::kBf16) {
        AB_UNROLL
        for (int i = 0; i < 4; ++i) words[i] = to_tf32(float_of(words[i]));
      }
      const Fragment<kPrecision, 2> key[2] = {{{words[0], words[1]}, {}}, {{words[2], words[3]}, {}}};
      AB_UNROLL
      for (int r = 0; r < kRowTiles; ++r) multiply<kPrecision>(scores[r][n], first[r], key[0]);
      AB_UNROLL
      for (int r = 0; r < kRowTiles; ++r) multiply<kPrecision>(scores[r][n], second[r], key[1]);
    }
  }

  // One tile of keys, of a warp that has rows.
  AB_DEVICE void attend(const KeyTile& tile, const Element* keys, const Element* values) {
    // Biases in shared memory: a row's constant, or where the tile is mixed a number for each pair.
    const float* constants = constants_ + tile.turn * T::kSlotFloats;
    bool plain = !tile.mixed && tile.k1 - tile.k0 == T::kKeys;
    AB_UNROLL
    for (int i = 0; i < kRows; ++i) plain &= constants[row_in_block(i)] != negative_infinity();
    if (plain) seen_ = (1u << kRows) - 1;
    AB_NO_UNROLL
    for (int first = 0; first < T::kKeys; first += T::kPart) {
      Scores scores;
      score(keys + first * T::kStride, scores);
      if (!plain) add_biases(tile, constants, first, scores);
      to_probabilities(plain, constants, scores);
      add_values(scores, values + first * T::kStride);
    }
  }

  // Adds biases to the scores of keys from tile.k0 + first on; what is hidden, or beyond the last, becomes
  // −∞.
  AB_DEVICE void add_biases(const KeyTile& tile, const float* constants, int first, Scores& scores) {
    AB_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      AB_UNROLL
      for (int i = 0; i < kRows; ++i) {
        AB_UNROLL
        for (int j = 0; j < 2; ++j) {
          const int key = first + 8 * n + 2 * quad_ + j, row = row_in_block(i);
          const float bias =
              tile.mixed ? to_unit(bias_[row * T::kBiasStride + key], kNatural) : constants[row];
          const bool hide = bias == negative_infinity() || tile.k0 + key >= tile.k1;
          seen_ |= static_cast<uint32_t>(!hide) << i;
          float& score = scores[i / 2][n][i % 2 * 2 + j];
          score = hide ? negative_infinity() : score + bias;
        }
      }
    }
  }

  // scores = e^(scores + constant of the row − base of the row), the constant only where the tile is plain
  AB_DEVICE void to_probabilities(bool plain, const float* constants, Scores& scores) {
    float greatest[kRows], shifts[kRows];
    bool outgrown = false;
    AB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      greatest[i] = negative_infinity();
      AB_UNROLL
      for (int n = 0; n < kColumns; ++n) {  // fmax passes over NaN
        const float* pair = &scores[i / 2][n][i % 2 * 2];
        greatest[i] = __builtin_fmaxf(greatest[i], __builtin_fmaxf(pair[0], pair[1]));
      }
      const float constant = constants[row_in_block(i)];
      shifts[i] = (plain ? constant : 0.0f) - base_[i];
      outgrown |= greatest[i] + shifts[i] > kBaseSlack;
    }
    if (any_in_warp(outgrown)) raise_bases(greatest, plain, constants, shifts);
    AB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      float sum = 0.0f;
      AB_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        AB_UNROLL
        for (int j = 0; j < 2; ++j) {
          float& score = scores[i / 2][n][i % 2 * 2 + j];
          score = exponential(score + shifts[i], kNatural);
          sum += score;
        }
      }
      sum_[i] += sum;
    }
  }

  // Takes the bases of rows that a quad has outgrown to the greatest score.
  AB_DEVICE void raise_bases(const float (&greatest)[kRows], bool plain, const float* constants,
                             float (&shifts)[kRows]) {
    AB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      float of_row = __builtin_fmaxf(greatest[i], shuffle_xor(greatest[i], 1));
      of_row = __builtin_fmaxf(of_row, shuffle_xor(of_row, 2));
      const bool outgrown = of_row + shifts[i] > kBaseSlack;
      const float constant = plain ? constants[row_in_block(i)] : 0.0f;
      const float base = outgrown ? of_row + constant : base_[i];
      const float factor = outgrown ? exponential(base_[i] - base, kNatural) : 1.0f;
      base_[i] = base;
      shifts[i] = constant - base;
      sum_[i] *= factor;
      AB_UNROLL
      for (int d = 0; d < kOutputs; ++d) {
        output_[i / 2][d][i % 2 * 2] *= factor;
        output_[i / 2][d][i % 2 * 2 + 1] *= factor;
      }
    }
  }

  // output += P·V. In f32 the sums of a tile begin at zero, since tensor cores cut bits off a sum.
  AB_DEVICE void add_values(const Scores& p, const Element* values) {
    constexpr int kGroup = T::kF32 && kOutputs > 4 ? 2 : kOutputs;  // columns of 8 whose sums have registers
    AB_UNROLL
    for (int group = 0; group < kOutputs; group += kGroup) {
      float sums[T::kF32 ? kRowTiles : 1][kGroup][4] = {};
      AB_UNROLL
      for (int step = 0; step < T::kPart / kStep<kPrecision>; ++step) {
        Fragment<kPrecision, 4> probability[kRowTiles];
        AB_UNROLL
        for (int r = 0; r < kRowTiles; ++r) set_probability(p, r, step, &probability[r]);
        AB_UNROLL
        for (int d = 0; d < kGroup; d += 2) {
          Fragment<kPrecision, 2> value[2];
          load_values(values, step, group + d, value);
          AB_UNROLL
          for (int r = 0; r < kRowTiles; ++r) {
            AB_UNROLL
            for (int j = 0; j < 2; ++j) {
              multiply<kPrecision>(T::kF32 ? sums[T::kF32 ? r : 0][d + j] : output_[r][group + d + j],
                                   probability[r], value[j]);
            }
          }
        }
      }
      if constexpr (T::kF32) {
        AB_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          AB_UNROLL
          for (int d = 0; d < kGroup; ++d) {
            AB_UNROLL
            for (int i = 0; i < 4; ++i) output_[r][group + d][i] += sums[r][d][i];
          }
        }
      }
    }
  }

  // The scores of a step are the accumulators of one or two mma; as operand A for bf16 they lie where they
  // are, for tf32 the accumulator's columns 2t and 2t + 1 stand for t and t + 4.
  AB_DEVICE void set_probability(const Scores& p, int r, int step, Fragment<kPrecision, 4>* fragment) const {
    AB_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (T::kBf16) {
        const float* pair = &p[r][2 * step + i / 2][i % 2 * 2];
        fragment->hi[i] = pack_bf16(pair[0], pair[1]);
      } else {
        set(fragment, i, p[r][step][i % 2 * 2 + i / 2]);
      }
    }
  }

  // The operands of columns 8d to 8d + 7 and the eight after them.
  AB_DEVICE void load_values(const Element* values, int step, int d,
                             Fragment<kPrecision, 2> (&value)[2]) const {
    if constexpr (T::kBf16) {
      const int key = 16 * step + lane_index() % 16, column = 8 * (d + lane_index() / 16);
      uint32_t words[4];
      load_matrices_transposed(words, values + key * T::kStride + column);
      value[0] = {{words[0], words[1]}, {}};
      value[1] = {{words[2], words[3]}, {}};
    } else {
      AB_UNROLL
      for (int j = 0; j < 2; ++j) {
        AB_UNROLL
        for (int i = 0; i < 2; ++i) {  // the keys that the columns of `probability` are of
          set(&value[j], i, values[(8 * step + 2 * quad_ + i) * T::kStride + 8 * (d + j) + group_]);
        }
      }
    }
  }

  AB_DEVICE void finish() {
    AB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      float sum = sum_[i];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      // Keys are shared out within a quad, so what its lanes saw is joined.
      const uint32_t lanes = ballot((seen_ >> i & 1) != 0) >> (lane_index() & ~3);
      const SoftmaxState state = {base_[i], sum, (lanes & 15u) != 0};
      const int32_t q = row_of(i);
      if (q >= a_.queries) continue;
      const bool parts = a_.states != nullptr;
      const int64_t row = (parts ? block_y() * a_.rows : 0) * a_.queries + row_ * a_.queries + q;
      const float scale = parts ? 1.0f : output_scale(state);
      float* out = a_.out + row * a_.value_dim;
      AB_UNROLL
      for (int d = 0; d < kOutputs; ++d) {
        const int column = 8 * d + 2 * quad_;
        const float* pair = &output_[i / 2][d][i % 2 * 2];
        if (column < a_.value_dim) out[column] = pair[0] * scale;
        if (column + 1 < a_.value_dim) out[column + 1] = pair[1] * scale;
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
  float* bias_ = nullptr;          // [T::kRows][kBiasStride] in shared memory
  float* constants_ = nullptr;     // [2][T::kSlotFloats] in shared memory
  float* shared_query_ = nullptr;  // [T::kRows][kQueryStride] in shared memory
  Tile rows_ = {};
  int64_t row_;  // b·H + h
  int32_t key_columns_, value_columns_;
  const float* query_;
  const Element* key_;
  const Element* value_;
  Query held_[T::kHoldsQuery ? kSteps : 1][kRowTiles];
  float output_[kRowTiles][kOutputs][4] = {};
  float base_[kRows];
  float sum_[kRows] = {};  // of this thread's keys
  uint32_t seen_ = 0;      // bit i: row i saw one of this thread's keys
};

template <int kDim, Precision kPrecision, int kRowTiles>
AB_KERNEL void AB_LAUNCH_BOUNDS((AttentionTile<kDim, kPrecision, kRowTiles>::kThreads),
                                (AttentionTile<kDim, kPrecision, kRowTiles>::kBlocks))
    attention_kernel(const AttentionArguments arguments) {
  AttentionBlock<AttentionTile<kDim, kPrecision, kRowTiles>>(arguments).run();
}

}  // namespace attention_bias::cuda
