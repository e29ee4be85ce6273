// Whether the CPU backend, by every instruction set that this binary has and this machine runs, gives a
// case's attention and gradients as the float64 reference has them.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention_case.h"
#include "core/softmax.h"
#include "cpu/backend.h"
#include "error_bounds.h"
#include "fuzz.h"
#include "gradient_case.h"

namespace attention_bias::fuzz {

using test::show;

constexpr double kOutTolerance = 2e-6, kGradTolerance = 1e-5;  // of float32

inline cpu::Backend& backend_of(const std::string& isa, int threads) {
  static std::map<std::pair<std::string, int>, std::unique_ptr<cpu::Backend>> backends;
  auto& backend = backends[{isa, threads}];
  if (!backend) backend = std::make_unique<cpu::Backend>(threads, isa);
  return *backend;
}

// Relative L2 error within the tolerance, or within what float32 can't help (error_bounds.h). `norm` is what
// errors are relative to.
inline void require_close(const std::vector<float>& got, const std::vector<double>& want,
                          const std::vector<double>& bounds, double tolerance, double least_norm,
                          const std::string& name, bool is_gradient = false) {
  double difference = 0, norm = 0, bound = 0, finite = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(want[i])) continue;  // a hidden row's lse
    // A gradient that float32 does not hold, or whose parts it does not.
    if (is_gradient && std::fmax(std::fabs(want[i]), bounds[i]) > kGreatestFloat / 4) continue;
    const double exact = std::fmax(-kGreatestFloat, std::fmin(kGreatestFloat, want[i]));
    if (!std::isfinite(got[i])) {
      throw Failure(name + " holds " + show(got[i]) + " at element " + std::to_string(i) + ", not " +
                    show(exact));
    }
    difference += std::pow(got[i] - exact, 2);
    norm += std::pow(exact, 2);
    bound += std::pow(bounds[i], 2);
    ++finite;
  }
  norm = std::fmax(std::sqrt(norm), least_norm * std::sqrt(finite));
  difference = std::sqrt(difference);
  // Products below float32's least are flushed to 0, or kept with fewer digits.
  constexpr double kSubnormal = 1e-35;
  double allowed = std::fmax(norm > 0 ? tolerance * norm : tolerance * std::sqrt(finite), std::sqrt(bound));
  allowed = std::fmax(allowed, kSubnormal * std::sqrt(finite));
  if (difference <= allowed) return;
  throw Failure(name + " has an error of " + show(difference / norm) + " relative to " + show(norm) +
                ", where " + show(allowed / norm) + " is allowed");
}

// Every row is a mean of the values that it sees, or 0 where it sees none.
inline void require_means(const test::Case& c, const std::vector<double>& lse,
                          const test::ErrorBounds& bounds, const std::string& name) {
  const int64_t dv = c.problem.value_dim;
  for (size_t row = 0; row < lse.size(); ++row) {
    const bool hidden = lse[row] == -test::kInf;
    if (hidden != (c.lse[row] == -test::kInf)) {
      throw Failure(name + ", row " + std::to_string(row) + " " + (hidden ? "sees no key" : "sees keys") +
                    ", but its lse is " + show(c.lse[row]));
    }
    for (size_t at = row * dv; at < (row + 1) * dv; ++at) {
      const double low = bounds.low[at], high = bounds.high[at];
      const double slack = 1e-5 * std::fmax(std::fabs(low), std::fabs(high)) + 1e-30;
      if (c.out[at] >= low - slack && c.out[at] <= high + slack) continue;  // 0 where hidden
      throw Failure(name + ", row " + std::to_string(row) + ": out holds " + show(c.out[at]) +
                    ", which is no mean of values from " + show(low) + " to " + show(high));
    }
  }
}

// Probabilities sum to 1: what value's gradients sum to over the keys is gradOut summed over the rows that
// see any. Rounded scores and lse move a row's sum, but not where lse is far; where float32 can't tell the
// keys' scores apart and lse is not, each key may have a probability of up to 1, and no more.
inline void require_conserved(const test::Gradients& g, const std::vector<double>& lse,
                              const test::ErrorBounds& bounds, const std::string& name) {
  const AttentionProblem& p = g.problem.attention;
  const Extent& e = p.extent;
  const int64_t dv = p.value_dim;
  for (int64_t head = 0; head < e.batch * e.heads; ++head) {
    for (int64_t d = 0; d < dv; ++d) {
      double got = 0, want = 0, allowed = 0;
      for (int64_t k = 0; k < e.keys; ++k) got += g.grads[2][(head * e.keys + k) * dv + d];
      for (int64_t q = 0; q < e.queries; ++q) {
        const int64_t row = head * e.queries + q;
        if (lse[row] == -test::kInf) continue;
        want += g.grad_out[row * dv + d];
        const double moved = is_far(static_cast<float>(lse[row])) ? 0
                             : bounds.sum[row] < 0.5              ? bounds.sum[row]
                                                                  : static_cast<double>(e.keys);
        allowed += (1e-4 + moved) * std::fabs(g.grad_out[row * dv + d]);
      }
      if (std::fabs(got - want) <= allowed) continue;  // false for NaN
      throw Failure(name + ", head " + std::to_string(head) + ": the gradient of value sums to " + show(got) +
                    " over the keys, not " + show(want) + ": probabilities don't sum to 1");
    }
  }
}

// All inputs of the case are finite.
inline void require_agreement(test::Case& c, test::Random& r, int threads, const std::string& context) {
  test::Gradients g(c, r);
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  const std::vector<std::vector<double>> grads = test::reference(g.problem);
  const test::ErrorBounds bounds = test::error_bounds(c.problem, g.problem.grad_out);
  for (const std::string& isa : cpu::supported_isas()) {
    cpu::Backend& backend = backend_of(isa, threads);
    const std::string name = context + ", " + isa + ", threads " + std::to_string(threads);
    std::fill(c.out.begin(), c.out.end(), 123.0f);
    std::fill(c.lse.begin(), c.lse.end(), 123.0f);
    backend.attention(c.problem, nullptr);
    require_means(c, lse, bounds, name);
    require_close(c.out, out, bounds.out, kOutTolerance, 0, name + ": out");
    require_close(c.lse, lse, bounds.lse, kOutTolerance, 1, name + ": lse");
    for (auto& grad : g.grads) std::fill(grad.begin(), grad.end(), 123.0f);
    backend.attention_backward(g.problem, nullptr);
    require_conserved(g, lse, bounds, name);
    for (size_t i = 0; i < grads.size(); ++i) {
      require_close(g.grads[i], grads[i], bounds.grads[i], kGradTolerance, 0,
                    name + ": the gradient of " + g.name(i), true);
    }
  }
}

// What a term's tensor may be changed to: at the edges of its domain and of float32.
inline void change_values(test::Random& r, float greatest, std::vector<float>* values) {
  static constexpr float kMagnitudes[] = {0.0f, -0.0f, 1e-45f, 1e-30f, 0.5f,  1.0f,  30.0f, 100.0f,
                                          1e3f, 1e4f,  1e6f,   1e9f,   1e15f, 1e20f, 1e30f, kGreatestFloat};
  const auto value = [&] {
    const float magnitude = std::min(kMagnitudes[r.integer(0, 15)], greatest);
    return r.chance(0.5) ? -magnitude : magnitude;
  };
  const int64_t count = static_cast<int64_t>(values->size());
  switch (r.integer(0, 15)) {
    case 0:
      (*values)[r.integer(0, count - 1)] = value();
      break;
    case 1: {  // from one on
      const int64_t from = r.integer(0, count - 1);
      std::fill(values->begin() + from, values->end(), value());
      break;
    }
    case 2: {  // larger
      const float factor = std::pow(10.0f, static_cast<float>(r.integer(-3, 8)));
      for (float& x : *values) x = std::fmax(-greatest, std::fmin(greatest, x * factor));
      break;
    }
    case 3: {  // steps
      const int64_t step = r.integer(1, 100);
      const float height = value();
      for (int64_t i = 0; i < count; ++i) {
        const float x = (*values)[i] + height * static_cast<float>(i / step);
        (*values)[i] = std::fmax(-greatest, std::fmin(greatest, x));
      }
      break;
    }
    default:  // as they are
      break;
  }
}

}  // namespace attention_bias::fuzz
