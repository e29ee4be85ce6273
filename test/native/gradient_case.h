// Gradients of a case, their exact values, and what is held against what.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"

namespace attention_bias::test {

constexpr double kTolerance = 1e-5;

// The gradients' memory of a case, filled with what no gradient is.
struct Gradients {
  BackwardProblem problem;
  std::vector<float> grad_out, out, lse;
  std::vector<std::vector<float>> grads;  // query, key, value, then learnables

  Gradients(const Case& c, Random& r) {
    problem.attention = c.problem;
    problem.attention.out = problem.attention.lse = nullptr;
    grad_out.resize(c.out.size());
    for (float& x : grad_out) x = r.normal();
    problem.grad_out = grad_out.data();
    const AttentionProblem& p = c.problem;
    const int64_t rows = p.extent.batch * p.extent.heads;
    const auto add = [&](int64_t count) { grads.emplace_back(static_cast<size_t>(count), 123.0f); };
    add(rows * p.extent.queries * p.head_dim);
    add(rows * p.extent.keys * p.head_dim);
    add(rows * p.extent.keys * p.value_dim);
    for (const Learnable& l : p.bias->learnables()) add(element_count(l.tensor.shape, ""));
    problem.grad_query = grads[0].data();
    problem.grad_key = grads[1].data();
    problem.grad_value = grads[2].data();
    for (size_t i = 3; i < grads.size(); ++i) problem.grad_terms.push_back(grads[i].data());
  }

  // Gives the results of the attention, too, with an lse that is rounded down, as any rounding of it may be.
  void give_results(const Case& c) {
    std::vector<double> exact_out(c.out.size()), exact_lse(c.lse.size());
    reference_attention(problem.attention, exact_out.data(), exact_lse.data());
    out.assign(exact_out.begin(), exact_out.end());
    for (const double x : exact_lse) {
      const float nearest = static_cast<float>(x);
      lse.push_back(nearest == -kInf ? nearest : std::nextafterf(nearest, -kGreatestFloat));
    }
    problem.attention.out = out.data();
    problem.attention.lse = lse.data();
  }

  std::string name(size_t i) const {
    static const char* const kNames[] = {"query", "key", "value"};
    return i < 3 ? kNames[i] : problem.attention.bias->learnables()[i - 3].tensor.name;
  }
};

inline std::vector<std::vector<double>> reference(const BackwardProblem& problem) {
  ReferenceGradients g = reference_backward(problem);
  std::vector<std::vector<double>> all = {g.query, g.key, g.value};
  all.insert(all.end(), g.terms.begin(), g.terms.end());
  return all;
}

// Relative L2 error; the root mean square where the exact value is 0, which float64 may miss by its rounding.
inline double error_of(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) || std::isinf(want[i])) {
      CHECK(!std::isfinite(got[i]));
      continue;
    }
    difference += std::pow(got[i] - want[i], 2);
    norm += want[i] * want[i];
  }
  const double n = static_cast<double>(want.size());
  return std::sqrt(difference / (norm > 1e-20 * n ? norm : n));
}

// Calls check(case, random) for attentions of random size under random stacks of terms.
template <class Check>
void random_gradients(uint32_t seeds, Check check) {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    const auto c = random_case(seed);
    Random r(seed + 1000);
    check(*c, r);
  }
}

// Calls check(case, random) where what masks hide holds what is no number.
template <class Check>
void hidden_nan(Check check) {
  Random r(17);
  for (const char* where : {"query", "key", "value", "none"}) {
    context = std::string("NaN in a hidden ") + where;
    auto c = make_case({1, 2, 60, 300}, 16, 24, r);
    // Key 5 is hidden from all; query 7 sees nothing.
    int64_t i = 0;
    c->bias->add_mask(c->tensors.u8({1, 1, 60, 300}, "visible",
                                    [&] {
                                      const int64_t q = i / 300, k = i % 300;
                                      ++i;
                                      return static_cast<uint8_t>(k != 5 && q != 7);
                                    }),
                      "bias[0]");
    c->bias->add_alibi(c->tensors.f32({2}, "slopes", [&] { return 0.01f; }), "bias[1]");
    if (where[0] == 'q') floats(c->problem.query)[7 * 16 + 3] = kNan;
    if (where[0] == 'k') floats(c->problem.key)[5 * 16 + 3] = kNan;
    if (where[0] == 'v') floats(c->problem.value)[5 * 24 + 3] = kInf;
    check(*c, r);
  }
}

// Calls check(case, random) where spatial terms lower scores: what is left out of them is above lse.
template <class Check>
void lowered_scores(Check check) {
  Random r(23);
  for (const int64_t queries : {1, 50}) {
    for (const double strength : {-2.0, -9.0}) {
      context = "a spatial term of strength " + show(strength) + ", queries " + std::to_string(queries);
      auto c = make_case({2, 2, queries, 81}, 8, 8, r);
      const auto center = [&] { return r.uniform(0, 8); };
      const auto weight = [&] { return r.uniform(0.5f, 1); };
      c->bias->add_spatial(strength,
                           {{{0, {9, 9}, c->tensors.f32({2, queries, 2}, "centers", center)},
                             4.0,
                             c->tensors.f32({2, queries}, "weights", weight)}},
                           "bias[0]");
      check(*c, r);
    }
  }
}

// Calls check(case, random) where several spatial terms raise and lower the same pairs.
template <class Check>
void opposed_terms(Check check) {
  Random r(31);
  for (const double strength : {4.5, 19.0}) {
    for (const int count : {2, 8}) {
      context = std::to_string(count) + " spatial terms of strength " + show(strength) + " and against it";
      auto c = make_case({2, 2, 50, 81}, 8, 8, r);
      const auto center = [&] { return r.uniform(0, 8); };
      const auto weight = [&] { return r.uniform(0.5f, 1); };
      for (int i = 0; i < count; ++i) {
        c->bias->add_spatial(i % 2 == 0 ? strength : -strength,
                             {{{0, {9, 9}, c->tensors.f32({2, 50, 2}, "centers", center)},
                               4.0,
                               c->tensors.f32({2, 50}, "weights", weight)}},
                             "bias[" + std::to_string(i) + "]");
      }
      check(*c, r);
    }
  }
}

// Calls check(case, random) where one key has all of a query's weight, under scores so great that the next
// float32 of lse is many units away.
template <class Check>
void great_scores(Check check) {
  Random r(19);
  for (const float great : {3e9f, -4e10f, 1e12f, -3e30f}) {
    context = "scores of " + show(great);
    auto c = make_case({1, 2, 60, 300}, 16, 16, r, 1e-3f);
    int64_t i = 0;
    const auto next = [&] {
      const int64_t q = i / 300, k = i % 300;
      ++i;
      return great * (k == q * 5 % 300 ? (great > 0 ? 1.0f : 0.1f) : 0.5f);
    };
    c->bias->add_dense(c->tensors.f32({1, 1, 60, 300}, "bias", next), "bias[0]");
    check(*c, r);
  }
}

// Calls check(case, random) where every third query has all its scores moved so far that float32 can't tell
// their keys apart, as an additive mask does to padding: each has its part of the weight.
template <class Check>
void covered_rows(Check check) {
  Random r(29);
  for (const float height : {-kGreatestFloat, -1e9f, 3e7f, 1e5f, -5000.0f}) {
    for (const bool by_key : {false, true}) {
      context = std::string(by_key ? "pairs" : "rows") + " covered by " + show(height);
      auto c = make_case({2, 2, 60, 300}, 16, 16, r, 1e-3f);
      int64_t i = 0;
      const int64_t keys = by_key ? 300 : 1;
      const auto next = [&] { return i++ / keys % 3 == 0 ? height : 0.0f; };
      c->bias->add_dense(c->tensors.f32({1, 1, 60, keys}, "bias", next), "bias[0]");
      const auto visible = [&] { return static_cast<uint8_t>(r.chance(0.8)); };
      c->bias->add_mask(c->tensors.u8({1, 1, 1, 300}, "visible", visible), "bias[1]");
      check(*c, r);
    }
  }
}

}  // namespace attention_bias::test
