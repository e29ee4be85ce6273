// Linear layers and multi-head attentions with random inputs, for every backend.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/multihead.h"
#include "core/reference.h"
#include "random_program.h"

namespace attention_bias::test {

// An output with a guard on both sides.
class Guarded {
 public:
  explicit Guarded(int64_t count) : all_(static_cast<size_t>(count) + 2 * kGuard) { clear(); }

  float* data() { return all_.data() + kGuard; }
  void clear() { std::fill(all_.begin(), all_.end(), kUntouched); }
  std::vector<float> values() const { return {all_.begin() + kGuard, all_.end() - kGuard}; }
  bool whole() const {
    bool good = true;
    for (size_t i = 0; i < kGuard; ++i) {
      good &= all_[i] == kUntouched && all_[all_.size() - 1 - i] == kUntouched;
    }
    return good;
  }

 private:
  static constexpr size_t kGuard = 48;
  static constexpr float kUntouched = 123.0f;
  std::vector<float> all_;
};

struct LinearCase {
  Tensors tensors;
  LinearProblem problem;
  // As much of the sum as there is before anything cancels out, in the output's layout.
  std::vector<double> want, magnitude;
  std::unique_ptr<Guarded> out;
};

inline std::unique_ptr<LinearCase> make_linear(LinearProblem p, bool position, bool bias, bool residual,
                                               Random& r) {
  auto c = std::make_unique<LinearCase>();
  const auto next = [&] { return r.normal(); };
  const auto tensor = [&](const Shape& shape) { return c->tensors.f32(shape, "tensor", next); };
  const TensorView input = tensor({p.rows(), p.features}), weight = tensor({p.outputs, p.features});
  p.input = input.f32();
  p.weight = weight.f32();
  if (position) p.position = tensor({p.rows(), p.features}).f32();
  if (bias) p.bias = tensor({p.outputs}).f32();
  if (residual) p.residual = tensor({p.rows(), p.outputs}).f32();
  c->out = std::make_unique<Guarded>(p.rows() * p.outputs);
  p.out = c->out->data();
  c->problem = p;
  const size_t count = static_cast<size_t>(p.rows() * p.outputs);
  c->magnitude.resize(count);
  LinearProblem absolute = p;
  const auto magnitudes = [&](const float*& values, int64_t n) {
    if (!values) return;
    const float* from = values;
    values = c->tensors.f32({n}, "magnitudes", [&] { return std::fabs(*from++); }).f32();
  };
  magnitudes(absolute.input, p.rows() * p.features);
  magnitudes(absolute.position, p.rows() * p.features);
  magnitudes(absolute.weight, p.outputs * p.features);
  magnitudes(absolute.bias, p.outputs);
  magnitudes(absolute.residual, p.rows() * p.outputs);
  reference_linear(absolute, c->magnitude.data());
  return c;
}

inline std::unique_ptr<LinearCase> random_linear(uint32_t seed) {
  Random r(seed + 700);
  LinearProblem p;
  p.batch = r.integer(1, 3);
  p.tokens = r.chance(0.3) ? r.integer(1, 8) : r.integer(1, 140);
  p.input_heads = r.chance(0.4) ? r.integer(2, 8) : 1;
  p.out_heads = r.chance(0.4) ? r.integer(2, 8) : 1;
  p.features = p.input_heads * r.integer(1, p.input_heads > 1 ? 30 : 140);
  p.outputs = p.out_heads * r.integer(1, p.out_heads > 1 ? 30 : 140);
  if (r.chance(0.1)) p.features *= 8;  // beyond what is summed up at once
  auto c = make_linear(p, p.input_heads == 1 && r.chance(0.5), r.chance(0.7), r.chance(0.4), r);
  context = "linear, seed " + std::to_string(seed) + ", " +
            to_string({p.batch, p.tokens, p.input_heads, p.features, p.out_heads, p.outputs});
  // A row that is not finite stays the only one.
  if (r.chance(0.3)) {
    const int64_t at = r.integer(0, p.rows() * p.features - 1);
    const_cast<float*>(c->problem.input)[at] = r.chance(0.5) ? kNan : r.chance(0.5) ? kInf : -kInf;
  }
  return c;
}

// Runs a linear layer by run() and holds each of its outputs against the reference; returns the greatest
// error over what was summed up.
template <class Run>
double check_linear(LinearCase& c, Run run) {
  constexpr double kTolerance = 1e-6;
  if (c.want.empty()) {
    c.want.resize(c.magnitude.size());
    reference_linear(c.problem, c.want.data());
  }
  c.out->clear();
  run();
  CHECK(c.out->whole());
  const std::vector<float> got = c.out->values();
  double greatest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(c.want[i])) {
      CHECK(std::isnan(c.want[i]) ? std::isnan(got[i]) : got[i] == c.want[i]);
      continue;
    }
    const double error = std::fabs(got[i] - c.want[i]) / c.magnitude[i];
    if (!(error <= kTolerance)) report(false, __FILE__, __LINE__, "error " + show(error));
    greatest = std::fmax(greatest, error);
  }
  return greatest;
}

struct MultiheadCase {
  Tensors tensors;
  MultiheadProblem problem;
  std::unique_ptr<Program> bias;
  std::vector<double> want;
  std::unique_ptr<Guarded> out;
};

inline std::unique_ptr<MultiheadCase> random_multihead(uint32_t seed) {
  Random r(seed + 800);
  auto c = std::make_unique<MultiheadCase>();
  const int64_t heads = r.integer(1, 8), dim = r.integer(1, 24), e = heads * dim;
  const int64_t batch = r.integer(1, 3), queries = r.chance(0.2) ? r.integer(1, 3) : r.integer(1, 70);
  // The same tensor in several roles: keys and values alike, or all three.
  const bool self = r.chance(0.3), memory = r.chance(0.5);
  const int64_t keys = self ? queries : r.chance(0.1) ? r.integer(1000, 2200) : r.integer(1, 150);
  const auto tensor = [&](const Shape& shape, const char* name) {
    return c->tensors.f32(shape, name, [&] { return r.normal(); });
  };
  const auto weight = [&](const Shape& shape, const char* name) {
    return c->tensors.f32(shape, name, [&] { return r.normal() / std::sqrt(static_cast<float>(e)); });
  };
  const TensorView query = tensor({batch, queries, e}, "query");
  const TensorView key = self ? query : tensor({batch, keys, e}, "key");
  const TensorView value = self || memory ? key : tensor({batch, keys, e}, "value");
  const TensorView query_pos = tensor({batch, queries, e}, "queryPos");
  const TensorView key_pos = self ? query_pos : tensor({batch, keys, e}, "keyPos");
  const TensorView in_weight = weight({3 * e, e}, "inProjWeight"), in_bias = tensor({3 * e}, "inProjBias");
  const TensorView out_weight = weight({e, e}, "outProjWeight"), out_bias = tensor({e}, "outProjBias");
  const auto maybe = [&](const TensorView& view) { return r.chance(0.5) ? &view : nullptr; };
  c->problem = multihead_problem({&query, &key, &value, maybe(query_pos), maybe(key_pos), &in_weight,
                                  maybe(in_bias), &out_weight, maybe(out_bias)},
                                 heads);
  c->problem.identity = r.chance(0.5);
  c->bias = std::make_unique<Program>(c->problem.extent);
  const std::string kinds = add_random_terms(c->bias.get(), r.integer(0, 3), r, c->tensors);
  c->problem.bias = c->bias.get();
  c->out = std::make_unique<Guarded>(batch * queries * e);
  c->problem.out = c->out->data();
  c->want.resize(static_cast<size_t>(batch * queries * e));
  reference_multihead(c->problem, c->want.data());
  context = "multihead, seed " + std::to_string(seed) + ", " + to_string({batch, heads, queries, keys, e}) +
            ", kinds" + kinds;
  return c;
}

// Runs it and holds the output against the reference; returns the error, of outputs whose root mean square
// counts as 1 at least, since few outputs may cancel out.
template <class Run>
double check_multihead(MultiheadCase& c, double tolerance, Run run) {
  c.out->clear();
  run();
  CHECK(c.out->whole());
  const double found = error(c.out->values(), c.want, true);
  report(found <= tolerance, __FILE__, __LINE__, "error " + show(found));
  return found;
}

// All of a query hidden: the out-projection's bias, and the query itself where it is added.
template <class Run>
void check_hidden_rows(Run run) {
  Random r(77);
  for (const bool identity : {false, true}) {
    context = std::string("multihead, hidden rows") + (identity ? ", identity" : "");
    Tensors t;
    const auto next = [&] { return r.normal(); };
    const TensorView query = t.f32({1, 5, 6}, "query", next), key = t.f32({1, 9, 6}, "key", next);
    const TensorView in_weight = t.f32({18, 6}, "inProjWeight", next),
                     pos = t.f32({1, 5, 6}, "queryPos", next);
    const TensorView out_weight = t.f32({6, 6}, "outProjWeight", next), bias = t.f32({6}, "bias", next);
    MultiheadProblem p =
        multihead_problem({&query, &key, &key, &pos, nullptr, &in_weight, nullptr, &out_weight, &bias}, 2);
    Program hidden(p.extent);
    int64_t q = 0;
    hidden.add_mask(t.u8({1, 1, 5, 1}, "visible", [&] { return static_cast<uint8_t>(q++ != 3); }), "bias[0]");
    std::vector<float> out(30);
    p.identity = identity;
    p.bias = &hidden;
    p.out = out.data();
    run(p);
    for (int64_t i = 0; i < 6; ++i) {
      CHECK_EQ(out[18 + i], bias.f32()[i] + (identity ? query.f32()[18 + i] : 0.0f));
      CHECK(out[i] != bias.f32()[i]);
    }
  }
}

}  // namespace attention_bias::test
