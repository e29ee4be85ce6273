#include "core/reference.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace attention_bias {

namespace {

double bias_at(const Program& bias, int64_t b, int64_t h, int64_t q, int64_t k) {
  double sum = 0;
  for (const Term& term : bias.terms()) {
    sum += visit(term, [&](const auto& t) {
      return t.template value<double>(t.column(b, h, static_cast<int32_t>(k)), static_cast<int32_t>(q));
    });
  }
  return sum;
}

}  // namespace

void reference_bias(const Program& bias, double* out) {
  const Shape shape = bias_shape(bias);
  for (int64_t b = 0; b < shape[0]; ++b) {
    for (int64_t h = 0; h < shape[1]; ++h) {
      for (int64_t q = 0; q < shape[2]; ++q) {
        for (int64_t k = 0; k < shape[3]; ++k) *out++ = bias_at(bias, b, h, q, k);
      }
    }
  }
}

namespace {

// One query's probabilities.
struct Row {
  std::vector<double> weight;  // 0 where hidden
  std::vector<bool> visible;
  double lse;  // −∞ where it sees no key
};

// Of the query `row` of [B, H, Q].
void weigh(const AttentionProblem& p, int64_t row, Row* to) {
  const Extent& e = p.extent;
  const double infinity = std::numeric_limits<double>::infinity();
  const int64_t b = row / (e.heads * e.queries), h = row / e.queries % e.heads, q = row % e.queries;
  const int64_t keys = (b * e.heads + h) * e.keys;
  to->weight.assign(static_cast<size_t>(e.keys), 0);
  to->visible.assign(static_cast<size_t>(e.keys), false);
  to->lse = -infinity;
  bool seen = false;
  double greatest = -infinity;
  for (int64_t k = 0; k < e.keys; ++k) {
    const double bias = p.bias ? bias_at(*p.bias, b, h, q, k) : 0;
    if (bias == -infinity) continue;
    to->visible[k] = seen = true;
    double dot = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      dot += static_cast<double>(p.query.at(row * p.head_dim + d)) * p.key.at((keys + k) * p.head_dim + d);
    }
    to->weight[k] = p.scale * dot + bias;
    if (!(to->weight[k] <= greatest)) greatest = to->weight[k];  // NaN wins
  }
  if (!seen) return;
  double sum = 0;
  for (int64_t k = 0; k < e.keys; ++k) {
    if (!to->visible[k]) continue;
    to->weight[k] = std::exp(to->weight[k] - greatest);  // NaN where greatest is infinite
    sum += to->weight[k];
  }
  // Not exp(score − lse): near the ends of float32 even a float64 rounds lse to the greatest score.
  for (double& weight : to->weight) weight /= sum;
  to->lse = greatest + std::log(sum);
}

// The query's output: Σ weight·value.
void average(const AttentionProblem& p, int64_t row, const Row& weights, double* out) {
  for (int64_t d = 0; d < p.value_dim; ++d) out[d] = 0;
  const int64_t keys = row / p.extent.queries * p.extent.keys;
  for (int64_t k = 0; k < p.extent.keys; ++k) {
    if (!weights.visible[k]) continue;
    for (int64_t d = 0; d < p.value_dim; ++d) {
      out[d] += weights.weight[k] * p.value.at((keys + k) * p.value_dim + d);
    }
  }
}

}  // namespace

void reference_attention(const AttentionProblem& p, double* out, double* lse) {
  const Extent& e = p.extent;
  Row weights;
  for (int64_t row = 0; row < e.batch * e.heads * e.queries; ++row) {
    weigh(p, row, &weights);
    average(p, row, weights, out + row * p.value_dim);
    lse[row] = weights.lse;
  }
}

ReferenceGradients reference_backward(const BackwardProblem& problem) {
  const AttentionProblem& p = problem.attention;
  const Extent& e = p.extent;
  const int64_t rows = e.batch * e.heads * e.queries;
  const int64_t key_rows = e.batch * e.heads * e.keys;
  ReferenceGradients g;
  g.query.resize(static_cast<size_t>(rows * p.head_dim));
  g.key.resize(static_cast<size_t>(key_rows * p.head_dim));
  g.value.resize(static_cast<size_t>(key_rows * p.value_dim));
  if (p.bias) {
    for (const Learnable& learnable : p.bias->learnables()) {
      g.terms.emplace_back(static_cast<size_t>(element_count(learnable.tensor.shape, "")));
    }
  }
  Row weights;
  std::vector<double> out(static_cast<size_t>(p.value_dim));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / (e.heads * e.queries), h = row / e.queries % e.heads, q = row % e.queries;
    weigh(p, row, &weights);
    average(p, row, weights, out.data());
    const float* grad_out = problem.grad_out + row * p.value_dim;
    double mean = 0;  // Σ_k p·dp
    for (int64_t d = 0; d < p.value_dim; ++d) {
      mean += static_cast<double>(grad_out[d]) * out[d];
    }
    for (int64_t k = 0; k < e.keys; ++k) {
      if (!weights.visible[k]) continue;
      const int64_t key_row = (b * e.heads + h) * e.keys + k;
      double grad = 0;
      for (int64_t d = 0; d < p.value_dim; ++d) {
        grad += static_cast<double>(grad_out[d]) * p.value.at(key_row * p.value_dim + d);
      }
      const double weight = weights.weight[k];
      const double of_score = weight * (grad - mean);
      for (int64_t d = 0; d < p.head_dim; ++d) {
        g.query[row * p.head_dim + d] += p.scale * of_score * p.key.at(key_row * p.head_dim + d);
        g.key[key_row * p.head_dim + d] += p.scale * of_score * p.query.at(row * p.head_dim + d);
      }
      for (int64_t d = 0; d < p.value_dim; ++d) {
        g.value[key_row * p.value_dim + d] += weight * grad_out[d];
      }
      for (size_t i = 0; i < g.terms.size(); ++i) {
        const Learnable& learnable = p.bias->learnables()[i];
        visit(p.bias->terms()[static_cast<size_t>(learnable.term)], [&](const auto& term) {
          if constexpr (std::decay_t<decltype(term)>::kLearns) {
            term.template derivatives<double>(b, h, static_cast<int32_t>(k), static_cast<int32_t>(q),
                                              [&](int32_t slot, int64_t at, double derivative) {
                                                if (slot == learnable.slot)
                                                  g.terms[i][at] += of_score * derivative;
                                              });
          }
        });
      }
    }
  }
  return g;
}

namespace {

// Calls f(sample, point, level, row of grad_out and out, first element of the head in pixel 0 of value) for
// each sample.
template <class F>
void each_sample(const DeformableProblem& p, F f) {
  int64_t sample = 0;
  for (int64_t row = 0; row < p.rows() * p.heads; ++row) {
    const int64_t b = row / p.heads / p.queries, h = row % p.heads;
    const int64_t head = (b * p.pixels * p.heads + h) * p.head_dim;
    for (const DeformableLevel& level : p.levels) {
      for (int64_t i = 0; i < p.points; ++i, ++sample) {
        const float* location = p.locations + 2 * sample;
        f(sample, bilinear_point<double>(level, location[0], location[1]), level, row * p.head_dim, head);
      }
    }
  }
}

}  // namespace

void reference_deformable(const DeformableProblem& p, double* out) {
  for (int64_t i = 0; i < p.out_count(); ++i) out[i] = 0;
  const int64_t stride = p.heads * p.head_dim;
  each_sample(p, [&](int64_t sample, const BilinearPoint<double>& point, const DeformableLevel&, int64_t row,
                     int64_t head) {
    if (point.inside == 0) return;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      double corners[4];
      for (int c = 0; c < 4; ++c) corners[c] = p.value.at(head + point.corner_pixel(c) * stride + d);
      out[row + d] += p.weights[sample] * sample_point(point, corners).value;
    }
  });
}

void reference_deformable_backward(const DeformableBackwardProblem& backward, double* grad_value,
                                   double* grad_locations, double* grad_weights) {
  const DeformableProblem& p = backward.forward;
  for (int64_t i = 0; i < p.value_count(); ++i) grad_value[i] = 0;
  const int64_t stride = p.heads * p.head_dim;
  each_sample(p, [&](int64_t sample, const BilinearPoint<double>& point, const DeformableLevel& level,
                     int64_t row, int64_t head) {
    const double weight = p.weights[sample];
    double dots[4] = {0, 0, 0, 0};
    for (int c = 0; c < 4; ++c) {
      if (!point.has(c)) continue;
      const int64_t at = head + point.corner_pixel(c) * stride;
      for (int64_t d = 0; d < p.head_dim; ++d) {
        const double gradient = backward.grad_out[row + d];
        dots[c] += gradient * p.value.at(at + d);
        grad_value[at + d] += weight * point.corner_weight(c) * gradient;
      }
    }
    const PointSample<double> by_point = sample_point(point, dots);
    grad_weights[sample] = by_point.value;
    grad_locations[2 * sample] = weight * level.width * by_point.by_x;
    grad_locations[2 * sample + 1] = weight * level.height * by_point.by_y;
  });
}

}  // namespace attention_bias
