// Attentions with random inputs, and the cases that every backend must get right.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "core/operations.h"
#include "core/reference.h"
#include "random_program.h"

namespace attention_bias::test {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  Tensors tensors;
  AttentionProblem problem;
  std::unique_ptr<Program> bias;
  std::vector<float> out, lse;
};

inline std::unique_ptr<Case> make_case(const Extent& e, int64_t d, int64_t dv, Random& r, float spread = 1) {
  auto c = std::make_unique<Case>();
  const auto next = [&] { return spread * r.normal(); };
  const TensorView query = c->tensors.f32({e.batch, e.heads, e.queries, d}, "query", next);
  const TensorView key = c->tensors.f32({e.batch, e.heads, e.keys, d}, "key", next);
  const TensorView value =
      c->tensors.f32({e.batch, e.heads, e.keys, dv}, "value", [&] { return r.normal(); });
  c->problem = attention_problem(query, key, value, NAN);
  c->bias = std::make_unique<Program>(e);
  c->problem.bias = c->bias.get();
  c->out.resize(static_cast<size_t>(e.batch * e.heads * e.queries * dv));
  c->lse.resize(static_cast<size_t>(e.batch * e.heads * e.queries));
  c->problem.out = c->out.data();
  c->problem.lse = c->lse.data();
  return c;
}

// An attention of random size under a random stack of terms; names itself in `context`.
inline std::unique_ptr<Case> random_case(uint32_t seed) {
  Random r(seed);
  const int64_t keys = r.chance(0.15) ? r.integer(1000, 2600) : r.integer(1, 200);
  const int64_t queries = r.chance(0.4) && keys < 300 ? keys : r.integer(1, 120);
  const int64_t d = r.integer(1, 40), dv = r.integer(1, 40);
  auto c = make_case({r.integer(1, 3), r.integer(1, 2), queries, keys}, d, dv, r);
  const std::string kinds = add_random_terms(c->bias.get(), r.integer(0, 4), r, c->tensors);
  context = "seed " + std::to_string(seed) + ", kinds" + kinds;
  return c;
}

// Relative L2 error where both are finite; infinities and NaN must stand in the same places.
inline double error(const std::vector<float>& got, const std::vector<double>& want, bool at_least_one_rms) {
  double difference = 0, norm = 0, n = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) || std::isinf(want[i])) {
      CHECK(std::isnan(want[i]) ? std::isnan(got[i]) : got[i] == want[i]);
      continue;
    }
    difference += std::pow(got[i] - want[i], 2);
    norm += want[i] * want[i];
    ++n;
  }
  const double scale = std::fmax(std::sqrt(norm), at_least_one_rms ? std::sqrt(n) : 0);
  return std::sqrt(difference) / (scale > 0 ? scale : std::fmax(1, std::sqrt(n)));
}

// Whether what a case holds is the reference's result: within the tolerances, and exactly 0 in rows that see
// no key. Returns the greater of the two errors.
inline double check_results(const Case& c, const std::vector<double>& out, const std::vector<double>& lse,
                            double out_tolerance, double lse_tolerance) {
  const double out_error = error(c.out, out, false), lse_error = error(c.lse, lse, true);
  report(out_error <= out_tolerance, __FILE__, __LINE__, "out error " + show(out_error));
  report(lse_error <= lse_tolerance, __FILE__, __LINE__, "lse error " + show(lse_error));
  for (size_t row = 0; row < lse.size(); ++row) {
    if (lse[row] != -kInf) continue;
    const int64_t dv = c.problem.value_dim;
    for (int64_t d = 0; d < dv; ++d) CHECK_EQ(c.out[row * dv + d], 0.0f);
  }
  return std::fmax(out_error, lse_error);
}

// Runs a case twice, by run(0) and run(1), and checks that both leave the same bits.
template <class Run>
void run_twice(Case& c, Run run) {
  std::vector<float> first[2];
  for (int i = 0; i < 2; ++i) {
    std::fill(c.out.begin(), c.out.end(), 123.0f);
    std::fill(c.lse.begin(), c.lse.end(), 123.0f);
    run(i);
    if (i == 0) first[0] = c.out, first[1] = c.lse;
  }
  CHECK(std::memcmp(first[0].data(), c.out.data(), c.out.size() * 4) == 0);
  CHECK(std::memcmp(first[1].data(), c.lse.data(), c.lse.size() * 4) == 0);
}

// The error of a float64 evaluation whose query, key and value were rounded to a precision by `round`: what
// no kernel of that precision can be expected to undercut where scores are large or outputs cancel out.
template <class Round>
double error_of_rounding(const Case& c, const std::vector<double>& out, Round round) {
  AttentionProblem p = c.problem;
  const Extent& e = p.extent;
  const int64_t rows = e.batch * e.heads;
  std::vector<float> copies[3];
  const auto round_all = [&](const HeadRows& tensor, int64_t count, std::vector<float>* copy) {
    for (int64_t i = 0; i < count; ++i) copy->push_back(round(tensor.at(i)));
    return HeadRows{copy->data(), DType::kFloat32};
  };
  p.query = round_all(p.query, rows * e.queries * p.head_dim, &copies[0]);
  p.key = round_all(p.key, rows * e.keys * p.head_dim, &copies[1]);
  p.value = round_all(p.value, rows * e.keys * p.value_dim, &copies[2]);
  std::vector<double> low(out.size()), lse(c.lse.size());
  reference_attention(p, low.data(), lse.data());
  return error(std::vector<float>(low.begin(), low.end()), out, false);
}

// For a test to write to.
inline float* floats(const HeadRows& tensor) { return const_cast<float*>(tensor.f32()); }

// Hides key k of every query but the first.
inline void hide_but_first(Case& c, const std::vector<int64_t>& hidden) {
  const Extent& e = c.problem.extent;
  int64_t i = 0;
  c.bias->add_mask(c.tensors.u8({1, 1, e.queries, e.keys}, "visible",
                                [&] {
                                  const int64_t q = i / e.keys, k = i % e.keys;
                                  ++i;
                                  bool hide = false;
                                  for (const int64_t key : hidden) hide |= key == k;
                                  return static_cast<uint8_t>(q == 0 || !hide);
                                }),
                   "bias[0]");
}

// Calls check(case) for inputs and biases at the edges of what float32 holds.
template <class Check>
void special_cases(Check check) {
  Random r(7);
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const char* where : {"query", "key", "value"}) {
      for (const bool masked : {false, true}) {
        context = std::string(where) + " holds " + show(bad) + (masked ? ", masked" : "");
        auto c = make_case({1, 2, 30, 300}, 16, 24, r);
        if (masked) hide_but_first(*c, {5, 200});
        float* tensor = floats(where[0] == 'q'   ? c->problem.query
                               : where[0] == 'k' ? c->problem.key
                                                 : c->problem.value);
        const int64_t width = where[0] == 'v' ? 24 : 16;
        for (const int64_t row : {int64_t{5}, int64_t{200}}) {
          if (where[0] != 'q' || row < 30) tensor[row * width + 3] = bad;
        }
        check(*c);
      }
    }
  }

  context = "a whole row hidden, with NaN values";
  {
    auto c = make_case({2, 1, 70, 150}, 8, 8, r);
    c->bias->add_padding(c->tensors.u8({2, 150}, "ignore", [n = 0]() mutable { return uint8_t(n++ < 150); }),
                         "bias[0]");
    floats(c->problem.value)[4] = kNan;
    check(*c);
    CHECK_EQ(c->lse[0], -kInf);
  }
  context = "every visible score is -inf";
  {
    auto c = make_case({1, 1, 20, 100}, 1, 8, r);
    for (int64_t i = 0; i < 20; ++i) floats(c->problem.query)[i] = 1;
    for (int64_t i = 0; i < 100; ++i) floats(c->problem.key)[i] = -kInf;
    check(*c);
    CHECK(std::isnan(c->out[0]));
  }
  context = "a finite mask of -FLT_MAX";
  for (const int64_t boundary : {0, 64, 100, 500, 1000}) {  // keys before it are masked; 1000: all
    auto c = make_case({1, 1, 20, 1000}, 8, 8, r);
    int64_t i = 0;
    c->bias->add_dense(
        c->tensors.f32({1, 1, 1, 1000}, "bias", [&] { return i++ < boundary ? -3.4028235e38f : 0.0f; }),
        "bias[0]");
    check(*c);
  }
  context = "scores that rise by 50 a tile, to 0: the base moves at every tile";
  {
    auto c = make_case({1, 1, 50, 1200}, 8, 8, r);
    int64_t i = 0;
    c->bias->add_dense(c->tensors.f32({1, 1, 1, 1200}, "bias",
                                      [&] { return static_cast<float>(i++ / 64 - 1200 / 64) * 50.0f; }),
                       "bias[0]");
    check(*c);
  }
  context = "scores that fall by 50 a tile";
  {
    auto c = make_case({1, 1, 50, 1200}, 8, 8, r);
    int64_t i = 0;
    c->bias->add_dense(
        c->tensors.f32({1, 1, 1, 1200}, "bias", [&] { return -static_cast<float>(i++ / 64) * 50.0f; }),
        "bias[0]");
    check(*c);
  }
}

}  // namespace attention_bias::test
