// How far float32 can't help being from the float64 reference: what rounding each score's summands does to an
// attention and to its gradients, to first order. Random programs hold scores of any size, and a score of
// magnitude S has an error of about S·2^-24 whatever a kernel does, which goes into the results as a relative
// error of its probability. Where that is so much that a first order says nothing, the row is `loose`: its
// results are known to be of the right kind (a mean of values, probabilities that sum to 1) and no more.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/operations.h"
#include "core/reference.h"

namespace attention_bias::test {

// Bounds of absolute errors, in the layouts of what they bound.
struct ErrorBounds {
  std::vector<double> out, lse;
  std::vector<double> sum;  // as lse: of the sum of a row's probabilities, where they are computed from lse
  std::vector<double> low, high;  // as out: the least and the greatest value among the keys that the row sees
  std::vector<std::vector<double>> grads;  // query, key, value, then learnables; empty without grad_out
};

constexpr double kUnit = 1.0 / (1 << 24);  // float32's rounding of 1

// Roundings that a summand of a score meets: of its own product, of the sums that it is in (queries × keys
// over head dims come in a few partial sums), of the base taken off, and of the exponent's argument and
// polynomial.
constexpr double kRoundings = 8;

// From here on exp(δ) is no longer 1 + δ.
constexpr double kLoose = 0.03;

// Σ of the magnitudes of what a term's value is made of.
template <class AnyTerm>
double magnitude_of(const AnyTerm& term, int64_t b, int64_t h, int32_t k, int32_t q) {
  const auto column = term.column(b, h, k);
  if constexpr (std::is_same_v<AnyTerm, LowRankTerm>) {
    double sum = 0;
    for (int32_t r = 0; r < term.rank; ++r) {
      sum += std::fabs(static_cast<double>(column.query_factors[static_cast<int64_t>(q) * term.rank + r]) *
                       column.key_factors[r]);
    }
    return sum * std::fabs(static_cast<double>(term.scale));
  } else if constexpr (std::is_same_v<AnyTerm, SpatialTerm>) {
    if (column.weights == nullptr || term.template value<double>(column, q) == 0) return 0;
    return std::fabs(static_cast<double>(column.weights[q]) * term.strength);  // of 1 − distance / radius
  } else if constexpr (std::is_same_v<AnyTerm, ModalityTerm>) {
    return column ? std::fabs(static_cast<double>(term.twice_strength)) : 0;  // of w − 0.5
  } else {
    const double value = term.template value<double>(column, q);
    return std::isinf(value) ? 0 : std::fabs(value);
  }
}

// Of the attention's results, and, with grad_out, of its gradients. All inputs are finite.
inline ErrorBounds error_bounds(const AttentionProblem& p, const float* grad_out) {
  const Extent& e = p.extent;
  const int64_t d_count = p.head_dim, v_count = p.value_dim;
  const size_t keys = static_cast<size_t>(e.keys);
  const double infinity = std::numeric_limits<double>::infinity();
  const double scale = std::fabs(p.scale);
  ErrorBounds bounds;
  const int64_t rows = e.batch * e.heads * e.queries, key_rows = e.batch * e.heads * e.keys;
  const auto zeros = [](int64_t count) { return std::vector<double>(static_cast<size_t>(count)); };
  bounds.out = bounds.low = bounds.high = zeros(rows * v_count);
  bounds.lse = bounds.sum = zeros(rows);
  const std::vector<Learnable> no_learnables;
  const std::vector<Learnable>& learnables = p.bias ? p.bias->learnables() : no_learnables;
  if (grad_out) {
    bounds.grads = {zeros(rows * d_count), zeros(key_rows * d_count), zeros(key_rows * v_count)};
    for (const Learnable& l : learnables) bounds.grads.push_back(zeros(element_count(l.tensor.shape, "")));
  }
  std::vector<double> score(keys), error(keys), weight(keys);
  std::vector<double> dp(keys), dp_magnitude(keys);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / (e.heads * e.queries), h = row / e.queries % e.heads;
    const int32_t q = static_cast<int32_t>(row % e.queries);
    const int64_t first_key = (b * e.heads + h) * e.keys;
    double greatest = -infinity;
    for (int32_t k = 0; k < e.keys; ++k) {
      double bias = 0, magnitude = 0, dot = 0, dot_magnitude = 0;
      if (p.bias) {
        for (const Term& term : p.bias->terms()) {
          visit(term, [&](const auto& t) {
            bias += t.template value<double>(t.column(b, h, k), q);
            magnitude += magnitude_of(t, b, h, k, q);
          });
        }
      }
      score[k] = -infinity;
      if (bias == -infinity) continue;
      for (int64_t d = 0; d < d_count; ++d) {
        const double product =
            static_cast<double>(p.query.at(row * d_count + d)) * p.key.at((first_key + k) * d_count + d);
        dot += product;
        dot_magnitude += std::fabs(product);
      }
      score[k] = p.scale * dot + bias;
      const double all = scale * dot_magnitude + magnitude;
      // Sums beyond float32 end at its greatest (add_bias in terms.h).
      error[k] = kUnit * kRoundings * (all + 1) + std::fmax(0, all - kGreatestFloat);
      greatest = std::fmax(greatest, score[k]);
    }
    if (greatest == -infinity) continue;
    // Weights; a key counts where it could weigh anything within the errors.
    double sum = 0, worst = 0;
    for (int32_t k = 0; k < e.keys; ++k) {
      weight[k] = std::exp(score[k] - greatest);
      sum += weight[k];
    }
    for (int32_t k = 0; k < e.keys; ++k) {
      if (score[k] != -infinity && score[k] + error[k] - greatest > -30) worst = std::fmax(worst, error[k]);
    }
    const bool loose = worst > kLoose;
    double mean_error = 0;
    for (int32_t k = 0; k < e.keys; ++k) {
      weight[k] /= sum;
      if (weight[k] > 0) mean_error += weight[k] * error[k];
    }
    const double lse = greatest + std::log(sum);
    bounds.lse[row] = (loose ? worst + std::log(static_cast<double>(e.keys)) : mean_error) +
                      kUnit * kRoundings * (std::fabs(lse) + 1);
    bounds.sum[row] = std::expm1(worst + bounds.lse[row]);
    for (int64_t d = 0; d < v_count; ++d) {
      double out = 0, out_magnitude = 0, moved = 0, low = infinity, high = -infinity;
      for (int32_t k = 0; k < e.keys; ++k) {
        if (score[k] == -infinity) continue;
        const double value = p.value.at((first_key + k) * v_count + d);
        out += weight[k] * value;
        out_magnitude += weight[k] * std::fabs(value);
        low = std::fmin(low, value);
        high = std::fmax(high, value);
      }
      for (int32_t k = 0; k < e.keys && !loose; ++k) {
        if (weight[k] > 0) {
          moved += weight[k] * error[k] * std::fabs(p.value.at((first_key + k) * v_count + d) - out);
        }
      }
      const double slack = kUnit * kRoundings * out_magnitude;
      const int64_t at = row * v_count + d;
      bounds.out[at] = loose ? high - low + kUnit * kRoundings * std::fmax(std::fabs(low), std::fabs(high))
                             : moved + slack;
      bounds.low[at] = low;
      bounds.high[at] = high;
    }
    if (!grad_out) continue;
    const float* g = grad_out + row * v_count;
    double mean = 0, mean_of_magnitudes = 0, greatest_dp = 0;
    for (int32_t k = 0; k < e.keys; ++k) {
      dp[k] = dp_magnitude[k] = 0;
      if (score[k] == -infinity) continue;
      for (int64_t d = 0; d < v_count; ++d) {
        const double product = static_cast<double>(g[d]) * p.value.at((first_key + k) * v_count + d);
        dp[k] += product;
        dp_magnitude[k] += std::fabs(product);
      }
      mean += weight[k] * dp[k];
      mean_of_magnitudes += weight[k] * dp_magnitude[k];
      greatest_dp = std::fmax(greatest_dp, dp_magnitude[k]);
    }
    double mean_moved = kUnit * kRoundings * mean_of_magnitudes;
    for (int64_t d = 0; d < v_count; ++d) {
      mean_moved += std::fabs(g[d]) * bounds.out[row * v_count + d];
    }
    for (int32_t k = 0; k < e.keys; ++k) {
      if (score[k] == -infinity) continue;
      // Of the probability, relatively: its score, the sum's, and lse's own rounding.
      const double relative = error[k] + bounds.lse[row];
      const bool any = loose || relative > kLoose;
      const bool matters = score[k] + error[k] - greatest > -30;
      const double of_weight = any ? (matters ? 1 : weight[k]) : relative * weight[k];
      const double of_score = weight[k] * (dp[k] - mean);
      const double of_score_error = any ? (matters ? 2 * greatest_dp : std::fabs(of_score))
                                        : relative * std::fabs(of_score) +
                                              weight[k] * (kUnit * kRoundings * dp_magnitude[k] + mean_moved);
      const double moved = of_score_error + kUnit * kRoundings * std::fabs(of_score);
      for (int64_t d = 0; d < d_count; ++d) {
        const int64_t query_at = row * d_count + d, key_at = (first_key + k) * d_count + d;
        bounds.grads[0][query_at] += scale * moved * std::fabs(p.key.at(key_at));
        bounds.grads[1][key_at] += scale * moved * std::fabs(p.query.at(query_at));
      }
      for (int64_t d = 0; d < v_count; ++d) {
        bounds.grads[2][(first_key + k) * v_count + d] +=
            (of_weight + kUnit * kRoundings * weight[k]) * std::fabs(g[d]);
      }
      for (size_t i = 0; i < learnables.size(); ++i) {
        visit(p.bias->terms()[static_cast<size_t>(learnables[i].term)], [&](const auto& term) {
          if constexpr (std::decay_t<decltype(term)>::kLearns) {
            term.template derivatives<double>(b, h, k, q, [&](int32_t slot, int64_t at, double derivative) {
              if (slot != learnables[i].slot) return;
              double of_derivative = std::fabs(derivative);
              // 1 − distance / radius, times the strength
              if constexpr (std::is_same_v<std::decay_t<decltype(term)>, SpatialTerm>) {
                of_derivative = std::fabs(static_cast<double>(term.strength));
              }
              bounds.grads[i + 3][at] +=
                  moved * std::fabs(derivative) + kUnit * kRoundings * std::fabs(of_score) * of_derivative;
            });
          }
        });
      }
    }
  }
  return bounds;
}

}  // namespace attention_bias::test
