// The CPU backend against the float64 reference, on every instruction set of this machine, with 1, 2 and 3
// threads.
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"

namespace attention_bias::test {
namespace {

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
      run_twice(c, [&](int) { backend.attention(c.problem, nullptr); });
      greatest_error = std::fmax(greatest_error, check_results(c, out, lse, tolerance, tolerance));
    }
  }
  context = name;
}

void random_stacks() {
  for (uint32_t seed = 0; seed < seeds; ++seed) check_case(*random_case(seed));
}

void bias_rows() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.2) ? r.integer(2000, 5000) : r.integer(1, 300);
    const int64_t queries = r.chance(0.5) && keys < 400 ? keys : r.integer(1, 40);
    Tensors tensors;
    Program bias({r.integer(1, 3), r.integer(1, 3), queries, keys});
    const std::string kinds = add_random_terms(&bias, r.integer(0, 3) + 1, r, tensors);
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
  special_cases([](Case& c) { check_case(c); });
  shapes();
  aborts();
  refusals();
  printf("greatest relative error %.3g\n", greatest_error);
  return finish("cpu");
}
