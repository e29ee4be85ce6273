// Gradients of biased attention, as in FlashAttention-2 (Dao 2023): scores are computed again, nothing of
// size Q·K is kept. With p = exp(score − lse), mean = Σ_d out·dout of a query:
//
//   dscore = p·(dout·value − mean)         which is also the gradient by the pair's bias
//   dquery = scale·Σ_k dscore·key          dkey = scale·Σ_q dscore·query          dvalue = Σ_q p·dout
//
// Where float32 rounds lse by too much (is_far), p = exp(score − base)/sum instead, by the greatest and the
// sum of the very scores that these kernels compute.
//
//   mean_kernel      mean, a warp a row
//   row_sum_kernel   base and sum: a block a tile of queries, past which all keys stream if any lse is far
//   gradient_kernel  a block has a tile of keys as its own and streams all queries past it, for dkey and
//   dvalue;
//                    or a tile of queries and a run of keys, for dquery. Runs are summed up by sum_kernel.
//   pair_kernel      gradients by a dense bias of single pairs: a block a tile of pairs, over the batch rows
//   and
//                    heads that have it in common
//   sum_kernel       what blocks left, in a fixed order, in float64
//
// No two blocks write to one place, and within a block one thread at a time does, so that the same inputs
// give the same bits.
//
// Gradients by terms ride along. What belongs to one query (weights of modality and spatial terms, dense
// biases constant along keys, slopes) or to one key (dense biases constant along queries) is summed by own
// row, each thread over a part of every tile's other side in float32, tiles in float64, and left as
// [parts][B·H, rows]. A block's part of a relative position table is summed by table row, a thread a row of
// those that the tile can meet, from the tile in shared memory. Factors of lowRank terms are another launch,
// in which they take the place of the keys, or queries, that dscore is multiplied with.
//
// Hidden pairs are −0 in p and dscore, which no visible pair is: adding and multiplying it is harmless, and
// where a tile holds NaN or infinities such pairs are left out by it (docs/terms.md: what is hidden may hold
// anything).
//
// Tiles are square, 64 queries × 64 keys to head dim 64, so that a thread's 4 × 4 scores take half a load of
// 16 bytes a multiply-add of four; four tiles of inputs and one of weights are 54 KB at head dim 32, 87 KB at
// 64, what one multiprocessor of any device has at least for a block. Above that 32 × 32 (128) and 16 × 16
// (256). p, then dscore, pass from the threads that have their scores to those that have their sums through
// the tile of weights.
//
// Work at head dim 32: 4·32 multiply-adds a pair where keys are own, 3·32 where queries are; CMT
// (1×8×900×56,400×32) is 7·2·32·406 M = 182 GFLOP, 2.7 ms of an H100 at 67 TFLOP/s in float32, and 2 × 406 M
// exp2, 0.2 ms. Each of 881 tiles of keys a head reads all queries and their dout (230 KB) from L2: 1.6 GB;
// each of 15 tiles of queries all keys and values (14.4 MB a head): 1.7 GB; 0.6 ms at 5.5 TB/s. Memory:
// inputs once and gradients once, 460 MB at most. Not yet measured on hardware. Registers a thread, budget:
// 128, two blocks a multiprocessor.
#pragma once

#include <type_traits>

#include "cuda/attention_row.cuh"
#include "cuda/backward_arguments.cuh"

namespace attention_bias::cuda {

// What a gradient_kernel leaves. Own rows are keys or queries, the others come by.
struct GradientOutputs {
  int32_t run;           // of the other side, of a block; a multiple of the tile
  int32_t factor_term;   // the lowRank term whose factors take the place of the other side's rows; or −1
  int32_t first_column;  // of these rows
  int32_t columns;       // of these rows, in all
  float* rows;           // [runs][B·H, own rows, columns]; null: unwanted
  float* values;         // of own keys: [B·H, K, Dv]; null: unwanted
  uint64_t own_terms;    // those whose gradients are sums of an own row
  uint64_t table_terms;  // relative positions
  int32_t slots;         // of all own terms
  double* own_sums;      // [runs][parts][slots][B·H, own rows]
  int64_t bins;          // of all tables
  double* table_sums;    // [B·H, tiles][runs][bins]
  int32_t first[kMaxTerms];  // slot of an own term, bin of a table
};

// kTile queries and kTile keys.
template <int kHeadDim>
struct BackwardTile {
  static constexpr int kDim = kHeadDim;
  static constexpr int kTile = kDim <= 64 ? 64 : kDim <= 128 ? 32 : 16;
  static constexpr int kRows = kTile, kKeys = kTile;
  static constexpr int kWarps = 8, kThreads = kWarps * kWarpLanes;
  static constexpr int kSide = 16;                        // threads are 16 × 16 over a tile's pairs
  static constexpr int kMicro = kTile / kSide;            // a thread's pairs: kMicro², kSide apart
  static constexpr int kQuads = kDim / 4;                 // columns of 4 dims
  static constexpr int kOwn = kTile * kQuads / kThreads;  // own rows of a thread, of one such column
  static constexpr int kParts = kThreads / kTile;         // threads that share an own row's sum
  static constexpr int kPart = kTile / kParts;
  static constexpr int kStride = kDim + 4, kBiasStride = kTile + 4;
  static constexpr int kSlotFloats = kRows + 2;  // a constant of each row, and which terms are mixed
  static constexpr size_t kSharedBytes =
      sizeof(float) * (4 * kTile * kStride + kTile * kBiasStride + 3 * kTile + kSlotFloats) +
      sizeof(uint32_t) * kPlanWords * kWarps;
  static_assert(kSharedBytes <= 99 * 1024, "what compute capability 8.6 has for a block");
  static_assert(kTile * kStride % 4 == 0 && kTile * kBiasStride % 4 == 0, "16 bytes");
};

constexpr uint32_t kHiddenBits = 0x80000000u;
// The weight of a pair that is hidden, or of no pair; and one of a visible pair, which must not be taken for
// it.
AB_DEVICE float hidden_weight() { return -0.0f; }
AB_DEVICE float visible_weight(float x) { return bits_of(x) == kHiddenBits ? 0.0f : x; }

AB_DEVICE bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// The sum of all lanes, for all of them.
AB_DEVICE double add_lanes(double x) {
  AB_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
    uint32_t words[2];
    __builtin_memcpy(words, &x, sizeof x);
    words[0] = shuffle_xor(words[0], mask);
    words[1] = shuffle_xor(words[1], mask);
    double other;
    __builtin_memcpy(&other, words, sizeof x);
    x += other;
  }
  return x;
}

constexpr int kMeanThreads = 128;
constexpr int kMeanRows = kMeanThreads / kWarpLanes;

AB_KERNEL void AB_LAUNCH_BOUNDS(kMeanThreads, 4)
    mean_kernel(const float* out, const float* grad_out, int64_t rows, int32_t value_dim, float* mean) {
  const int64_t row = static_cast<int64_t>(block_x()) * kMeanRows + warp_index();
  if (row >= rows) return;
  double sum = 0;
  for (int d = lane_index(); d < value_dim; d += kWarpLanes) {
    const int64_t at = row * value_dim + d;
    sum += static_cast<double>(out[at]) * static_cast<double>(grad_out[at]);
  }
  sum = add_lanes(sum);
  if (lane_index() == 0) mean[row] = static_cast<float>(sum);
}

// `count` rows from row `first` on into shared memory, with zeros beyond them and beyond their last column;
// true where this thread met one that is not finite.
template <class T>
AB_DEVICE_CALL bool load_rows(const HeadRows rows, int64_t first, int32_t count, int32_t first_column,
                              int32_t columns, float* shared) {
  bool bad = false;
  for (int i = thread_index(); i < T::kTile * T::kQuads; i += T::kThreads) {
    const int r = i / T::kQuads, column = i % T::kQuads * 4;
    Float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (r < count) x = load_columns(rows, first + r, first_column + column, columns);
    bad |= !(is_finite(x.x) && is_finite(x.y) && is_finite(x.z) && is_finite(x.w));
    store_16(shared + r * T::kStride + column, x);
  }
  return bad;
}

// A tile in shared memory, and the scores of its pairs in registers.
template <class T>
class PairTile {
 public:
  static constexpr int kMicro = T::kMicro;
  using Pairs = float[kMicro][kMicro];  // [query][key], kSide apart

  AB_DEVICE PairTile(const BackwardArguments& a, int64_t row) : a_(a), row_(row) {
    float* next = reinterpret_cast<float*>(shared_memory());
    const auto take = [&](int floats) {
      float* const at = next;
      next += floats;
      return at;
    };
    query = take(T::kTile * T::kStride);
    grad_out = take(T::kTile * T::kStride);
    key = take(T::kTile * T::kStride);
    value = take(T::kTile * T::kStride);
    weights = take(T::kTile * T::kBiasStride);
    of_query_ = take(3 * T::kTile);
    slot_ = take(T::kSlotFloats);
    plans_ = reinterpret_cast<uint32_t*>(next);
    tile = {row / a.heads, row % a.heads, 0, 0, 0, 0};
    query_ = thread_index() / T::kSide;
    key_ = thread_index() % T::kSide;
  }

  // Another batch row and head.
  AB_DEVICE void move_to(int64_t row) {
    row_ = row;
    tile.b = row / a_.heads;
    tile.h = row % a_.heads;
  }

  AB_DEVICE bool load_queries() {
    const int32_t count = tile.q1 - tile.q0;
    const int64_t first = row_ * a_.queries + tile.q0;
    const bool bad = load_rows<T>(a_.query, first, count, 0, a_.head_dim, query);
    if (thread_index() < T::kTile) {
      const bool valid = thread_index() < count;
      base()[thread_index()] = valid ? a_.row_sums[first + thread_index()].base : 0.0f;
      factor()[thread_index()] = valid ? a_.row_sums[first + thread_index()].factor : 1.0f;
      mean()[thread_index()] = valid ? a_.mean[first + thread_index()] : 0.0f;
    }
    const HeadRows grads = {a_.grad_out, DType::kFloat32};
    return load_rows<T>(grads, first, count, 0, a_.value_dim, grad_out) || bad;
  }
  AB_DEVICE bool load_keys() {
    const int32_t count = tile.k1 - tile.k0;
    const int64_t first = row_ * a_.keys + tile.k0;
    const bool bad = load_keys_alone();
    return load_rows<T>(a_.value, first, count, 0, a_.value_dim, value) || bad;
  }
  // Without the values, which scores don't need.
  AB_DEVICE bool load_keys_alone() {
    return load_rows<T>(a_.key, row_ * a_.keys + tile.k0, tile.k1 - tile.k0, 0, a_.head_dim, key);
  }

  // False where the tile is hidden. A barrier lies between this and the next call, and before what reads.
  AB_DEVICE bool plan_biases() {
    plan = plan_together<T::kTile, T::kWarps>(a_.terms, all_terms(a_.term_count), tile, plans_);
    if (plan.hidden) return false;
    if (thread_index() < T::kTile) {
      const int32_t q = tile.q0 + thread_index();
      slot_[thread_index()] = plan.row_constant == 0 || q >= tile.q1
                                  ? 0.0f
                                  : add_row_constants(a_.terms, plan.row_constant, tile, q, 0.0f);
    }
    if (thread_index() == 0) __builtin_memcpy(slot_ + T::kTile, &plan.mixed, sizeof plan.mixed);
    return true;
  }

  // Probabilities of the thread's pairs and their dscore; uses `weights`.
  AB_DEVICE void differentiate(Pairs& p, Pairs& grads) const {
    score(p, [&](int q, bool hide, float score) {
      // A probability is at most 1. Where scores and lse are great, both are rounded by more than exp takes.
      const float log_p = score - base()[q];
      return hide ? hidden_weight() : fast_exp2((log_p > 0.0f ? 0.0f : log_p) * kLog2e);
    });
    multiply(grad_out, value, a_.value_dim, grads);
    AB_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      const float mean = this->mean()[query_ + i * T::kSide], factor = this->factor()[query_ + i * T::kSide];
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        p[i][j] *= factor;  // a hidden weight stays what it is
        const bool hide = bits_of(p[i][j]) == kHiddenBits;
        grads[i][j] = hide ? hidden_weight() : visible_weight(p[i][j] * (grads[i][j] - mean));
      }
    }
  }

  // Joins the tile's scores to what a thread has of its queries' before: the greatest, and Σ exp(score −
  // greatest). The kSide threads of a query have the same. Uses `weights`.
  AB_DEVICE void add_scores(float (&greatest)[kMicro], double (&sums)[kMicro]) const {
    Pairs scores;
    score(scores, [](int, bool hide, float score) { return hide ? negative_infinity() : score; });
    AB_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      float joined = greatest[i];
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) joined = __builtin_fmaxf(joined, scores[i][j]);
      AB_UNROLL
      for (int mask = 1; mask < T::kSide; mask *= 2) {
        joined = __builtin_fmaxf(joined, shuffle_xor(joined, mask));
      }
      const float from = joined == negative_infinity() ? 0.0f : joined;  // nothing seen yet
      float sum = 0.0f;
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) sum += fast_exp2((scores[i][j] - from) * kLog2e);
      AB_UNROLL
      for (int mask = 1; mask < T::kSide; mask *= 2) sum += shuffle_xor(sum, mask);
      const float rebase = fast_exp2((greatest[i] - from) * kLog2e);
      sums[i] = sums[i] * static_cast<double>(rebase) + static_cast<double>(sum);
      greatest[i] = joined;
    }
  }

  // The thread's pairs are those of query_of(i); of its kSide threads one has this.
  AB_DEVICE bool first_of_query() const { return key_ == 0; }

  // weights[other][own]
  template <bool kOwnKeys>
  AB_DEVICE void share(const Pairs& pairs) const {
    AB_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        const int q = query_ + i * T::kSide, k = key_ + j * T::kSide;
        weights[kOwnKeys ? q * T::kBiasStride + k : k * T::kBiasStride + q] = pairs[i][j];
      }
    }
  }

  // Where the thread's pair i, j is.
  AB_DEVICE int32_t query_of(int i) const { return tile.q0 + query_ + i * T::kSide; }
  AB_DEVICE int32_t key_of(int j) const { return tile.k0 + key_ + j * T::kSide; }

  Tile tile;
  TilePlan plan = {false, 0, 0};
  float *query, *grad_out, *key, *value;  // [kTile][kStride]
  float* weights;                         // [kTile][kBiasStride]

 private:
  AB_DEVICE float* base() const { return of_query_; }
  AB_DEVICE float* factor() const { return of_query_ + T::kTile; }
  AB_DEVICE float* mean() const { return of_query_ + 2 * T::kTile; }

  // p = f(query in the tile, whether the pair is hidden or none, its score)
  template <class F>
  AB_DEVICE void score(Pairs& p, F f) const {
    const bool mixed = plan.mixed != 0;
    if (mixed) evaluate_bias<T>(a_.terms, tile, slot_, weights);
    multiply(query, key, a_.head_dim, p);
    AB_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      const int q = query_ + i * T::kSide;
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        const int k = key_ + j * T::kSide;
        const float bias = mixed ? weights[q * T::kBiasStride + k] : slot_[q];
        const bool hide = bias == negative_infinity() || tile.q0 + q >= tile.q1 || tile.k0 + k >= tile.k1;
        p[i][j] = f(q, hide, p[i][j] * a_.scale + bias);
      }
    }
  }

  AB_DEVICE void multiply(const float* left, const float* right, int32_t dims, Pairs& sums) const {
    left += query_ * T::kStride;
    right += key_ * T::kStride;
    AB_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) sums[i][j] = 0.0f;
    }
    AB_NO_UNROLL
    for (int d = 0; d < dims; d += 4) {
      Float4 x[kMicro];
      AB_UNROLL
      for (int i = 0; i < kMicro; ++i) x[i] = load_16(left + i * T::kSide * T::kStride + d);
      AB_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        const Float4 y = load_16(right + j * T::kSide * T::kStride + d);
        AB_UNROLL
        for (int i = 0; i < kMicro; ++i) {
          float& sum = sums[i][j];
          sum += x[i].x * y.x;
          sum += x[i].y * y.y;
          sum += x[i].z * y.z;
          sum += x[i].w * y.w;
        }
      }
    }
  }

  const BackwardArguments& a_;
  int64_t row_;  // b·H + h
  int query_, key_;
  float* of_query_;  // [3][kTile]
  float* slot_;      // [kSlotFloats]
  uint32_t* plans_;
};

template <int kDim>
AB_KERNEL void AB_LAUNCH_BOUNDS(BackwardTile<kDim>::kThreads, 2)
    row_sum_kernel(const BackwardArguments a, const float* lse, RowSum* sums) {
  using T = BackwardTile<kDim>;
  constexpr int kMicro = T::kMicro;
  const int32_t tiles = (a.queries + T::kTile - 1) / T::kTile;
  const int64_t row = block_x() / tiles;
  PairTile<T> pairs(a, row);
  Tile& tile = pairs.tile;
  tile.q0 = static_cast<int32_t>(block_x() % tiles) * T::kTile;
  tile.q1 = min_i32(tile.q0 + T::kTile, a.queries);
  const int64_t first = row * a.queries;
  bool far = false;
  if (tile.q0 + thread_index() < tile.q1) {
    const int64_t at = first + tile.q0 + thread_index();
    sums[at] = {lse[at] == negative_infinity() ? -negative_infinity() : lse[at], 1.0f};
    far = is_far(lse[at]);
  }
  if (!any_in_block(far)) return;
  pairs.load_queries();
  float greatest[kMicro];
  double sum[kMicro];
  AB_UNROLL
  for (int i = 0; i < kMicro; ++i) greatest[i] = negative_infinity(), sum[i] = 0;
  for (tile.k0 = 0; tile.k0 < a.keys; tile.k0 += T::kTile) {
    tile.k1 = min_i32(tile.k0 + T::kTile, a.keys);
    barrier();  // all are done with the tile before
    if (!pairs.plan_biases()) continue;
    pairs.load_keys_alone();
    barrier();
    pairs.add_scores(greatest, sum);
  }
  if (!pairs.first_of_query()) return;
  AB_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    const int32_t q = pairs.query_of(i);
    if (q >= tile.q1 || !is_far(lse[first + q]) || sum[i] == 0) continue;
    sums[first + q] = {greatest[i], static_cast<float>(1 / sum[i])};
  }
}

template <class Which>
constexpr bool kSumsByQuery =
    Which::kLearns && !std::is_same_v<Which, LowRankTerm> && !std::is_same_v<Which, RelativePositionTerm>;

// Adds to sums[slot·stride] what query q gives a term that is constant along keys [part.k0, part.k1), where
// dscore adds up to `sum`.
AB_DEVICE_CALL void add_constant_term(const Term& any, const Tile part, int32_t q, float sum, int64_t stride,
                                      double* sums) {
  visit(any, [&](const auto& term) {
    if constexpr (kSumsByQuery<std::decay_t<decltype(term)>>) {
      term.template derivatives<float>(
          part.b, part.h, part.k0, q, [&](int32_t slot, int64_t, float derivative) {
            sums[slot * stride] += static_cast<double>(sum) * static_cast<double>(derivative);
          });
    }
  });
}

// The same of a mixed term; weights[k·kStride] is dscore of key part.k0 + k.
template <int kStride>
AB_DEVICE_CALL void add_mixed_term(const Term& any, const Tile part, int32_t q, const float* weights,
                                   int64_t stride, double* sums) {
  visit(any, [&](const auto& term) {
    using Which = std::decay_t<decltype(term)>;
    if constexpr (Which::kLearns && Which::kLocal) {
      term.template near_derivatives<float>(
          part, q, [&](int32_t slot, int64_t, int32_t begin, int32_t end, auto derivative) {
            float sum = 0.0f;
            for (int32_t k = begin; k < end; ++k) {
              sum += weights[(k - part.k0) * kStride] * derivative(k - begin);
            }
            sums[slot * stride] += static_cast<double>(sum);
          });
    } else if constexpr (kSumsByQuery<Which>) {
      int32_t current = -1;  // keys of a slot mostly lie together
      float sum = 0.0f;
      const auto flush = [&] {
        if (current >= 0) sums[current * stride] += static_cast<double>(sum);
        sum = 0.0f;
      };
      for (int32_t k = part.k0; k < part.k1; ++k) {
        const float weight = weights[(k - part.k0) * kStride];
        term.template derivatives<float>(part.b, part.h, k, q, [&](int32_t slot, int64_t, float derivative) {
          if (slot != current) flush();
          current = slot;
          sum += weight * derivative;
        });
      }
      flush();
    }
  });
}

// Adds a tile's part of a relative position table, a thread a row of it; weights[key·T::kBiasStride + query]
// is dscore. What other threads added to the same row before lies behind a barrier.
template <class T>
AB_DEVICE_CALL void add_table(const RelativePositionTerm& term, const Tile tile, int32_t queries,
                              const float* weights, double* sums) {
  int32_t begin, end;
  term.rows_of(tile, &begin, &end);
  const int32_t pairs = term.cls_token ? term.rows() - 3 : term.rows();
  const int32_t count = end - begin + (term.rows() - pairs);
  for (int32_t i = thread_index(); i < count; i += T::kThreads) {
    const int32_t row = i < end - begin ? begin + i : pairs + i - (end - begin);
    float sum = 0.0f;
    for (int32_t k = tile.k0; k < tile.k1; ++k) {
      const QueryRange range = term.queries_of(term.column(tile.b, tile.h, k), row, queries);
      const int32_t q0 = max_i32(static_cast<int32_t>(range.begin), tile.q0);
      const int32_t q1 = min_i32(static_cast<int32_t>(range.end), tile.q1);
      for (int32_t q = q0; q < q1; ++q) sum += weights[(k - tile.k0) * T::kBiasStride + q - tile.q0];
    }
    sums[row] += static_cast<double>(sum);
  }
}

template <class T, bool kOwnKeys>
class GradientBlock {
 public:
  AB_DEVICE GradientBlock(const BackwardArguments& a, const GradientOutputs& o)
      : a_(a), o_(o), row_(block_x() / tiles()), pairs_(a, row_) {
    Tile& tile = pairs_.tile;
    const int32_t own = block_x() % tiles() * T::kTile;
    (kOwnKeys ? tile.k0 : tile.q0) = own;
    (kOwnKeys ? tile.k1 : tile.q1) = min_i32(own + T::kTile, own_count());
  }

  AB_DEVICE void run() {
    clear_sums();
    Tile& tile = pairs_.tile;
    const bool own_bad = kOwnKeys ? pairs_.load_keys() : pairs_.load_queries();
    const int32_t others = kOwnKeys ? a_.queries : a_.keys;
    const int32_t begin = block_y() * o_.run, end = min_i32(begin + o_.run, others);
    for (int32_t other = begin; other < end; other += T::kTile) {
      (kOwnKeys ? tile.q0 : tile.k0) = other;
      (kOwnKeys ? tile.q1 : tile.k1) = min_i32(other + T::kTile, end);
      barrier();  // all are done with the tile before
      if (!pairs_.plan_biases()) continue;
      bool bad = kOwnKeys ? pairs_.load_queries() : pairs_.load_keys();
      bad = any_in_block(bad || own_bad);
      add_tile(bad, min_i32(T::kTile, end - other));
    }
    finish();
  }

 private:
  using Sums = float[T::kOwn][4];

  // Of a batch row and head. Like what follows worked out where it is needed: it would only hold registers.
  AB_DEVICE int32_t own_count() const { return kOwnKeys ? a_.keys : a_.queries; }
  AB_DEVICE int32_t own0() const { return kOwnKeys ? pairs_.tile.k0 : pairs_.tile.q0; }
  AB_DEVICE int32_t own1() const { return kOwnKeys ? pairs_.tile.k1 : pairs_.tile.q1; }
  AB_DEVICE int32_t tiles() const { return (own_count() + T::kTile - 1) / T::kTile; }
  // The thread's columns and own rows of the sums of rows.
  AB_DEVICE static int quad() { return thread_index() % T::kQuads; }
  AB_DEVICE static int first_own() { return thread_index() / T::kQuads * T::kOwn; }
  // Its own row of the sums of terms, and where they are.
  AB_DEVICE static int own() { return thread_index() % T::kTile; }
  AB_DEVICE double* own_sums() const {
    const int64_t part = static_cast<int64_t>(block_y()) * T::kParts + thread_index() / T::kTile;
    return o_.own_sums + (part * o_.slots * a_.rows + row_) * own_count() + own0() + own();
  }
  AB_DEVICE double* table_sums() const {
    return o_.table_sums + (static_cast<int64_t>(block_x()) * grid_y() + block_y()) * o_.bins;
  }

  AB_DEVICE void add_tile(bool bad, int others) {
    typename PairTile<T>::Pairs p, grads;
    pairs_.differentiate(p, grads);
    if constexpr (kOwnKeys) {
      if (o_.values) {
        pairs_.template share<true>(p);
        barrier();
        add_weighted(bad, pairs_.grad_out, others, values_);
      }
    }
    barrier();  // all are done with biases, p and rows
    pairs_.template share<kOwnKeys>(grads);
    float* const rows = kOwnKeys ? pairs_.query : pairs_.key;
    if (o_.factor_term >= 0) {
      bad = any_in_block(load_factors(rows, others) || bad);
    } else {
      barrier();
    }
    if (o_.rows) add_weighted(bad, rows, others, rows_);
    if (o_.own_terms != 0) add_own_terms(others);
    if constexpr (!kOwnKeys) {
      if (o_.table_terms != 0) add_tables();
    }
  }

  AB_DEVICE bool load_factors(float* rows, int others) const {
    const Tile& tile = pairs_.tile;
    const LowRankTerm& term = a_.terms[o_.factor_term].low_rank;
    const LowRankTerm::Column column = term.column(tile.b, tile.h, 0);
    const HeadRows factors = {kOwnKeys ? column.query_factors : column.key_factors, DType::kFloat32};
    return load_rows<T>(factors, kOwnKeys ? tile.q0 : tile.k0, others, o_.first_column, term.rank, rows);
  }

  // sums += Σ weights[other][own]·rows[other], a tile from zero.
  AB_DEVICE void add_weighted(bool careful, const float* rows, int others, Sums& sums) const {
    Sums part = {};
    const float* weights = pairs_.weights + first_own();
    rows += 4 * quad();
    if (careful) {
      AB_NO_UNROLL
      for (int i = 0; i < others; ++i)
        add_row<true>(weights + i * T::kBiasStride, rows + i * T::kStride, part);
    } else {
      AB_NO_UNROLL
      for (int i = 0; i < others; ++i)
        add_row<false>(weights + i * T::kBiasStride, rows + i * T::kStride, part);
    }
    AB_UNROLL
    for (int i = 0; i < T::kOwn; ++i) {
      AB_UNROLL
      for (int c = 0; c < 4; ++c) sums[i][c] += part[i][c];
    }
  }

  template <bool kCareful>
  AB_DEVICE static void add_row(const float* weights, const float* row, Sums& sums) {
    const Float4 x = load_16(row);
    AB_UNROLL
    for (int i = 0; i < T::kOwn; ++i) {
      const float weight = weights[i];
      if (kCareful && bits_of(weight) == kHiddenBits) continue;
      sums[i][0] += weight * x.x;
      sums[i][1] += weight * x.y;
      sums[i][2] += weight * x.z;
      sums[i][3] += weight * x.w;
    }
  }

  // ---- terms: each own row's sums are kParts threads', a part of the tile's others each

  AB_DEVICE int64_t slot_stride() const { return a_.rows * own_count(); }
  AB_DEVICE bool has_own() const { return own0() + own() < own1(); }

  AB_DEVICE void clear_sums() {
    if (o_.own_terms != 0 && has_own()) {
      double* const sums = own_sums();
      AB_NO_UNROLL
      for (int i = 0; i < o_.slots; ++i) sums[i * slot_stride()] = 0;
    }
    if (o_.table_terms != 0) {
      double* const sums = table_sums();
      AB_NO_UNROLL
      for (int64_t i = thread_index(); i < o_.bins; i += T::kThreads) sums[i] = 0;
    }
  }

  AB_DEVICE void add_own_terms(int others) {
    const int first = thread_index() / T::kTile * T::kPart;
    const int last = min_i32(first + T::kPart, others);
    if (!has_own() || first >= last) return;
    const float* weights = pairs_.weights + own();
    float sum = 0.0f;
    AB_NO_UNROLL
    for (int i = first; i < last; ++i) sum += weights[i * T::kBiasStride];
    for (uint64_t left = o_.own_terms; left != 0; left &= left - 1) {
      const int term = lowest_bit(left);
      double* const sums = own_sums() + o_.first[term] * slot_stride();
      if constexpr (kOwnKeys) {
        *sums += static_cast<double>(sum);  // a dense bias of keys
      } else {
        const uint64_t bit = left & ~(left - 1);
        const Tile& tile = pairs_.tile;
        const Tile part = {tile.b, tile.h, tile.q0, tile.q1, tile.k0 + first, tile.k0 + last};
        if ((pairs_.plan.mixed & bit) != 0) {
          add_mixed_term<T::kBiasStride>(a_.terms[term], part, part.q0 + own(),
                                         weights + first * T::kBiasStride, slot_stride(), sums);
        } else if ((pairs_.plan.row_constant & bit) != 0) {
          add_constant_term(a_.terms[term], part, part.q0 + own(), sum, slot_stride(), sums);
        }
      }
    }
  }

  AB_DEVICE void add_tables() const {
    for (uint64_t left = o_.table_terms; left != 0; left &= left - 1) {
      const int term = lowest_bit(left);
      add_table<T>(a_.terms[term].relative_position, pairs_.tile, a_.queries, pairs_.weights,
                   table_sums() + o_.first[term]);
    }
  }

  AB_DEVICE void finish() const {
    if (o_.rows) {
      const float scale = o_.factor_term >= 0 ? a_.terms[o_.factor_term].low_rank.scale : a_.scale;
      store(rows_, o_.rows + block_y() * a_.rows * own_count() * o_.columns, o_.first_column, o_.columns,
            scale);
    }
    if constexpr (kOwnKeys) {
      if (o_.values) store(values_, o_.values, 0, a_.value_dim, 1.0f);
    }
  }

  AB_DEVICE void store(const Sums& sums, float* to, int32_t first_column, int32_t columns,
                       float scale) const {
    AB_UNROLL
    for (int i = 0; i < T::kOwn; ++i) {
      const int32_t own = own0() + first_own() + i;
      if (own >= own1()) continue;
      float* const row = to + (row_ * own_count() + own) * columns;
      AB_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int32_t column = first_column + 4 * quad() + c;
        if (column < columns) row[column] = sums[i][c] * scale;
      }
    }
  }

  const BackwardArguments& a_;
  const GradientOutputs& o_;
  int64_t row_;  // b·H + h
  PairTile<T> pairs_;
  Sums rows_ = {};
  float values_[kOwnKeys ? T::kOwn : 1][4] = {};
};

template <int kDim, bool kOwnKeys>
AB_KERNEL void AB_LAUNCH_BOUNDS(BackwardTile<kDim>::kThreads, 2)
    gradient_kernel(const BackwardArguments arguments, const GradientOutputs outputs) {
  GradientBlock<BackwardTile<kDim>, kOwnKeys>(arguments, outputs).run();
}

// A dense bias of single pairs, and who has it in common.
struct PairArguments {
  DenseTerm term;
  int64_t batch, heads;  // of the tensor
  int64_t run;           // of the batch rows and heads that share a pair, those of a block
  float* out;            // [runs][elements], as the tensor
  int64_t elements;      // of the tensor
};

template <int kDim>
AB_KERNEL void AB_LAUNCH_BOUNDS(BackwardTile<kDim>::kThreads, 2)
    pair_kernel(const BackwardArguments a, const PairArguments pairs) {
  using T = BackwardTile<kDim>;
  constexpr int kMicro = T::kMicro;
  const int32_t query_tiles = (a.queries + T::kTile - 1) / T::kTile;
  const int32_t key_tiles = (a.keys + T::kTile - 1) / T::kTile;
  const int32_t key_tile = block_x() % key_tiles, query_tile = block_x() / key_tiles % query_tiles;
  const int64_t shared_row = block_x() / key_tiles / query_tiles;
  const int64_t b = shared_row / pairs.heads, h = shared_row % pairs.heads;
  // This pair's batch rows are b, b + pairs.batch, …: all or one; heads likewise.
  const int64_t heads = pairs.heads == 1 ? a.heads : 1;
  const int64_t count = (pairs.batch == 1 ? a.rows / a.heads : 1) * heads;
  const int64_t begin = block_y() * pairs.run;
  const int64_t end = begin + pairs.run < count ? begin + pairs.run : count;
  PairTile<T> tile(a, 0);
  tile.tile = {0,
               0,
               query_tile * T::kTile,
               min_i32((query_tile + 1) * T::kTile, a.queries),
               key_tile * T::kTile,
               min_i32((key_tile + 1) * T::kTile, a.keys)};
  float sums[kMicro][kMicro] = {};
  for (int64_t i = begin; i < end; ++i) {
    tile.move_to((b + i / heads) * a.heads + h + i % heads);
    barrier();
    if (!tile.plan_biases()) continue;
    tile.load_queries();
    tile.load_keys();
    barrier();
    typename PairTile<T>::Pairs p, grads;
    tile.differentiate(p, grads);
    AB_UNROLL
    for (int x = 0; x < kMicro; ++x) {
      AB_UNROLL
      for (int y = 0; y < kMicro; ++y) sums[x][y] += grads[x][y];
    }
  }
  float* const out = pairs.out + block_y() * pairs.elements;
  AB_UNROLL
  for (int x = 0; x < kMicro; ++x) {
    AB_UNROLL
    for (int y = 0; y < kMicro; ++y) {
      const int32_t q = tile.query_of(x), k = tile.key_of(y);
      if (q >= tile.tile.q1 || k >= tile.tile.k1) continue;
      pairs.term.derivatives<float>(b, h, k, q, [&](int32_t, int64_t at, float) { out[at] = sums[x][y]; });
    }
  }
}

// to[b, h, n] = Σ from[p, b, h, n] over p and those of b, h and n that `to` lacks (its extents are then 1).
template <class Real>
struct SumArguments {
  const Real* from;
  int64_t sizes[4];    // of p, b, h, n
  int64_t strides[3];  // of p, b, h; that of n is 1
  float* to;
  int64_t kept[3];        // 1, or the sizes of b, h, n
  int64_t to_strides[3];  // of b, h, n
};

constexpr int kSumThreads = 128;

// kLanes threads an element: 1, or a warp.
template <class Real, int kLanes>
AB_KERNEL void AB_LAUNCH_BOUNDS(kSumThreads, 4) sum_kernel(const SumArguments<Real> a) {
  const int64_t element = (static_cast<int64_t>(block_x()) * kSumThreads + thread_index()) / kLanes;
  if (element >= a.kept[0] * a.kept[1] * a.kept[2]) return;
  const int64_t n = element % a.kept[2], bh = element / a.kept[2];
  const int64_t h = bh % a.kept[1], b = bh / a.kept[1];
  const Real* const from = a.from + b * a.strides[1] + h * a.strides[2] + n;
  // The extents of what is summed up.
  const int64_t batch = a.sizes[1] / a.kept[0], heads = a.sizes[2] / a.kept[1], row = a.sizes[3] / a.kept[2];
  const int64_t count = a.sizes[0] * batch * heads * row;
  double sum = 0;
  for (int64_t i = kLanes == 1 ? 0 : lane_index(); i < count; i += kLanes) {
    int64_t rest = i;
    int64_t at = rest % row;
    rest /= row;
    at += rest % heads * a.strides[2];
    rest /= heads;
    at += rest % batch * a.strides[1] + rest / batch * a.strides[0];
    sum += static_cast<double>(from[at]);
  }
  if constexpr (kLanes != 1) sum = add_lanes(sum);
  if (kLanes == 1 || lane_index() == 0) {
    a.to[b * a.to_strides[0] + h * a.to_strides[1] + n * a.to_strides[2]] = static_cast<float>(sum);
  }
}

}  // namespace attention_bias::cuda
