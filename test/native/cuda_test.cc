// The CUDA backend, emulated: its kernels and launches as plain C++ upon the emulator, in every precision,
// against the float64 reference. What passes here has not run on a GPU.
#include "cuda/cuda.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "cuda/attention_launch.cuh"
#include "cuda/gather_launch.cuh"
#include "cuda/linear_kernel.cuh"
#include "cuda/runtime.cuh"
#include "multihead_case.h"

namespace attention_bias::test {
namespace {

constexpr struct {
  Precision precision;
  const char* name;
  double tolerance;
} kPrecisions[] = {
    {Precision::kF32, "f32", 2e-6}, {Precision::kTf32, "tf32", 1e-3}, {Precision::kBf16, "bf16", 1e-2}};

double greatest[3] = {0, 0, 0};
double greatest_gathered = 0;

// A device of its own, with an order of threads and streams of its own.
std::unique_ptr<Backend> backend(uint64_t seed) {
  cuda::emulated_seed = seed;
  return cuda::make_backend(0);
}

float rounded(float value, Precision precision) {
  const uint32_t bits = precision == Precision::kTf32 ? cuda::to_tf32(value) : cuda::to_bf16(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// How an attention is run, with a seed for the order of threads.
using Attend = void (*)(const AttentionProblem& problem, int seed);

void by_backend(const AttentionProblem& p, int seed) {
  backend(static_cast<uint64_t>(seed))->attention(p, nullptr);
}

// By the gather kernel, whether or not it pays. An emulated device reads the host's memory.
void by_gathering(const AttentionProblem& p, int seed) {
  cuda::AttentionArguments a = cuda::sizes_of(p);
  a.query = p.query.f32();
  a.key = p.key;
  a.value = p.value;
  a.out = p.out;
  a.lse = p.lse;
  a.terms = p.bias->term_data();
  a.term_count = p.bias->term_count();
  cuda::emulated_seed = static_cast<uint64_t>(seed);
  cuda::Runtime runtime(0, 0);
  cuda::launch_gather(&runtime, p, a);
  runtime.synchronize();
}

// `f32_only`: the inputs are such that nothing less can be held against the reference.
void check_case(Case& c, bool f32_only = false, Attend attend = by_backend) {
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  const std::string name = context;
  // Gathering is float32 whatever the precision; two precisions have its two units of scores.
  const bool gathered = attend == by_gathering;
  for (int i = 0; i < (f32_only ? 1 : gathered ? 2 : 3); ++i) {
    c.problem.precision = kPrecisions[i].precision;
    context = name + ", " + kPrecisions[i].name;
    run_twice(c, [&](int seed) { attend(c.problem, seed); });  // another order of threads
    double& most = gathered ? greatest_gathered : greatest[i];
    const double tolerance = kPrecisions[gathered ? 0 : i].tolerance;
    const auto round = [&](float value) { return rounded(value, c.problem.precision); };
    const double low = gathered || i == 0 ? 0 : error_of_rounding(c, out, round);
    most = std::fmax(most, check_results(c, out, lse, std::fmax(tolerance, 2 * low), tolerance));
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
  CHECK_ERROR(backend(0)->attention(make_case({1, 1, 1, 1}, 257, 8, r)->problem, nullptr), ErrorCode::kShape,
              "256");
}

// Windows and narrow sliding windows under random stacks; some keys and values are NaN, and mostly hidden.
void gathered_windows(uint32_t seeds) {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.1) ? r.integer(1000, 2600) : r.integer(1, 300);
    const int64_t queries = r.chance(0.3) && keys < 300 ? keys : r.integer(1, 60);
    const int64_t d = r.integer(1, 40), dv = r.chance(0.5) ? d : r.integer(1, 40);
    auto c = make_case({r.integer(1, 2), r.integer(1, 3), queries, keys}, d, dv, r, r.chance(0.2) ? 4 : 1);
    const bool windows = r.chance(0.8);
    if (windows) add_random_windows(c->bias.get(), r, c->tensors);
    if (!windows || r.chance(0.3)) add_narrow_window(c->bias.get(), r);
    context = "gathered, seed " + std::to_string(seed) + ", kinds" +
              add_random_terms(c->bias.get(), r.integer(0, 3), r, c->tensors);
    if (r.chance(0.3)) {
      const int64_t k = r.integer(0, keys - 1);
      floats(c->problem.key)[k * d] = kNan;
      floats(c->problem.value)[k * dv] = kNan;
    }
    check_case(*c, false, by_gathering);
  }
}

void gathered_shapes() {
  Random r(17);
  for (const auto& [d, dv] : {std::pair{1, 1},
                              {4, 4},
                              {32, 32},
                              {33, 33},
                              {64, 64},
                              {100, 100},
                              {128, 128},
                              {129, 129},
                              {8, 200},
                              {256, 256}}) {
    context = "gathered, head dim " + std::to_string(d) + ", value dim " + std::to_string(dv);
    auto c = make_case({1, 2, 20, 131}, d, dv, r);
    c->bias->add_sliding_window(30, 20, Align::kTopLeft, "bias[0]");
    check_case(*c, false, by_gathering);
  }
  // By eight warps a row, then by one.
  for (const auto& [extent, right] : {std::pair{Extent{1, 1, 1, 5000}, 4095}, {{1, 4, 30, 500}, 400}}) {
    context = "gathered, keys a row " + std::to_string(right + 1);
    auto c = make_case(extent, 32, 32, r);
    c->bias->add_sliding_window(0, right, Align::kTopLeft, "bias[0]");
    check_case(*c, false, by_gathering);
  }
  context = "gathered, a row that sees nothing";
  auto c = make_case({1, 1, 9, 40}, 8, 8, r);
  c->bias->add_sliding_window(0, 2, Align::kTopLeft, "bias[0]");
  c->bias->add_sliding_window(2, 0, Align::kBottomRight, "bias[1]");
  CHECK_EQ(c->bias->key_bound().most_keys, 0);
  check_case(*c, false, by_gathering);
  CHECK_EQ(c->lse[0], -kInf);
}

// How CMT's shape is cut on an H100's 132 multiprocessors: whole waves of blocks.
void cuts() {
  context = "cuts";
  AttentionProblem p;
  p.extent = {1, 8, 900, 56400};
  p.head_dim = p.value_dim = 32;
  for (const auto& [precision, splits] :
       {std::pair{Precision::kBf16, 6}, {Precision::kTf32, 4}, {Precision::kF32, 8}}) {
    p.precision = precision;
    const cuda::AttentionCut cut = cuda::cut_attention(p, 132);
    CHECK_EQ(cut.splits, splits);
    CHECK_EQ(cut.grid.x, 64);  // 8 heads of 8 tiles of 128 queries
    CHECK(int64_t{cut.keys_per_split} * cut.splits >= p.extent.keys);
    CHECK(int64_t{cut.keys_per_split} * (cut.splits - 1) < p.extent.keys);
  }
}

// The choice between the kernels, and that the backend goes by it.
void choice() {
  context = "choice";
  Random r(23);
  const auto zero = [] { return 0.0f; };
  struct Local {
    int64_t bev_size, camera_size;
    bool in_f32, in_bf16;
  };
  // CMT's shape with MoME's windows, with wider ones, and with windows as wide as the grids.
  for (const Local& local : {Local{5, 15, true, true}, {21, 31, true, false}, {201, 201, false, false}}) {
    Tensors t;
    Program bias({1, 8, 900, 56400});
    bias.add_window({{{0, {180, 180}, t.f32({1, 900, 2}, "bev", zero)}, local.bev_size},
                     {{32400, {6, 40, 100}, t.f32({1, 900, 3}, "camera", zero)}, local.camera_size}},
                    "bias[0]");
    AttentionProblem p;
    p.extent = bias.extent();
    p.head_dim = p.value_dim = 32;
    CHECK(!cuda::gathers(p));  // no bias
    p.bias = &bias;
    CHECK_EQ(cuda::gathers(p), local.in_f32);
    p.precision = Precision::kBf16;
    CHECK_EQ(cuda::gathers(p), local.in_bf16);
    p.head_dim = 257;
    CHECK(!cuda::gathers(p));
  }
  for (const bool narrow : {true, false}) {
    context = narrow ? "choice: gathered" : "choice: tiled";
    auto c = make_case({1, 2, 20, 2000}, 16, 16, r);
    const auto center = [&] { return r.uniform(0, 20); };
    c->bias->add_window({{{0, {20, 50}, c->tensors.f32({1, 20, 2}, "bev", center)}, narrow ? 3 : 39},
                         {{1000, {1, 20, 50}, c->tensors.f32({1, 20, 3}, "camera", zero)}, 1}},
                        "bias[0]");
    cuda::launched = {};
    check_case(*c);
    CHECK(cuda::launched.blocks > 0);
    CHECK_EQ(cuda::launched.mma == 0, narrow);  // tiles are of tensor cores
  }
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
    const int64_t keys = r.chance(0.3) ? r.integer(600, 5000) : r.integer(1, 300);
    const int64_t queries = r.chance(0.5) && keys < 400 ? keys : r.integer(1, 30);
    Tensors tensors;
    Program bias({r.integer(1, 3), r.integer(1, 3), queries, keys});
    const std::string kinds = add_random_terms(&bias, r.integer(0, 3) + 1, r, tensors);
    context = "bias, seed " + std::to_string(seed) + ", kinds" + kinds;
    // The CPU kernel evaluates the same in float64 and rounds once: the same bits.
    std::vector<float> want(static_cast<size_t>(element_count(bias_shape(bias), "bias"))),
        got(want.size(), 123.0f);
    cpu::Backend(1, "").bias({&bias, want.data()}, nullptr);
    backend(seed)->bias({&bias, got.data()}, nullptr);
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
  backend(3)->router(router, nullptr);
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::fabs(got[i] - want[i]) < 1e-6);
  for (const bool first : {false, true}) {
    context = std::string("router backward, outputs ") + (first ? "first" : "last");
    RouterBackwardProblem problem;
    problem.router = router;
    problem.router.outputs_first = first;
    const TensorView grad_out = t.f32({2, queries, 2}, "gradOut", normal);
    problem.grad_out = grad_out.f32();
    const size_t inputs = 2 * queries * size, weights = 2 * size;
    std::vector<float> grads[2];
    for (int i = 0; i < 2; ++i) {
      grads[i].assign(inputs + weights + 2, 123.0f);
      problem.grad_features = grads[i].data();
      problem.grad_weight = grads[i].data() + inputs;
      problem.grad_bias = grads[i].data() + inputs + weights;
      if (i == 0) cpu::Backend(2, "").router_backward(problem, nullptr);
      if (i == 1) backend(3)->router_backward(problem, nullptr);
    }
    for (size_t i = 0; i < grads[0].size(); ++i) {
      CHECK(std::fabs(grads[0][i] - grads[1][i]) <= 1e-6 * (1 + std::fabs(grads[0][i])));
    }
  }
  CHECK_EQ(backend(0)->self_test(), "");
}

double greatest_linear = 0, greatest_multihead[3] = {0, 0, 0};

template <int kMicro>
void by_linear_kernel(const LinearProblem& p) {
  using T = cuda::LinearTile<kMicro>;
  cuda::Runtime runtime(0, 0);
  const int64_t blocks = cuda::ceil_div(p.rows(), T::kSide) * cuda::ceil_div(p.outputs, T::kSide);
  runtime.launch(cuda::linear_kernel<kMicro>, cuda::grid_of(blocks, 1), cuda::kLinearThreads, T::kSharedBytes,
                 p);
  runtime.synchronize();
}

// By the backend, which copies, and by both tiles on memory where it is: an emulated device reads the host's.
void linear_layers(uint32_t seeds) {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    const auto c = random_linear(seed);
    const double errors[] = {check_linear(*c, [&] { backend(seed)->linear(c->problem, nullptr); }),
                             check_linear(*c, [&] { by_linear_kernel<4>(c->problem); }),
                             check_linear(*c, [&] { by_linear_kernel<8>(c->problem); })};
    for (const double found : errors) greatest_linear = std::fmax(greatest_linear, found);
  }
  context = "linear, tiles by size";
  Random r(43);
  for (const int64_t tokens : {384, 200}) {  // 3 multiprocessors are busy with 128 rows each, or are not
    LinearProblem p;
    p.batch = 1;
    p.tokens = tokens;
    p.features = p.outputs = 16;
    const auto c = make_linear(p, false, true, false, r);
    cuda::launched = {};
    check_linear(*c, [&] { backend(1)->linear(c->problem, nullptr); });
    CHECK_EQ(cuda::launched.blocks, tokens == 384 ? 3 : 4);
  }
}

void multihead(uint32_t seeds) {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    const auto c = random_multihead(seed);
    const std::string name = context;
    constexpr double kTolerances[] = {3e-6, 2e-3, 2e-2};
    for (int i = 0; i < 3; ++i) {
      context = name + ", " + kPrecisions[i].name;
      c->problem.precision = kPrecisions[i].precision;
      const auto device = backend(seed);
      for (int time = 0; time < 2; ++time) {
        greatest_multihead[i] =
            std::fmax(greatest_multihead[i],
                      check_multihead(*c, kTolerances[i], [&] { device->multihead(c->problem, nullptr); }));
      }
    }
  }
  check_hidden_rows([](const MultiheadProblem& p) { backend(5)->multihead(p, nullptr); });
  context = "multihead, abort";
  const std::atomic<bool> abort{true};
  CHECK_ERROR(backend(0)->multihead(random_multihead(1)->problem, &abort), ErrorCode::kAborted, "aborted");
}

void aborts() {
  context = "abort";
  Random r(3);
  auto c = make_case({1, 1, 9, 80}, 8, 8, r);
  const std::atomic<bool> abort{true};
  CHECK_ERROR(backend(0)->attention(c->problem, &abort), ErrorCode::kAborted, "aborted");

  // In the middle: four pieces of two heads, of which the last are not launched any more.
  context = "abort between pieces";
  c = make_case({1, 8, 1, 60000}, 8, 8, r);
  const auto device = backend(0);
  cuda::launched = {};
  const auto start = std::chrono::steady_clock::now();
  device->attention(c->problem, nullptr);
  const auto whole = std::chrono::steady_clock::now() - start;
  const int64_t blocks = cuda::launched.blocks;
  std::atomic<bool> late{false};
  cuda::launched = {};
  std::thread timer([&] {
    std::this_thread::sleep_for(whole / 4);
    late = true;
  });
  CHECK_ERROR(device->attention(c->problem, &late), ErrorCode::kAborted, "aborted");
  timer.join();
  CHECK(cuda::launched.blocks < blocks);
}

}  // namespace
}  // namespace attention_bias::test

int main(int count, char** arguments) {
  using namespace attention_bias::test;
  const bool quick = count > 1 && std::string(arguments[1]) == "quick";
  const uint32_t seeds = quick ? 30 : 150;
  random_stacks(seeds);
  shapes();
  lagging_bases();
  special_cases([](Case& c) { check_case(c, true); });
  for (uint32_t seed = 0; seed < (quick ? 15u : 60u); ++seed)
    check_case(*random_case(seed), false, by_gathering);
  gathered_windows(seeds);
  gathered_shapes();
  special_cases([](Case& c) { check_case(c, false, by_gathering); });
  cuts();
  choice();
  bias_rows(seeds);
  router_and_project();
  linear_layers(seeds);
  multihead(quick ? 15 : 60);
  aborts();
  printf("greatest relative errors: f32 %.3g, tf32 %.3g, bf16 %.3g, gathered %.3g (emulated)\n", greatest[0],
         greatest[1], greatest[2], greatest_gathered);
  printf("linear %.3g, multihead: f32 %.3g, tf32 %.3g, bf16 %.3g\n", greatest_linear, greatest_multihead[0],
         greatest_multihead[1], greatest_multihead[2]);
  return finish("cuda, emulated");
}
