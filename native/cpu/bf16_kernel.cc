// Biased attention forward in bfloat16 with sums of float32, compiled once an instruction set:
// attention_body.h with vdpbf16ps, which multiplies two pairs of bfloat16 a lane and adds both products to a
// float32. Only x86-64-v4 has it, on some processors (has_bf16); elsewhere there is nothing here.
//
//   keys, values  of a block are converted once for all its blocks of queries: keys to rows of pairs of dims,
//                 values to rows of [value_dim] pairs of two keys' values. 64 KB at head dim 32, in L2; the
//                 next block's are prefetched meanwhile.
//   queries       are packed as [d / 2][query] pairs, with scale·log2 e folded in.
//   softmax       2^x by a polynomial of degree 3 (1e-4, where bfloat16 keeps 2e-3). Two keys'
//                 probabilities become pairs by integer additions and a shift. Of its 14 instructions a
//                 vector only 3 want a multiplier, so a tile's exponentials are taken between the products of
//                 the next tile: 4 keys × 3 vectors of accumulators there, for the registers that
//                 exponentials need.
//   output        8 value dims × 3 vectors over pairs of keys, summed up in float32.
//
// lowRank terms are added in float32. A block of queries whose output shows a NaN is attended once more by
// attention_rows, in float32: see attend_piece.
//
// CMT (1×8×900×56,400×32, modality bias) on an AMD EPYC (family 25, model 17, 2 cores): 290 ms with one
// thread, 146 with two: 356 of 460 GFLOP/s, 77 %; 35 slots of a multiplier a vector of scores, of which 32
// are products, would take 251 ms of one core. The relative error is 3.6e-3. What is left beside them: the
// last tile of each block of 512 keys, whose exponentials have nothing to hide behind, starting and storing
// scores, and memory. No gain: tiles of 32, 48 or 96 keys, blocks of 1,024.
#if defined(__AVX512F__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512bf16")
#endif
#define AB_BF16_PRODUCTS 1
#endif

#include "cpu/attention_body.h"

namespace attention_bias::cpu {

#if AB_BF16_PRODUCTS
namespace {

typedef uint32_t VecBits __attribute__((vector_size(kVectorBytes)));

AB_INLINE Vec add_pairs(Vec sum, Vec a, Vec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

AB_INLINE Vec splat_pair(const uint32_t* p) { return (Vec)(VecBits{} + *p); }

// The nearest bfloat16 of each lane in its low half.
AB_INLINE VecBits nearest(Vec x) {
  return (VecBits)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
}

AB_INLINE Vec pairs(Vec low, Vec high) { return (Vec)(nearest(low) | nearest(high) << 16); }

AB_INLINE Vec load_dims(const float* p, int32_t count) {
  return count >= kLanes ? load_any(p) : load_part(p, count);
}

// What exp_pair multiplies by and adds, in memory: beside products there are no registers for them, and an
// instruction broadcasts one of them for nothing.
struct ExpConstants {
  float least, round;   // 1.5·2^23: adding it rounds
  float power[4];       // 2^f for |f| ≤ 1/2, to 1e-4
  uint32_t half, high;  // of the bits that bfloat16 drops; those that it keeps
};
constexpr ExpConstants kExp2 = {
    -152.0f, 12582912.0f, {0.99992807f, 0.69326099f, 0.24261113f, 0.05517167f}, 0x8000, 0xffff0000};

// The probabilities of two keys as pairs.
AB_INLINE Vec round_pair(Vec first, Vec second, const ExpConstants& c) {
  const VecBits low = ((VecBits)first + c.half) >> 16, high = ((VecBits)second + c.half) & c.high;
  return (Vec)(low | high);
}

// 2^x of kCount vectors, x ≤ 127, to 1e-4; 0 where float32 would be; NaN for NaN. In kExpSteps − 1 parts,
// with something else after each. Breadth first: what waits for a result takes a place in the processor's
// queues, and products behind it wait as well.
constexpr int kExpSteps = 5;
template <int kCount, class Step>
AB_INLINE void exp2_coarse(Vec* x, const ExpConstants& c, Step step) {
  Vec n[kCount], p[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    x[i] = max_or_second(splat(c.least), x[i]);
    n[i] = x[i] + c.round;
  }
  step();
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    n[i] -= c.round;
    x[i] -= n[i];
  }
  step();
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) p[i] = x[i] * c.power[3] + c.power[2];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) p[i] = p[i] * x[i] + c.power[1];
  step();
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    p[i] = p[i] * x[i] + c.power[0];
    x[i] = (Vec)_mm512_scalef_ps((__m512)p[i], (__m512)n[i]);
  }
  step();
}

struct Bfloat16 {
  static constexpr float kUnit = 1.44269504f;
  static constexpr bool kConverts = true;
  static constexpr bool kBeside = true;
  static constexpr int32_t kFoldKeys = 1 << 30;  // what that loses is far below what bfloat16 does
  static constexpr bool kRedoesAsRows = true;

  static int32_t pair_count(int64_t dims) { return static_cast<int32_t>((dims + 1) / 2); }
  // Whole vectors are written, up to one past the end.
  static int64_t key_floats(const AttentionProblem& p, int32_t keys) {
    return (static_cast<int64_t>(keys) * pair_count(p.head_dim) + 2 * kLanes - 1) / kLanes * kLanes;
  }
  static int64_t block_floats(const AttentionProblem& p, int32_t keys) {
    return key_floats(p, keys) + (pair_count(keys) * p.value_dim + 2 * kLanes - 1) / kLanes * kLanes;
  }

  static void enter_block(Work* w, int32_t k0, int32_t k1) {
    const AttentionProblem& p = *w->problem;
    const int32_t head_dim = static_cast<int32_t>(p.head_dim), value_dim = static_cast<int32_t>(p.value_dim);
    const int32_t stride = pair_count(head_dim);
    w->block_k0 = k0;
    float* const keys = w->converted;
    float* const values = keys + key_floats(p, key_block(p));
    w->converted_values = values;
    for (int32_t k = k0; k < k1; ++k) {
      const float* key = w->key + static_cast<int64_t>(k) * head_dim;
      float* to = keys + static_cast<int64_t>(k - k0) * stride;
      for (int32_t d = 0; d < head_dim; d += kLanes) {
        const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)load_dims(key + d, head_dim - d));
        __builtin_memcpy(to + d / 2, &half, sizeof half);
      }
    }
    for (int32_t k = k0; k < k1; k += 2) {
      const float* value = w->value + static_cast<int64_t>(k) * value_dim;
      float* to = values + static_cast<int64_t>((k - k0) / 2) * value_dim;
      for (int32_t d = 0; d < value_dim; d += kLanes) {
        const Vec low = load_dims(value + d, value_dim - d);
        const Vec high = k + 1 < k1 ? load_dims(value + value_dim + d, value_dim - d) : Vec{};
        store_any(to + d, pairs(low, high));
      }
    }
  }

  static void pack(const float* rows, int32_t count, int32_t dims, float scale, float* packed) {
    cpu::pack(rows, count, dims, scale, packed);
    for (int32_t d = 0; d < dims; d += 2) {
      for (int32_t q = 0; q < kQueries; q += kLanes) {
        const float* at = packed + d * kQueries + q;
        store(packed + d / 2 * kQueries + q, pairs(load(at), d + 1 < dims ? load(at + kQueries) : Vec{}));
      }
    }
  }

  // Keys 2i and 2i + 1 of the tile: their scores, and the row of probabilities that these become, as pairs.
  // Sums are of those before rounding, so that no NaN is lost, whatever its bits.
  template <bool kSubtract>
  AB_INLINE static Vec exp_pair(const Work& w, int i, int v, Vec subtract) {
    const float* at = w.scores + 2 * i * kQueries + v * kLanes;
    Vec x[2] = {load(at), load(at + kQueries)};
    if (kSubtract) x[0] -= subtract, x[1] -= subtract;
    exp2_coarse<2>(x, kExp2, []() AB_INLINE_LAMBDA {});
    store(w.probabilities + i * kQueries + v * kLanes, round_pair(x[0], x[1], kExp2));
    return x[0] + x[1];
  }

  // kBatchPairs of those in a group of keys, counted along the queries first, with a step of something else
  // before each of kExpSteps parts.
  static constexpr int kBatchPairs = 2;
  template <int NV, class Step>
  AB_INLINE static void exp_batch(const Work& w, int key, int pair, float* sums, Step step) {
    const ExpConstants* c = &kExp2;
    asm("" : "+r"(c));  // or the compiler would keep them in registers
    Vec x[2 * kBatchPairs];
    const auto offset = [&](int i, int row) { return row * kQueries + (pair + i) % NV * kLanes; };
#pragma GCC unroll 8
    for (int i = 0; i < kBatchPairs; ++i) {
      const float* at = w.scores + offset(i, key + (pair + i) / NV * 2);
      x[2 * i] = load(at);
      x[2 * i + 1] = load(at + kQueries);
    }
    step();
    exp2_coarse<2 * kBatchPairs>(x, *c, step);
#pragma GCC unroll 8
    for (int i = 0; i < kBatchPairs; ++i) {
      float* const sum = sums + offset(i, 0);
      store(w.probabilities + offset(i, key / 2 + (pair + i) / NV), round_pair(x[2 * i], x[2 * i + 1], *c));
      store(sum, load(sum) + (x[2 * i] + x[2 * i + 1]));
    }
  }

  template <int NR, int NV, Start kStart, bool kExp>
  AB_INLINE static void score_rows(const Work& w, const Panel* panels, int64_t key, int in_tile,
                                   const Vec* row, Vec* greatest, float* sums) {
    const float* bias = w.tile_bias + in_tile * kQueries;
    const int32_t stride = pair_count(panels[0].dims);
    const float* query = panels[0].query;
    const uint32_t* key_at = reinterpret_cast<const uint32_t*>(w.converted) + (key - w.block_k0) * stride;
    Vec sum[NR][NV];
    start_rows<NR, NV, kStart>(row, bias, sum);
    const auto step = [&]() AB_INLINE_LAMBDA {
      Vec q[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) q[v] = load(query + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) {
        const Vec k = splat_pair(key_at + r * stride);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[r][v] = add_pairs(sum[r][v], q[v], k);
      }
      query += kQueries;
      ++key_at;
    };
    int32_t steps = stride;
    if constexpr (kExp) {
      constexpr int kBatches = NR / 2 * NV / kBatchPairs;
      if (stride >= kBatches * kExpSteps) {
#pragma GCC unroll 8
        for (int i = 0; i < kBatches; ++i) exp_batch<NV>(w, in_tile, i * kBatchPairs, sums, step);
        steps -= kBatches * kExpSteps;
      } else {
        for (int i = 0; i < kBatches; ++i) {
          exp_batch<NV>(w, in_tile, i * kBatchPairs, sums, []() AB_INLINE_LAMBDA {});
        }
      }
    }
    for (int32_t i = 0; i < steps; ++i) step();
    for (int p = 1; p < w.panel_count; ++p) add_products(panels[p], key, sum);
    finish_rows<NR, NV, kStart>(bias, sum, w.scores + in_tile * kQueries, greatest);
  }

  template <int NV, bool kSubtract>
  AB_INLINE static void exp_tile(const Work& w, int count, const Vec* subtract, Vec* sum) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[v] = Vec{};
    if (count % 2 != 0) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) store(w.scores + count * kQueries + v * kLanes, Vec{} - kInfinity);
    }
    for (int i = 0; i < (count + 1) / 2; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[v] += exp_pair<kSubtract>(w, i, v, kSubtract ? subtract[v] : Vec{});
    }
  }

  template <int ND, int NV, bool kCareful>
  AB_INLINE static void output_rows(const Work& w, int64_t key, int count, int32_t d, float* output) {
    static_assert(!kCareful, "attention_rows is careful");
    const int64_t stride = w.problem->value_dim;
    const float* probabilities = w.probabilities;
    const uint32_t* value =
        reinterpret_cast<const uint32_t*>(w.converted_values) + (key - w.block_k0) / 2 * stride + d;
    Vec sum[ND][NV];
    clear_rows(sum);
    for (int i = 0; i < (count + 1) / 2; ++i, probabilities += kQueries, value += stride) {
      Vec p[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) p[v] = load(probabilities + v * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < ND; ++j) {
        const Vec x = splat_pair(value + j);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[j][v] = add_pairs(sum[j][v], p[v], x);
      }
    }
    add_rows(sum, output);
  }
};

}  // namespace
#endif

namespace AB_ISA_NAME {

#if AB_BF16_PRODUCTS

bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }

int64_t bf16_scratch_floats(const AttentionProblem& p, int32_t queries) {
  return scratch_floats<Bfloat16>(p, queries);
}

bool attention_bf16(const AttentionTask& t) { return attend_piece<Bfloat16>(t); }

#else

bool has_bf16() { return false; }
int64_t bf16_scratch_floats(const AttentionProblem&, int32_t) { return 0; }
bool attention_bf16(const AttentionTask&) { return false; }

#endif

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu

#if AB_BF16_PRODUCTS && defined(__clang__)
#pragma clang attribute pop
#endif
