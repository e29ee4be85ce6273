// The CPU backend against the float64 reference, on every instruction set of this machine, with 1, 2 and 3
// threads.
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "random_program.h"

namespace attention_bias::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  Tensors tensors;
  AttentionProblem problem;
  std::unique_ptr<Program> bias;
  std::vector<float> out, lse;
};

std::unique_ptr<Case> make_case(const Extent& e, int64_t d, int64_t dv, Random& r, float spread = 1) {
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

// Relative L2 error where both are finite; infinities and NaN must stand in the same places.
double error(const std::vector<float>& got, const std::vector<double>& want, bool at_least_one_rms) {
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

double greatest_error = 0;
uint32_t seeds = 400;  // fewer with the argument `quick`, for emulated processors

void check_case(Case& c, double tolerance = 2e-6) {
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  const std::string name = context;
  for (const std::string& isa : cpu::supported_isas()) {
    for (int threads = 1; threads <= 3; ++threads) {
      context = name + ", " + isa + ", threads " + std::to_string(threads);
      cpu::Backend backend(threads, isa);
      std::vector<float> first[2];
      for (int run = 0; run < 2; ++run) {
        std::fill(c.out.begin(), c.out.end(), 123.0f);
        std::fill(c.lse.begin(), c.lse.end(), 123.0f);
        backend.attention(c.problem, nullptr);
        if (run == 0) first[0] = c.out, first[1] = c.lse;
      }
      CHECK(std::memcmp(first[0].data(), c.out.data(), c.out.size() * 4) == 0);
      CHECK(std::memcmp(first[1].data(), c.lse.data(), c.lse.size() * 4) == 0);
      const double out_error = error(c.out, out, false), lse_error = error(c.lse, lse, true);
      greatest_error = std::fmax(greatest_error, std::fmax(out_error, lse_error));
      report(out_error <= tolerance, __FILE__, __LINE__, "out error " + show(out_error));
      report(lse_error <= tolerance, __FILE__, __LINE__, "lse error " + show(lse_error));
      for (size_t row = 0; row < lse.size(); ++row) {
        if (lse[row] != -kInf) continue;
        const int64_t dv = c.problem.value_dim;
        for (int64_t d = 0; d < dv; ++d) CHECK_EQ(c.out[row * dv + d], 0.0f);
      }
    }
  }
  context = name;
}

void random_stacks() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.15) ? r.integer(1000, 2600) : r.integer(1, 200);
    const int64_t queries = r.chance(0.4) && keys < 300 ? keys : r.integer(1, 120);
    const int64_t d = r.integer(1, 40), dv = r.integer(1, 40);
    auto c = make_case({r.integer(1, 3), r.integer(1, 2), queries, keys}, d, dv, r);
    const int64_t terms = r.integer(0, 4);
    std::string kinds;
    for (int64_t i = 0; i < terms; ++i) {
      const int kind = static_cast<int>(r.integer(0, kKindsOfTerm - 1));
      if (add_random_term(c->bias.get(), kind, r, c->tensors)) kinds += " " + std::to_string(kind);
    }
    context = "seed " + std::to_string(seed) + ", kinds" + kinds;
    check_case(*c);
  }
}

void bias_rows() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.2) ? r.integer(2000, 5000) : r.integer(1, 300);
    const int64_t queries = r.chance(0.5) && keys < 400 ? keys : r.integer(1, 40);
    Tensors tensors;
    Program bias({r.integer(1, 3), r.integer(1, 3), queries, keys});
    std::string kinds;
    for (int64_t i = r.integer(0, 3); i >= 0; --i) {
      const int kind = static_cast<int>(r.integer(0, kKindsOfTerm - 1));
      if (add_random_term(&bias, kind, r, tensors)) kinds += " " + std::to_string(kind);
    }
    std::vector<double> want(static_cast<size_t>(element_count(bias_shape(bias), "bias")));
    reference_bias(bias, want.data());
    for (const std::string& isa : cpu::supported_isas()) {
      context = "bias, seed " + std::to_string(seed) + ", kinds" + kinds + ", " + isa;
      cpu::Backend backend(2, isa);
      std::vector<float> got(want.size(), 123.0f);
      backend.bias({&bias, got.data()}, nullptr);
      for (size_t i = 0; i < want.size(); ++i) {
        // Terms here stay below 128 (shiftedWindow's -100): 2 ulp of the largest summand are at most 1.6e-5.
        const bool good = std::isinf(want[i]) ? got[i] == want[i] : std::fabs(got[i] - want[i]) <= 1.6e-5;
        if (!good)
          report(false, __FILE__, __LINE__,
                 "element " + std::to_string(i) + ": " + show(got[i]) + " for " + show(want[i]));
      }
      CHECK(true);
    }
  }
}

// Hides key k of every query but the first.
void hide_but_first(Case& c, const std::vector<int64_t>& hidden) {
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

void special_values() {
  Random r(7);
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const char* where : {"query", "key", "value"}) {
      for (const bool masked : {false, true}) {
        context = std::string(where) + " holds " + show(bad) + (masked ? ", masked" : "");
        auto c = make_case({1, 2, 30, 300}, 16, 24, r);
        if (masked) hide_but_first(*c, {5, 200});
        float* tensor = const_cast<float*>(where[0] == 'q'   ? c->problem.query
                                           : where[0] == 'k' ? c->problem.key
                                                             : c->problem.value);
        const int64_t width = where[0] == 'v' ? 24 : 16;
        for (const int64_t row : {int64_t{5}, int64_t{200}}) {
          if (where[0] != 'q' || row < 30) tensor[row * width + 3] = bad;
        }
        check_case(*c);
      }
    }
  }

  context = "a whole row hidden, with NaN values";
  {
    auto c = make_case({2, 1, 70, 150}, 8, 8, r);
    c->bias->add_padding(c->tensors.u8({2, 150}, "ignore", [n = 0]() mutable { return uint8_t(n++ < 150); }),
                         "bias[0]");
    const_cast<float*>(c->problem.value)[4] = kNan;
    check_case(*c);
    CHECK_EQ(c->lse[0], -kInf);
  }
  context = "every visible score is -inf";
  {
    auto c = make_case({1, 1, 20, 100}, 1, 8, r);
    for (int64_t i = 0; i < 20; ++i) const_cast<float*>(c->problem.query)[i] = 1;
    for (int64_t i = 0; i < 100; ++i) const_cast<float*>(c->problem.key)[i] = -kInf;
    check_case(*c);
    CHECK(std::isnan(c->out[0]));
  }
  context = "a finite mask of -FLT_MAX";
  for (const int64_t boundary : {0, 64, 100, 500, 1000}) {  // keys before it are masked; 1000: all
    auto c = make_case({1, 1, 20, 1000}, 8, 8, r);
    int64_t i = 0;
    c->bias->add_dense(
        c->tensors.f32({1, 1, 1, 1000}, "bias", [&] { return i++ < boundary ? -3.4028235e38f : 0.0f; }),
        "bias[0]");
    check_case(*c);
  }
  context = "scores that rise by 50 a tile, to 0: the base moves at every tile";
  {
    auto c = make_case({1, 1, 50, 1200}, 8, 8, r);
    int64_t i = 0;
    c->bias->add_dense(c->tensors.f32({1, 1, 1, 1200}, "bias",
                                      [&] { return static_cast<float>(i++ / 64 - 1200 / 64) * 50.0f; }),
                       "bias[0]");
    check_case(*c);
  }
  context = "scores that fall by 50 a tile";
  {
    auto c = make_case({1, 1, 50, 1200}, 8, 8, r);
    int64_t i = 0;
    c->bias->add_dense(
        c->tensors.f32({1, 1, 1, 1200}, "bias", [&] { return -static_cast<float>(i++ / 64) * 50.0f; }),
        "bias[0]");
    check_case(*c);
  }
}

void shapes() {
  Random r(11);
  for (const int64_t d : {1, 7, 8, 31, 32, 64, 96, 128, 192, 256, 300}) {
    for (const int64_t queries : {1, 5, 49}) {
      context = "head dim " + std::to_string(d) + ", queries " + std::to_string(queries);
      auto c = make_case({1, 2, queries, 131}, d, d, r);
      check_case(*c);
    }
  }
  context = "many keys, one query";
  check_case(*make_case({1, 1, 1, 20000}, 32, 32, r));
  context = "long rows keep their accuracy";
  auto c = make_case({1, 1, 30, 56400}, 32, 32, r);
  check_case(*c, 1e-6);
}

void aborts() {
  context = "abort";
  Random r(3);
  auto c = make_case({1, 4, 900, 8000}, 32, 32, r);
  cpu::Backend backend(2, "");
  std::atomic<bool> abort{true};
  CHECK_ERROR(backend.attention(c->problem, &abort), ErrorCode::kAborted, "aborted");
  abort = false;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    abort = true;
  });
  CHECK_ERROR(backend.attention(c->problem, &abort), ErrorCode::kAborted, "aborted");
  later.join();
  backend.attention(c->problem, nullptr);  // and the backend works on
  CHECK(std::isfinite(c->lse[0]));
}

void refusals() {
  context = "refusals";
  Tensors t;
  const auto zero = [] { return 0.0f; };
  const TensorView q = t.f32({2, 2, 7, 8}, "query", zero), k = t.f32({2, 2, 33, 8}, "key", zero);
  CHECK_ERROR(attention_problem(q, k, t.f32({2, 2, 32, 8}, "value", zero), NAN), ErrorCode::kShape, "value");
  CHECK_ERROR(attention_problem(t.f32({2, 7, 8}, "query", zero), k, k, NAN), ErrorCode::kShape, "query");
  CHECK_ERROR(attention_problem(q, t.f32({2, 2, 33, 9}, "key", zero), k, NAN), ErrorCode::kShape, "key");
  CHECK_ERROR(attention_problem(q, k, k, kInf), ErrorCode::kValue, "scale");
  CHECK_ERROR(attention_problem(t.f32({1, 1, 1, 8193}, "query", zero), t.f32({1, 1, 1, 8193}, "key", zero),
                                t.f32({1, 1, 1, 1}, "value", zero), NAN),
              ErrorCode::kShape, "8192");
  CHECK_ERROR(cpu::Backend(0, ""), ErrorCode::kValue, "threads");
  CHECK_ERROR(cpu::Backend(1, "x86-64-v9"), ErrorCode::kValue, "x86-64-v9");
}

}  // namespace
}  // namespace attention_bias::test

int main(int count, char** arguments) {
  using namespace attention_bias::test;
  if (count > 1 && std::string(arguments[1]) == "quick") seeds = 50;
  random_stacks();
  bias_rows();
  special_values();
  shapes();
  aborts();
  refusals();
  printf("greatest relative error %.3g\n", greatest_error);
  return finish("cpu");
}
