// What the router's gradients come to, for both backends. With w = sigmoid(z), z = features·weightᵀ + bias,
// and delta = grad_out·w·(1 − w), the gradient by z:
//
//   dfeatures = delta·weight      dweight = Σ_rows delta·features      dbias = Σ_rows delta
#pragma once

#include <cmath>

#include "core/operations.h"

namespace attention_bias {

AB_HD float router_delta(double z, float grad_out) {
  const double e = exp(-(z < 0 ? -z : z));  // w·(1 − w) is even in z; this way nothing cancels out
  return static_cast<float>(static_cast<double>(grad_out) * e / ((1 + e) * (1 + e)));
}

// delta is [rows, outputs].
AB_HD float router_grad_feature(const RouterProblem& p, const float* delta, int64_t row, int64_t i) {
  double sum = 0;
  for (int64_t m = 0; m < p.outputs; ++m) {
    sum +=
        static_cast<double>(delta[row * p.outputs + m]) * static_cast<double>(p.weight[m * p.features + i]);
  }
  return static_cast<float>(sum);
}

// i = features: the bias's, whose feature is 1.
AB_HD float router_grad_weight(const RouterProblem& p, const float* delta, int64_t m, int64_t i) {
  double sum = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const double feature = i < p.features ? static_cast<double>(p.input[row * p.features + i]) : 1.0;
    sum += static_cast<double>(delta[row * p.outputs + m]) * feature;
  }
  return static_cast<float>(sum);
}

// Where that goes.
AB_HD float* router_grad_place(const RouterBackwardProblem& p, int64_t m, int64_t i) {
  return i < p.router.features ? p.grad_weight + m * p.router.features + i : p.grad_bias + m;
}

}  // namespace attention_bias
