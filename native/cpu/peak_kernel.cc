// What one core can do at most, compiled once an instruction set, for the benchmarks to hold kernels against:
// multiply-adds in registers, stores and loads over memory. Nothing here computes a result.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

// More chains than latency × units (8 on Zen 4 and on Intel's since Skylake), fewer than there are registers.
constexpr int kChains = kRegisters == 32 ? 24 : 12;

// Every loop over the chains is unrolled: one that isn't would put them all on the stack.
AB_INLINE float sum_of(const Vec* chains) {
  Vec sum = {};
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum += chains[i];
  float result = 0;
  for (int i = 0; i < kLanes; ++i) result += sum[i];
  return result;
}

}  // namespace

namespace AB_ISA_NAME {

int64_t peak_fma(int64_t rounds, float* sink) {
  const Vec factor = splat(*sink), term = splat(1 - *sink);
  Vec chains[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) chains[i] = splat(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * factor + term;
  }
  *sink = sum_of(chains);
  return rounds * kChains * kLanes * 2;
}

#if defined(__AVX512F__)
__attribute__((target("avx512bf16")))
#endif
int64_t
peak_bf16(int64_t rounds, float* sink) {
#if defined(__AVX512F__)
  const __m512bh pair = (__m512bh)splat(*sink);
  __m512 chains[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) chains[i] = (__m512)splat(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) chains[i] = _mm512_dpbf16_ps(chains[i], pair, pair);
  }
  __m512 sum = chains[0];
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum += chains[i];
  *sink = sum[0];
  return rounds * kChains * kLanes * 4;
#else
  (void)rounds, (void)sink;
  return 0;
#endif
}

void peak_fill(float* to, int64_t count, float value) {
  const Vec v = splat(value);
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) store(to + i + j * kLanes, v);
  }
}

float peak_read(const float* from, int64_t count) {
  Vec sums[8] = {};
  for (int64_t i = 0; i < count; i += 8 * kLanes) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] += load(from + i + j * kLanes);
  }
  float result = 0;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) result += sums[j][0];
  return result;
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
