// The softmax state that every kernel keeps for a query, and the rules at its end.
#pragma once

#include "core/terms.h"

namespace attention_bias {

// Running state of one query; the output that goes with it is Σ exp(score − base)·value, by the same base.
//
//   base  what exponents are taken from: at or somewhat below the greatest score so far (a lazy maximum)
//   sum   Σ exp(score − base) of the visible keys so far
//   seen  whether any key was visible
struct SoftmaxState {
  float base;
  float sum;
  bool seen;
};

// A query that sees no key has out 0 and lse −∞. One that sees keys, all of score −∞, has sum 0 and is NaN,
// as is one with a score of +∞ or NaN.
AB_HD float output_scale(const SoftmaxState& s) {
  if (!s.seen) return 0.0f;
  return s.sum == 0.0f ? __builtin_nanf("") : 1.0f / s.sum;
}

AB_HD float log_sum_exp(const SoftmaxState& s) {
  if (!s.seen) return -__builtin_inff();
  if (s.sum == 0.0f) return __builtin_nanf("");
  return static_cast<float>(static_cast<double>(s.base) + __builtin_log(static_cast<double>(s.sum)));
}

// The same where `base` is in units of log2, Σ 2^(score − base).
AB_HD float log_sum_exp_of_log2(const SoftmaxState& s) {
  if (!s.seen) return -__builtin_inff();
  if (s.sum == 0.0f) return __builtin_nanf("");
  // Where the scaled score did not fit float32 it was cut to the greatest, as masks of -FLT_MAX are.
  if (s.base <= -kGreatestFloat || s.base == kGreatestFloat) return s.base;
  constexpr double kLn2 = 0.69314718055994530942;
  return static_cast<float>(static_cast<double>(s.base) * kLn2 + __builtin_log(static_cast<double>(s.sum)));
}

// From here on float32 rounds what is taken off a score, a base or lse, by more than 2.4e-4.
constexpr float kFar = 4096.0f;

// Whether float32 rounds a row's lse by so much that exp(score − lse) is no probability: where all scores are
// near its least, as those that an additive mask covers are, by more than any logarithm of a sum. Gradients
// then take exp(score − base)/sum, by the greatest of the row's scores. False for NaN and infinities.
AB_HD bool is_far(float lse) {
  const float size = __builtin_fabsf(lse);
  return size > kFar && size <= kGreatestFloat;
}

// exp(score − lse) is exp(score − base)·factor.
struct RowSum {
  float base;    // lse; or the greatest score; or infinity for a row that sees no key
  float factor;  // 1; or 1/Σ exp(score − base)
};

// Whether a part weighs anything in a merge of parts.
AB_HD bool weighs(const SoftmaxState& part) { return part.seen && part.sum != 0.0f; }  // true for NaN

// Factor that takes a part's sum and output from its own base to another.
AB_HD float rebase(const SoftmaxState& part, float base) {
  return weighs(part) ? __builtin_expf(part.base - base) : 0.0f;
}

}  // namespace attention_bias
