// The CUDA backend, emulated: its kernels and launches as plain C++ upon the emulator, in every precision,
// against the float64 reference. What passes here has not run on a GPU.
#include "cuda/cuda.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "emulator.h"

namespace attention_bias::test {
namespace {

constexpr struct {
  Precision precision;
  const char* name;
  double tolerance;
} kPrecisions[] = {
    {Precision::kF32, "f32", 2e-6}, {Precision::kTf32, "tf32", 1e-3}, {Precision::kBf16, "bf16", 1e-2}};

double greatest[3] = {0, 0, 0};

float rounded(float value, Precision precision) {
  const uint32_t bits = precision == Precision::kTf32 ? cuda::to_tf32(value) : cuda::to_bf16(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// The error of a float64 evaluation whose query, key and value were rounded to the precision: what no kernel
// of that precision can be expected to undercut where scores are large.
double error_of_rounding(const Case& c, Precision precision, const std::vector<double>& out) {
  if (precision == Precision::kF32) return 0;
  AttentionProblem p = c.problem;
  const Extent& e = p.extent;
  const int64_t rows = e.batch * e.heads;
  std::vector<float> copies[3];
  const auto round = [&](const float* data, int64_t count, std::vector<float>* copy) {
    for (int64_t i = 0; i < count; ++i) copy->push_back(rounded(data[i], precision));
    return copy->data();
  };
  p.query = round(p.query, rows * e.queries * p.head_dim, &copies[0]);
  p.key = round(p.key, rows * e.keys * p.head_dim, &copies[1]);
  p.value = round(p.value, rows * e.keys * p.value_dim, &copies[2]);
  std::vector<double> low(out.size()), lse(c.lse.size());
  reference_attention(p, low.data(), lse.data());
  return error(std::vector<float>(low.begin(), low.end()), out, false);
}

// `f32_only`: the inputs are such that nothing less can be held against the reference.
void check_case(Case& c, bool f32_only = false) {
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  const std::string name = context;
  for (int i = 0; i < (f32_only ? 1 : 3); ++i) {
    c.problem.precision = kPrecisions[i].precision;
    context = name + ", " + kPrecisions[i].name;
    std::vector<float> first[2];
    for (int seed = 0; seed < 2; ++seed) {  // another order of threads, the same bits
      std::fill(c.out.begin(), c.out.end(), 123.0f);
      std::fill(c.lse.begin(), c.lse.end(), 123.0f);
      cuda::make_backend(seed)->attention(c.problem, nullptr);
      if (seed == 0) first[0] = c.out, first[1] = c.lse;
    }
    CHECK(std::memcmp(first[0].data(), c.out.data(), c.out.size() * 4) == 0);
    CHECK(std::memcmp(first[1].data(), c.lse.data(), c.lse.size() * 4) == 0);
    const double out_error = error(c.out, out, false), lse_error = error(c.lse, lse, true);
    greatest[i] = std::fmax(greatest[i], std::fmax(out_error, lse_error));
    const double low = error_of_rounding(c, c.problem.precision, out);
    report(out_error <= std::fmax(kPrecisions[i].tolerance, 2 * low), __FILE__, __LINE__,
           "out error " + show(out_error));
    report(lse_error <= kPrecisions[i].tolerance, __FILE__, __LINE__, "lse error " + show(lse_error));
    for (size_t row = 0; row < lse.size(); ++row) {
      if (lse[row] != -kInf) continue;
      const int64_t dv = c.problem.value_dim;
      for (int64_t d = 0; d < dv; ++d) CHECK_EQ(c.out[row * dv + d], 0.0f);
    }
  }
  context = name;
}

void random_stacks(uint32_t seeds) {
  for (uint32_t seed = 0; seed < seeds; ++seed) check_case(*random_case(seed));
}

void shapes() {
  Random r(11);
  for (const int64_t d : {1, 8, 31, 32, 64, 96, 128, 192, 256}) {
    context = "head dim " + std::to_string(d);
    check_case(*make_case({1, 2, 49, 131}, d, d, r));
  }
  for (const int64_t d : {7, 32, 64, 96, 128}) {  // blocks of 128 queries, the last with a few
    context = "head dim " + std::to_string(d) + ", two blocks of queries";
    check_case(*make_case({1, 1, 133, 131}, d, d, r));
  }
  context = "head dim 8, value dim 200";
  check_case(*make_case({1, 1, 5, 70}, 8, 200, r));
  context = "many keys, one query";
  check_case(*make_case({1, 1, 1, 9000}, 32, 32, r));
  context = "head dim 257";
  CHECK_ERROR(cuda::make_backend(0)->attention(make_case({1, 1, 1, 1}, 257, 8, r)->problem, nullptr),
              ErrorCode::kShape, "256");
}

// Scores that rise by 5 every 64 keys: the base of a row lags behind its maximum for a while, then follows.
void lagging_bases() {
  Random r(12);
  for (const bool by_rows : {false, true}) {
    context = by_rows ? "scores rise, row constants" : "scores rise, a dense bias";
    auto c = make_case({1, 1, 140, 1200}, 24, 24, r);
    const auto rise = [](int64_t k) { return static_cast<float>(k / 64) * 5.0f - 40.0f; };
    if (by_rows) {  // a segment for each 64 keys
      std::vector<ModalitySegmentSpec> segments;
      for (int64_t start = 0; start < 1200; start += 64) {
        segments.push_back({start, std::min<int64_t>(64, 1200 - start),
                            c->tensors.f32({1, 140}, "w", [&] { return rise(start) / 200 + 0.5f; })});
      }
      c->bias->add_modality(100, segments, "bias[0]");
    } else {
      int64_t i = 0;
      c->bias->add_dense(c->tensors.f32({1, 1, 1, 1200}, "bias", [&] { return rise(i++); }), "bias[0]");
    }
    check_case(*c);
  }
}

void bias_rows(uint32_t seeds) {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.3) ? r.integer(600, 3000) : r.integer(1, 300);
    const int64_t queries = r.chance(0.5) && keys < 400 ? keys : r.integer(1, 30);
    Tensors tensors;
    Program bias({r.integer(1, 3), r.integer(1, 3), queries, keys});
    const std::string kinds = add_random_terms(&bias, r.integer(0, 3) + 1, r, tensors);
    context = "bias, seed " + std::to_string(seed) + ", kinds" + kinds;
    // The CPU kernel evaluates the same in float64 and rounds once: the same bits.
    std::vector<float> want(static_cast<size_t>(element_count(bias_shape(bias), "bias"))),
        got(want.size(), 123.0f);
    cpu::Backend(1, "").bias({&bias, want.data()}, nullptr);
    cuda::make_backend(static_cast<int>(seed))->bias({&bias, got.data()}, nullptr);
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::fabs(got[i] - want[i]) <= 1e-7 * std::fabs(want[i]) || got[i] == want[i]) continue;
      report(false, __FILE__, __LINE__,
             "element " + std::to_string(i) + ": " + show(got[i]) + " for " + show(want[i]));
    }
    CHECK(!want.empty());
  }
}

void router_and_project() {
  context = "router and project";
  Random r(5);
  Tensors t;
  const auto normal = [&] { return r.normal(); };
  const int64_t queries = 301, size = 75;
  RouterProblem router = router_problem(t.f32({2, queries, size}, "features", normal),
                                        t.f32({2, size}, "weight", normal), t.f32({2}, "bias", normal));
  std::vector<float> want(2 * queries * 2), got(want.size());
  router.out = want.data();
  cpu::Backend(1, "").router(router, nullptr);
  router.out = got.data();
  cuda::make_backend(3)->router(router, nullptr);
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::fabs(got[i] - want[i]) < 1e-6);
  CHECK_EQ(cuda::self_test(0), "");
}

void aborts() {
  context = "abort";
  Random r(3);
  auto c = make_case({1, 1, 9, 80}, 8, 8, r);
  const std::atomic<bool> abort{true};
  CHECK_ERROR(cuda::make_backend(0)->attention(c->problem, &abort), ErrorCode::kAborted, "aborted");
}

}  // namespace
}  // namespace attention_bias::test

int main() {
  using namespace attention_bias::test;
  random_stacks(150);
  shapes();
  lagging_bases();
  special_cases([](Case& c) { check_case(c, true); });
  bias_rows(150);
  router_and_project();
  aborts();
  printf("greatest relative errors: f32 %.3g, tf32 %.3g, bf16 %.3g (emulated)\n", greatest[0], greatest[1],
         greatest[2]);
  return finish("cuda, emulated");
}
