// One vector of float32 at the width that the compiler was told of (x86-64-v2: 4 lanes, v3: 8, v4: 16; arm64:
// 4), for the kernels that are compiled once an instruction set. GCC's and Clang's vector extensions do
// arithmetic and choice; the few operations that they spell badly are intrinsics. Everything is internal to
// the including file.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace attention_bias::cpu {
namespace {

#define AB_INLINE __attribute__((always_inline)) inline

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float Vec __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecInt __attribute__((vector_size(kVectorBytes)));

AB_INLINE Vec splat(float x) { return x - Vec{}; }  // not Vec{} + x: that turns −0 into 0
AB_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }  // aligned
AB_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }        // aligned

// Of floats on any boundary.
AB_INLINE Vec load_any(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// The first `count` of p, in [0, kLanes), and zeros; nothing past them is read.
AB_INLINE Vec load_part(const float* p, int32_t count) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX__)
  const VecInt lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (Vec)_mm256_maskload_ps(p, (__m256i)(lane < count));
#else
  static_assert(kLanes == 4, "as many cases as lanes");
  return Vec{count > 0 ? p[0] : 0.0f, count > 1 ? p[1] : 0.0f, count > 2 ? p[2] : 0.0f, 0.0f};
#endif
}

// Stores the first `count` lanes, in [0, kLanes); nothing past them is written.
AB_INLINE void store_part(float* p, Vec v, int32_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#elif defined(__AVX__)
  const VecInt lane = {0, 1, 2, 3, 4, 5, 6, 7};
  _mm256_maskstore_ps(p, (__m256i)(lane < count), (__m256)v);
#else
  static_assert(kLanes == 4, "as many cases as lanes");
  if (count > 0) p[0] = v[0];
  if (count > 1) p[1] = v[1];
  if (count > 2) p[2] = v[2];
#endif
}

// Lane i is the sum of the lanes of rows[i]: a transposition whose every step adds.
AB_INLINE Vec lane_sums(const Vec* rows) {
#if defined(__AVX512F__)
  __m512 fours[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512 twos[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512 a = (__m512)rows[4 * i + 2 * j], b = (__m512)rows[4 * i + 2 * j + 1];
      twos[j] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    }
    fours[i] = _mm512_shuffle_ps(twos[0], twos[1], 0x44) + _mm512_shuffle_ps(twos[0], twos[1], 0xee);
  }
  const __m512 low =
      _mm512_shuffle_f32x4(fours[0], fours[1], 0x44) + _mm512_shuffle_f32x4(fours[0], fours[1], 0xee);
  const __m512 high =
      _mm512_shuffle_f32x4(fours[2], fours[3], 0x44) + _mm512_shuffle_f32x4(fours[2], fours[3], 0xee);
  return (Vec)(_mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd));
#elif defined(__AVX__)
  __m256 fours[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Vec* r = rows + 4 * i;
    fours[i] = _mm256_hadd_ps(_mm256_hadd_ps((__m256)r[0], (__m256)r[1]),
                              _mm256_hadd_ps((__m256)r[2], (__m256)r[3]));
  }
  return (Vec)(_mm256_permute2f128_ps(fours[0], fours[1], 0x20) +
               _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
#elif defined(__SSE3__)
  return (Vec)_mm_hadd_ps(_mm_hadd_ps((__m128)rows[0], (__m128)rows[1]),
                          _mm_hadd_ps((__m128)rows[2], (__m128)rows[3]));
#elif defined(__aarch64__)
  return (Vec)vpaddq_f32(vpaddq_f32((float32x4_t)rows[0], (float32x4_t)rows[1]),
                         vpaddq_f32((float32x4_t)rows[2], (float32x4_t)rows[3]));
#else
  Vec sums = {};
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) sums[i] += rows[i][j];
  }
  return sums;
#endif
}

// Of floats on any boundary.
AB_INLINE void store_any(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// rows[i][j] becomes rows[j][i].
AB_INLINE void transpose(Vec* rows) {
#if defined(__x86_64__)
  // Squares of 4×4 within 128 bits: lane L of rows[4g + j] is then column 4L + j of the given rows 4g to 4g
  // + 3.
#if defined(__AVX512F__)
#define AB_PS(name) _mm512_##name##_ps
  typedef __m512 Native;
#elif defined(__AVX__)
#define AB_PS(name) _mm256_##name##_ps
  typedef __m256 Native;
#else
#define AB_PS(name) _mm_##name##_ps
  typedef __m128 Native;
#endif
#pragma GCC unroll 4
  for (int g = 0; g < kLanes; g += 4) {
    const Native a = (Native)rows[g], b = (Native)rows[g + 1], c = (Native)rows[g + 2],
                 d = (Native)rows[g + 3];
    const Native ab = AB_PS(unpacklo)(a, b), cd = AB_PS(unpacklo)(c, d);
    const Native ab2 = AB_PS(unpackhi)(a, b), cd2 = AB_PS(unpackhi)(c, d);
    rows[g] = (Vec)AB_PS(shuffle)(ab, cd, 0x44);
    rows[g + 1] = (Vec)AB_PS(shuffle)(ab, cd, 0xee);
    rows[g + 2] = (Vec)AB_PS(shuffle)(ab2, cd2, 0x44);
    rows[g + 3] = (Vec)AB_PS(shuffle)(ab2, cd2, 0xee);
  }
#undef AB_PS
#if defined(__AVX512F__)
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Native a = (Native)rows[j], b = (Native)rows[4 + j], c = (Native)rows[8 + j],
                 d = (Native)rows[12 + j];
    const Native ab = _mm512_shuffle_f32x4(a, b, 0x44), cd = _mm512_shuffle_f32x4(c, d, 0x44);
    const Native ab2 = _mm512_shuffle_f32x4(a, b, 0xee), cd2 = _mm512_shuffle_f32x4(c, d, 0xee);
    rows[j] = (Vec)_mm512_shuffle_f32x4(ab, cd, 0x88);
    rows[4 + j] = (Vec)_mm512_shuffle_f32x4(ab, cd, 0xdd);
    rows[8 + j] = (Vec)_mm512_shuffle_f32x4(ab2, cd2, 0x88);
    rows[12 + j] = (Vec)_mm512_shuffle_f32x4(ab2, cd2, 0xdd);
  }
#elif defined(__AVX__)
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Native a = (Native)rows[j], b = (Native)rows[4 + j];
    rows[j] = (Vec)_mm256_permute2f128_ps(a, b, 0x20);
    rows[4 + j] = (Vec)_mm256_permute2f128_ps(a, b, 0x31);
  }
#endif
#else
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float x = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = x;
    }
  }
#endif
}

// a > b ? a : b, so b where a is NaN.
AB_INLINE Vec max_or_second(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Likewise the lesser.
AB_INLINE Vec min_or_second(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (Vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

// Whether any lane of a is greater than that of b; NaN is not.
AB_INLINE bool any_greater(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b)) != 0;
#else
  const VecInt greater = a > b;
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= greater[i];
  return any != 0;
#endif
}

// e^x for x ≤ 88, to 3e-7 relative from −8 to 12 (9e-7 without FMA) and 4e-6 at the ends, where x's own
// rounding counts; 0 where float32 would be subnormal (with AVX-512, where it would be 0); NaN for NaN.
// 2^n·p(f) with x·log2 e = n + f, |f| ≤ 1/2, p of degree 5. Comparing would take a multiplier's slot on Zen
// 4, as the maximum and vscalefps don't.
AB_INLINE Vec exp_vec(Vec x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kRound = 12582912.0f;  // 1.5·2^23: adding it leaves n in the low bits
#if defined(__AVX512F__)
  constexpr float kZero = -105.0f;  // 2^−151 rounds to 0
#else
  constexpr float kZero = -88.0f;  // n = −127, whose power is 0 below
#endif
  x = max_or_second(splat(kZero), x);
  const Vec shifted = x * kLog2e + kRound;
  const Vec n = shifted - kRound;
  const Vec f = x * kLog2e - n;
  Vec p = f * 0.00132647222f + 0.00967151299f;
  p = p * f + 0.0555073376f;
  p = p * f + 0.240222421f;
  p = p * f + 0.693146978f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (Vec)(((VecInt)shifted + 127) << 23);
#endif
}

// Natural logarithm of a normal x above 0, to 2e-7 of the greater of it and 1; NaN for NaN.
// x = 2^e·m, m in [√½, √2), and log m = 2·artanh((m − 1)/(m + 1)).
AB_INLINE Vec log_vec(Vec x) {
  constexpr int32_t kHalfRoot = 0x3f3504f3;  // the bits of √½
  const VecInt e = ((VecInt)x - kHalfRoot) >> 23;
  const Vec m = (Vec)((VecInt)x - (e << 23));
  const Vec s = (m - 1.0f) / (m + 1.0f);
  const Vec t = s * s;
  Vec p = t * 0.222222222f + 0.285714286f;
  p = p * t + 0.4f;
  p = p * t + 0.666666667f;
  p = p * t + 2.0f;
  const Vec log = __builtin_convertvector(e, Vec) * 0.693147181f + s * p;
  return x == x ? log : x;
}

}  // namespace
}  // namespace attention_bias::cpu
