// Gradients on the CPU backend against the float64 reference, on every instruction set of this machine, with
// 1, 2 and 3 threads; and the reference against finite differences of the attention.
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "gradient_case.h"

namespace attention_bias::test {
namespace {

double greatest_error = 0;
bool quick = false;  // two threads only and fewer random cases: where it is sanitized

void check_gradients(const Case& c, Random& r, bool give_results = false) {
  Gradients g(c, r);
  if (give_results) g.give_results(c);
  const std::vector<std::vector<double>> want = reference(g.problem);
  const std::string name = context;
  for (const std::string& isa : cpu::supported_isas()) {
    for (int threads = quick ? 2 : 1; threads <= (quick ? 2 : 3); ++threads) {
      cpu::Backend backend(threads, isa);
      std::vector<std::vector<float>> first;
      for (int i = 0; i < 2; ++i) {
        for (auto& grad : g.grads) std::fill(grad.begin(), grad.end(), 123.0f);
        backend.attention_backward(g.problem, nullptr);
        if (i == 0) first = g.grads;
      }
      for (size_t i = 0; i < want.size(); ++i) {
        context = name + ", " + isa + ", threads " + std::to_string(threads) + ", " + g.name(i);
        CHECK(std::memcmp(first[i].data(), g.grads[i].data(), first[i].size() * sizeof(float)) == 0);
        const double error = error_of(g.grads[i], want[i]);
        report(error <= kTolerance, __FILE__, __LINE__, "error " + show(error));
        greatest_error = std::fmax(greatest_error, error);
      }
    }
  }
  context = name;
}

// Σ out·grad_out in float64.
double loss(const AttentionProblem& p, const std::vector<float>& grad_out) {
  const Extent& e = p.extent;
  std::vector<double> out(grad_out.size()), lse(static_cast<size_t>(e.batch * e.heads * e.queries));
  reference_attention(p, out.data(), lse.data());
  double sum = 0;
  for (size_t i = 0; i < out.size(); ++i) sum += out[i] * static_cast<double>(grad_out[i]);
  return sum;
}

// Elements of every input and learnable tensor, moved a little each way.
void finite_differences() {
  int64_t terms = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    Random r(seed);
    const int64_t tokens = r.integer(2, 12);
    const auto c = make_case({2, 2, tokens, r.chance(0.6) ? tokens : r.integer(2, 20)}, 3, 5, r);
    const std::string kinds = add_random_terms(c->bias.get(), r.integer(1, 4), r, c->tensors);
    context = "finite differences, seed " + std::to_string(seed) + ", kinds" + kinds;
    Gradients g(*c, r);
    const std::vector<std::vector<double>> want = reference(g.problem);
    std::vector<float*> inputs = {floats(c->problem.query), floats(c->problem.key), floats(c->problem.value)};
    for (const Learnable& l : c->bias->learnables()) inputs.push_back(static_cast<float*>(l.tensor.data));
    terms += static_cast<int64_t>(inputs.size()) - 3;
    for (size_t i = 0; i < inputs.size(); ++i) {
      for (int repeat = 0; repeat < 6; ++repeat) {
        const int64_t at = r.integer(0, static_cast<int64_t>(want[i].size()) - 1);
        const float old = inputs[i][at];
        if (!std::isfinite(old)) {
          CHECK_EQ(want[i][at], 0.0);  // hides
          continue;
        }
        const float high = old + 1e-3f, low = old - 1e-3f;
        inputs[i][at] = high;
        const double above = loss(c->problem, g.grad_out);
        inputs[i][at] = low;
        const double below = loss(c->problem, g.grad_out);
        inputs[i][at] = old;
        const double slope = (above - below) / (static_cast<double>(high) - static_cast<double>(low));
        const double error = std::fabs(slope - want[i][at]);
        report(error <= 1e-4 * (1 + std::fabs(slope)), __FILE__, __LINE__,
               g.name(i) + "[" + std::to_string(at) + "]: " + show(want[i][at]) + " for " + show(slope));
      }
    }
  }
  CHECK(terms > 60);
}

void shapes() {
  Random r(11);
  for (const int64_t d : {1, 7, 8, 31, 32, 64, 96, 128, 200}) {
    for (const int64_t queries : {1, 5, 49}) {
      context = "head dim " + std::to_string(d) + ", queries " + std::to_string(queries);
      check_gradients(*make_case({1, 2, queries, 131}, d, d, r), r);
    }
  }
  context = "many keys, one query";
  check_gradients(*make_case({1, 1, 1, 20000}, 32, 32, r), r);
  context = "more queries than a run holds";
  check_gradients(*make_case({1, 1, 2600, 150}, 64, 64, r), r);
  context = "long rows";
  auto c = make_case({1, 1, 30, 56400}, 32, 32, r);
  c->bias->add_modality(5,
                        {{0, 32400, c->tensors.f32({1, 30}, "lidar", [&] { return r.uniform(0, 1); })},
                         {32400, 24000, c->tensors.f32({1, 30}, "camera", [&] { return r.uniform(0, 1); })}},
                        "bias[0]");
  check_gradients(*c, r);
}

// Tensors that many pairs share, over several batch rows, heads and runs of keys.
void shared_tensors() {
  Random r(13);
  const Extent e = {2, 3, 40, 4200};
  const auto normal = [&] { return r.normal(); };
  for (int i = 0; i < 16; ++i) {
    const Shape shape = {i & 1 ? 2 : 1, i & 2 ? 3 : 1, i & 4 ? 40 : 1, i & 8 ? 4200 : 1};
    context = "dense " + to_string(shape);
    auto c = make_case(e, 8, 8, r);
    c->bias->add_dense(c->tensors.f32(shape, "bias", normal), "bias[0]");
    check_gradients(*c, r);
  }
  for (int i = 0; i < 16; ++i) {
    const Shape q = {i & 1 ? 2 : 1, i & 2 ? 3 : 1, 40, 5}, k = {i & 4 ? 2 : 1, i & 8 ? 3 : 1, 4200, 5};
    context = "factors " + to_string(q) + " and " + to_string(k);
    auto c = make_case(e, 8, 8, r);
    const TensorView query = c->tensors.f32(q, "queryFactors", normal);
    c->bias->add_low_rank(query, c->tensors.f32(k, "keyFactors", normal), 0.3, "bias[0]");
    check_gradients(*c, r);
  }
  // Biases that are listed, and such that are too great to be.
  for (const double strength : {5.0, -5.0, 25.0}) {
    context = "spatial, strength " + show(strength);
    auto c = make_case(e, 8, 8, r);
    int64_t i = 0;
    const TensorView centers =
        c->tensors.f32({2, 40, 2}, "centers", [&] { return r.uniform(0, i++ % 2 == 0 ? 60.0f : 70.0f); });
    c->bias->add_spatial(
        strength,
        {{{0, {60, 70}, centers},
          6,
          c->tensors.f32({2, 40}, "weights", [&] { return r.chance(0.2) ? 0.0f : r.uniform(0, 1); })}},
        "bias[0]");
    if (strength > 0) c->bias->add_causal(Align::kBottomRight, "bias[1]");
    check_gradients(*c, r);
  }
}

// out and lse that are given save the forward pass and change nothing.
// Many batch rows that have a bias in common, all or most of it, over one tile and over several.
void shared_biases() {
  Random r(19);
  const auto normal = [&] { return r.normal(); };
  for (const int64_t side : {7, 9}) {
    context = "shifted windows of side " + std::to_string(side);
    const int64_t windows = quick && side == 9 ? 4 : 12;  // along each side of the map
    auto c = make_case({windows * windows, 2, side * side, side * side}, 16, 16, r);
    const int64_t rows = (2 * side - 1) * (2 * side - 1);
    c->bias->add_relative_position({side, side}, c->tensors.f32({rows, 2}, "table", normal), false,
                                   "bias[0]");
    c->bias->add_shifted_window({windows * side, windows * side}, {side, side}, {side / 2, side / 2}, -100,
                                "bias[1]");
    check_gradients(*c, r);
  }
  context = "a class token, and terms of batch rows beside";
  auto c = make_case({70, 2, 50, 50}, 16, 16, r);
  c->bias->add_relative_position({7, 7}, c->tensors.f32({172, 2}, "table", normal), true, "bias[0]");
  c->bias->add_dense(c->tensors.f32({1, 2, 50, 50}, "dense", normal), "bias[1]");
  c->bias->add_alibi(c->tensors.f32({2}, "slopes", [&] { return r.uniform(0, 0.1f); }), "bias[2]");
  c->bias->add_modality(3, {{5, 30, c->tensors.f32({70, 50}, "weights", [&] { return r.uniform(0, 1); })}},
                        "bias[3]");
  c->bias->add_padding(c->tensors.u8({70, 50}, "ignore", [&] { return static_cast<uint8_t>(r.chance(0.1)); }),
                       "bias[4]");
  check_gradients(*c, r);
}

void given_results() {
  context = "given out and lse";
  Random r(19);
  auto c = make_case({2, 2, 70, 500}, 16, 16, r);
  cpu::Backend backend(2, "");
  backend.attention(c->problem, nullptr);
  Gradients g(*c, r), again(*c, r);
  again.problem.grad_out = g.problem.grad_out;
  again.problem.attention.out = c->out.data();
  again.problem.attention.lse = c->lse.data();
  backend.attention_backward(g.problem, nullptr);
  backend.attention_backward(again.problem, nullptr);
  for (size_t i = 0; i < 3; ++i) CHECK(g.grads[i] == again.grads[i]);
  // Without the terms' gradients the others are the same.
  context = "no gradients of terms";
  c->bias->add_alibi(c->tensors.f32({2}, "slopes", [&] { return 0.01f; }), "bias[0]");
  Gradients all(*c, r), some(*c, r);
  some.problem.grad_out = all.problem.grad_out;
  some.problem.grad_terms.clear();
  backend.attention_backward(all.problem, nullptr);
  backend.attention_backward(some.problem, nullptr);
  for (size_t i = 0; i < 3; ++i) CHECK(all.grads[i] == some.grads[i]);
  CHECK(some.grads[3][0] == 123.0f);
}

void aborts() {
  context = "abort";
  Random r(3);
  auto c = make_case({1, 2, 300, 3000}, 32, 32, r);
  Gradients g(*c, r);
  cpu::Backend backend(2, "");
  std::atomic<bool> abort{true};
  CHECK_ERROR(backend.attention_backward(g.problem, &abort), ErrorCode::kAborted, "aborted");
}

}  // namespace
}  // namespace attention_bias::test

int main(int count, char** arguments) {
  using namespace attention_bias::test;
  quick = count > 1 && std::string(arguments[1]) == "quick";
  finite_differences();
  random_gradients(quick ? 10 : 120, [](const Case& c, Random& r) { check_gradients(c, r); });
  shapes();
  shared_tensors();
  shared_biases();
  hidden_nan([](const Case& c, Random& r) { check_gradients(c, r); });
  lowered_scores([](const Case& c, Random& r) { check_gradients(c, r); });
  opposed_terms([](const Case& c, Random& r) { check_gradients(c, r); });
  great_scores([](const Case& c, Random& r) {
    check_gradients(c, r);
    check_gradients(c, r, true);
  });
  covered_rows([](const Case& c, Random& r) {
    check_gradients(c, r);
    check_gradients(c, r, true);
  });
  given_results();
  aborts();
  printf("greatest relative error of a gradient: %.3g\n", greatest_error);
  return finish("backward");
}
