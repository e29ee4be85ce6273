// Deformable attention and its gradients against the float64 reference: on the CPU by every instruction set
// of this machine with 1, 2 and 3 threads, and on CUDA, emulated. The reference's gradients against
// differences of its outputs.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "cuda/cuda.h"
#include "cuda/runtime.cuh"

namespace attention_bias::test {
namespace {

constexpr double kTolerance = 1e-6;  // a tenth of the contract's

double greatest_error = 0, greatest_emulated = 0;

std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (const float value : values) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits.push_back(static_cast<uint16_t>(nearest_bf16(word)));
  }
  return bits;
}

// A tensor with a guard on both sides, that nobody may write to.
class Output {
 public:
  explicit Output(int64_t count) : buffer_(static_cast<size_t>(count) + 2 * kGuard, kUntouched) {}
  float* data() { return buffer_.data() + kGuard; }
  // What was written.
  std::vector<float> values() const {
    for (size_t i = 0; i < kGuard; ++i) {
      CHECK_EQ(buffer_[i], kUntouched);
      CHECK_EQ(buffer_[buffer_.size() - 1 - i], kUntouched);
    }
    return {buffer_.begin() + kGuard, buffer_.end() - kGuard};
  }

 private:
  static constexpr size_t kGuard = 19;  // of no vector's size
  static constexpr float kUntouched = 123.0f;
  std::vector<float> buffer_;
};

struct DeformableCase {
  std::vector<std::vector<int64_t>> shapes;
  int64_t batch = 1, queries = 1, heads = 1, points = 1, head_dim = 1;
  bool bf16 = false;
  std::vector<float> value, locations, weights, grad_out;
  std::vector<uint16_t> value_bf16;

  DeformableBackwardProblem problem() {
    int64_t pixels = 0;
    for (const auto& shape : shapes) pixels += shape[0] * shape[1];
    const int64_t levels = static_cast<int64_t>(shapes.size());
    const TensorView value_view = {bf16 ? static_cast<void*>(value_bf16.data()) : value.data(),
                                   bf16 ? DType::kBfloat16 : DType::kFloat32,
                                   {batch, pixels, heads, head_dim},
                                   "value"};
    const TensorView locations_view = {
        locations.data(), DType::kFloat32, {batch, queries, heads, levels, points, 2}, "samplingLocations"};
    const TensorView weights_view = {
        weights.data(), DType::kFloat32, {batch, queries, heads, levels, points}, "attentionWeights"};
    return deformable_backward_problem(
        deformable_problem(value_view, shapes, locations_view, weights_view),
        {grad_out.data(), DType::kFloat32, {batch, queries, heads * head_dim}, "gradOut"});
  }
};

// Draws the tensors of a case whose sizes are set; location(level's size, component) draws locations.
template <class Location>
void draw(DeformableCase& c, Random& r, Location location) {
  int64_t pixels = 0;
  for (const auto& shape : c.shapes) pixels += shape[0] * shape[1];
  const auto normals = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = r.normal();
    return values;
  };
  c.value = normals(c.batch * pixels * c.heads * c.head_dim);
  c.value_bf16 = to_bf16(c.value);
  const int64_t rows = c.batch * c.queries * c.heads;
  c.grad_out = normals(rows * c.head_dim);
  c.weights = normals(rows * static_cast<int64_t>(c.shapes.size()) * c.points);
  for (int64_t row = 0; row < rows; ++row) {
    for (const auto& shape : c.shapes) {
      for (int64_t p = 0; p < c.points; ++p) {
        c.locations.push_back(location(shape[1]));
        c.locations.push_back(location(shape[0]));
      }
    }
  }
}

// Inside, outside, on borders, and far away. Not on pixels' centres, where rounding decides the derivative.
float any_location(Random& r) {
  if (r.chance(0.02)) return std::vector<float>{0, 1, 1e30f, -1e30f, kInf, -kInf, kNan}[r.integer(0, 6)];
  return r.chance(0.7) ? r.uniform(0, 1) : r.uniform(-0.5f, 1.5f);
}

DeformableCase random_deformable(uint32_t seed) {
  Random r(seed);
  DeformableCase c;
  for (int64_t left = r.integer(1, 4); left > 0; --left)
    c.shapes.push_back({r.integer(1, 12), r.integer(1, 12)});
  c.batch = r.integer(1, 2);
  c.queries = r.integer(1, 30);
  c.heads = r.integer(1, 3);
  c.points = r.integer(1, 8);
  c.head_dim = r.chance(0.5) ? r.integer(1, 40)
                             : std::vector<int64_t>{4, 8, 16, 32, 48, 64, 68, 100, 128, 140}[r.integer(0, 9)];
  c.bf16 = r.chance(0.3);
  draw(c, r, [&](int64_t) { return any_location(r); });
  context = "seed " + std::to_string(seed) + ", D " + std::to_string(c.head_dim) + ", P " +
            std::to_string(c.points) + ", levels " + std::to_string(c.shapes.size()) +
            (c.bf16 ? ", bf16" : "");
  return c;
}

// out and the gradients by value, locations and weights.
using Results = std::vector<std::vector<float>>;

Results run(Backend* backend, DeformableBackwardProblem p, AbortFlag abort = nullptr) {
  Output out(p.forward.out_count()), value(p.forward.value_count()), locations(2 * p.forward.samples()),
      weights(p.forward.samples());
  p.forward.out = out.data();
  backend->deformable(p.forward, abort);
  p.grad_value = value.data();
  p.grad_locations = locations.data();
  p.grad_weights = weights.data();
  backend->deformable_backward(p, abort);
  return {out.values(), value.values(), locations.values(), weights.values()};
}

std::vector<std::vector<double>> reference(const DeformableBackwardProblem& p) {
  const DeformableProblem& f = p.forward;
  std::vector<std::vector<double>> want;
  for (const int64_t count : {f.out_count(), f.value_count(), 2 * f.samples(), f.samples()}) {
    want.emplace_back(static_cast<size_t>(count));
  }
  reference_deformable(f, want[0].data());
  reference_deformable_backward(p, want[1].data(), want[2].data(), want[3].data());
  return want;
}

constexpr const char* kNames[] = {"out", "grad_value", "grad_locations", "grad_weights"};

void check_errors(const Results& got, const std::vector<std::vector<double>>& want, double* greatest) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double relative = error(got[i], want[i], false);
    report(relative <= kTolerance, __FILE__, __LINE__, kNames[i] + (" error " + show(relative)));
    *greatest = std::fmax(*greatest, relative);
  }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
bool same_bits(const Results& a, const Results& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) return false;
  }
  return true;
}

// On every instruction set the same bits whatever the threads.
void check_cpu(DeformableCase& c) {
  const DeformableBackwardProblem p = c.problem();
  const auto want = reference(p);
  const std::string name = context;
  for (const std::string& isa : cpu::supported_isas()) {
    Results first;
    for (int threads = 1; threads <= 3; ++threads) {
      context = name + ", " + isa + ", threads " + std::to_string(threads);
      cpu::Backend backend(threads, isa);
      const Results got = run(&backend, p);
      check_errors(got, want, &greatest_error);
      CHECK(same_bits(got, run(&backend, p)));
      if (threads == 1) first = got;
      CHECK(same_bits(got, first));
    }
  }
  context = name;
}

// By atomics the gradient by value may differ with the order of threads, and nothing else; told to be
// deterministic not even that.
void check_emulated(DeformableCase& c) {
  DeformableBackwardProblem p = c.problem();
  const auto want = reference(p);
  const std::string name = context;
  for (const bool deterministic : {false, true}) {
    context = name + ", emulated" + (deterministic ? ", deterministic" : "");
    p.deterministic = deterministic;
    Results first;
    for (const uint64_t seed : {1, 2}) {
      cuda::emulated_seed = seed;
      Results got = run(cuda::make_backend(0).get(), p);
      check_errors(got, want, &greatest_emulated);
      if (!deterministic) got[1].clear();
      if (seed == 1) first = got;
      CHECK(same_bits(got, first));
    }
  }
  context = name;
}

void random_cases(uint32_t on_cpu, uint32_t emulated) {
  int64_t outside = 0, all = 0;
  for (uint32_t seed = 0; seed < on_cpu; ++seed) {
    DeformableCase c = random_deformable(seed);
    check_cpu(c);
    if (seed < emulated) check_emulated(c);
    for (size_t i = 0; i < c.locations.size(); i += 2) {
      outside += bilinear_point<float>({1 << 20, 1 << 20, 0}, c.locations[i], c.locations[i + 1]).inside == 0;
      ++all;
    }
  }
  context = "random cases: samples inside and outside";
  CHECK(outside > all / 20 && outside < all / 2);
}

// Sizes at which kernels divide their work differently.
void shapes() {
  Random r(5);
  const auto location = [&](int64_t) { return r.uniform(-0.1f, 1.1f); };
  for (const int64_t d : {1, 2, 15, 16, 17, 31, 33, 127, 129, 256, 300}) {
    context = "head dim " + std::to_string(d);
    DeformableCase c;
    c.shapes = {{5, 7}, {3, 2}};
    c.queries = 9, c.heads = 2, c.points = 3, c.head_dim = d;
    draw(c, r, location);
    check_cpu(c);
    check_emulated(c);
  }
  for (const int64_t points : {300, 700}) {  // more than are worked out at once
    context = "points " + std::to_string(points);
    DeformableCase c;
    c.shapes = {{4, 4}, {2, 2}};
    c.queries = 3, c.points = points, c.head_dim = 8;
    draw(c, r, location);
    check_cpu(c);
    check_emulated(c);
  }
  context = "one pixel";
  DeformableCase one;
  one.shapes = {{1, 1}};
  one.queries = 40, one.points = 4, one.head_dim = 5;
  draw(one, r, location);
  check_cpu(one);
  check_emulated(one);
  context = "more queries than are worked out at once, on large levels";
  DeformableCase many;
  many.shapes = {{50, 70}, {1, 300}, {300, 1}};
  many.queries = 400, many.points = 2, many.head_dim = 4;
  draw(many, r, location);
  check_cpu(many);
  check_emulated(many);
}

// Places of float32 would be off by 1e-4 pixels here, and the samples by as much of their differences.
void large_maps() {
  context = "maps so large that places take more than float32";
  Random r(6);
  DeformableCase c;
  c.shapes = {{2, 4000}};
  c.queries = 50, c.points = 4, c.head_dim = 3;
  draw(c, r, [&](int64_t) { return r.uniform(0.5f, 1); });
  check_cpu(c);
}

// That the emulator sees what atomics leave open: the check of the deterministic kernel would fail on it.
void atomics_depend_on_order() {
  context = "atomics depend on the order of threads";
  Random r(7);
  DeformableCase c;
  c.shapes = {{1, 1}};
  c.queries = 200, c.points = 4, c.head_dim = 4;
  draw(c, r, [&](int64_t) { return r.uniform(0, 1); });
  const DeformableBackwardProblem p = c.problem();
  std::vector<std::vector<float>> gradients;
  for (const uint64_t seed : {1, 2, 3}) {
    cuda::emulated_seed = seed;
    gradients.push_back(run(cuda::make_backend(0).get(), p)[1]);
  }
  CHECK(!same_bits(gradients[0], gradients[1]) || !same_bits(gradients[0], gradients[2]));
}

// The derivative of Σ grad_out·out by an element, from the reference's outputs at two places, as far apart
// as float32 has them.
double slope(DeformableCase& c, float* element, float step) {
  const float kept = *element, low = kept - step, high = kept + step;
  double sums[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    *element = i == 0 ? low : high;
    const DeformableProblem p = c.problem().forward;
    std::vector<double> out(static_cast<size_t>(p.out_count()));
    reference_deformable(p, out.data());
    for (size_t j = 0; j < out.size(); ++j) sums[i] += out[j] * c.grad_out[j];
  }
  *element = kept;
  return (sums[1] - sums[0]) / (static_cast<double>(high) - low);
}

// out is linear in value and weights, and in each coordinate of a location from centre to centre.
void finite_differences() {
  int64_t moved = 0;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    Random r(seed);
    DeformableCase c;
    for (int64_t left = r.integer(1, 3); left > 0; --left)
      c.shapes.push_back({r.integer(1, 5), r.integer(1, 5)});
    c.queries = r.integer(1, 3), c.heads = r.integer(1, 2), c.points = r.integer(1, 3);
    c.head_dim = r.integer(1, 5);
    draw(c, r, [&](int64_t) { return r.uniform(-0.3f, 1.3f); });
    context = "finite differences, seed " + std::to_string(seed);
    const auto want = reference(c.problem());
    const auto check = [&](double got, double exact) {
      report(std::fabs(got - exact) <= 1e-8 * std::fmax(1, std::fabs(exact)), __FILE__, __LINE__,
             show(got) + " for " + show(exact));
    };
    for (size_t i = 0; i < c.value.size(); ++i) check(slope(c, &c.value[i], 0.5f), want[1][i]);
    for (size_t i = 0; i < c.weights.size(); ++i) check(slope(c, &c.weights[i], 0.5f), want[3][i]);
    const size_t samples = c.shapes.size() * static_cast<size_t>(c.points);
    for (size_t i = 0; i < c.locations.size(); ++i) {
      const auto& shape = c.shapes[i / 2 % samples / static_cast<size_t>(c.points)];
      const double place = static_cast<double>(c.locations[i]) * shape[1 - i % 2] - 0.5;
      if (std::fabs(place - std::round(place)) < 0.01) continue;  // near a centre
      check(slope(c, &c.locations[i], 1.0f / 1024), want[2][i]);
      ++moved;
    }
  }
  context = "finite differences: most locations are clear of centres";
  CHECK(moved > 100);
}

// Four pixels of one channel: 1, 2, 4, 8 in two rows, or in one.
DeformableCase four(bool row, float x, float y) {
  DeformableCase c;
  c.shapes = {row ? std::vector<int64_t>{1, 4} : std::vector<int64_t>{2, 2}};
  c.value = {1, 2, 4, 8};
  c.locations = {x, y};
  c.weights = {3};
  c.grad_out = {1};
  return c;
}

// Calls check(case, all backends' results) so that what follows is said of each backend.
void on_all(DeformableCase c, const std::function<void(const Results&)>& check) {
  const DeformableBackwardProblem p = c.problem();
  const std::string name = context;
  for (const std::string& isa : cpu::supported_isas()) {
    context = name + ", " + isa;
    cpu::Backend backend(1, isa);
    check(run(&backend, p));
  }
  context = name + ", emulated";
  check(run(cuda::make_backend(0).get(), p));
  context = name;
}

void exact_values() {
  struct {
    bool row;
    float x, y, out, by_x, by_y;
  } const cases[] = {
      {false, 0.5f, 0.5f, 3.75f, 2.5f, 4.5f},  // the middle of four
      {false, 0.25f, 0.25f, 1, 1, 3},          // a centre: to the right and below
      {false, 0.75f, 0.75f, 8, -8, -8},        // the last: to the zeros outside
      {false, 0, 0.25f, 0.5f, 1, 1.5f},        // half of a pixel and half of what is outside
      {true, 0.375f, 0.5f, 2, 2, -2},          // one row: below are zeros
      {true, 1.125f, 0.5f, 0, 0, 0},           // a pixel past the last: to more zeros
      {true, -0.125f, 0.5f, 0, 1, 0},          // a pixel before the first: to its value
      {true, 3, 0.5f, 0, 0, 0},
      {true, kNan, 0.5f, 0, 0, 0},
      {true, 0.5f, -kInf, 0, 0, 0},
  };
  for (const auto& c : cases) {
    context = "exact values at " + show(c.x) + ", " + show(c.y);
    on_all(four(c.row, c.x, c.y), [&](const Results& got) {
      CHECK_EQ(got[0][0], 3 * c.out);
      CHECK_EQ(got[3][0], c.out);
      CHECK_EQ(got[2][0], 3 * (c.row ? 4 : 2) * c.by_x);
      CHECK_EQ(got[2][1], 3 * (c.row ? 1 : 2) * c.by_y);
    });
  }
}

// What a sample does not touch must not reach its results, not even as NaN times 0.
void nan_stays_where_it_is() {
  context = "a NaN that no sample touches";
  for (const float x : {0.2f, -3.0f, kNan}) {
    DeformableCase c = four(true, x, 0.5f);
    c.value[0] = x == 0.2f ? 1.0f : kNan;
    c.value[3] = c.value[2] = kNan;
    on_all(c, [&](const Results& got) {
      for (size_t i : {0, 2, 3}) {
        for (const float value : got[i]) CHECK(std::isfinite(value));
      }
    });
  }
  context = "a weight and a gradient that are NaN, of a sample outside";
  DeformableCase c = four(true, 2, 0.5f);
  c.weights = {kNan};
  c.grad_out = {kNan};
  on_all(c, [&](const Results& got) {
    CHECK_EQ(got[0][0], 0.0f);
    for (const float value : got[1]) CHECK_EQ(value, 0.0f);
  });
  context = "a NaN that is sampled";
  DeformableCase sampled = four(true, 0.5f, 0.5f);
  sampled.value[1] = kNan;
  on_all(sampled, [&](const Results& got) {
    for (size_t i : {0, 3}) CHECK(std::isnan(got[i][0]));
  });
}

void aborts() {
  context = "abort";
  DeformableCase c = random_deformable(1);
  const std::atomic<bool> abort{true};
  DeformableBackwardProblem p = c.problem();
  cpu::Backend backend(2, "");
  CHECK_ERROR(run(&backend, p, &abort), ErrorCode::kAborted, "aborted");
  CHECK_ERROR(run(cuda::make_backend(0).get(), p, &abort), ErrorCode::kAborted, "aborted");
  CHECK_ERROR(backend.deformable_backward(p, &abort), ErrorCode::kAborted, "aborted");
}

void refusals() {
  context = "refusals";
  Tensors t;
  const auto zero = [] { return 0.0f; };
  const TensorView value = t.f32({2, 10, 3, 4}, "value", zero);
  const TensorView locations = t.f32({2, 5, 3, 2, 6, 2}, "samplingLocations", zero);
  const TensorView weights = t.f32({2, 5, 3, 2, 6}, "attentionWeights", zero);
  const std::vector<std::vector<int64_t>> good = {{2, 4}, {1, 2}};
  const DeformableProblem p = deformable_problem(value, good, locations, weights);
  CHECK_EQ(p.levels[1].start, 8);
  const auto bad_shapes = [&](std::vector<std::vector<int64_t>> bad, const char* part) {
    CHECK_ERROR(deformable_problem(value, bad, locations, weights), ErrorCode::kValue, part);
  };
  bad_shapes({}, "at least one [h, w] for spatialShapes");
  bad_shapes({{2, 4}, {1, 3}}, "value's 10 pixels for spatialShapes but received [[2, 4], [1, 3]]");
  bad_shapes({{2, 4}, {1, 1}}, "have 9");
  bad_shapes({{2, 4}, {2}}, "[[2, 4], [2]]");
  bad_shapes({{2, 4}, {0, 2}}, "integers of at least 1");
  bad_shapes({{2, 4}, {-1, -2}}, "integers of at least 1");
  bad_shapes({{int64_t{1} << 40, int64_t{1} << 40}}, "value's 10 pixels");
  CHECK_ERROR(deformable_problem(value, {{2, 5}}, locations, weights), ErrorCode::kShape,
              "samplingLocations");
  CHECK_ERROR(deformable_problem(t.f32({2, 10, 12}, "value", zero), good, locations, weights),
              ErrorCode::kShape, "[B, S, H, D] for value");
  CHECK_ERROR(deformable_problem(t.i32({2, 10, 3, 4}, "value", [] { return 0; }), good, locations, weights),
              ErrorCode::kDtype, "float32 or bfloat16 [B, S, H, D] for value");
  CHECK_ERROR(deformable_problem(value, good, t.f32({2, 5, 3, 2, 6, 3}, "samplingLocations", zero), weights),
              ErrorCode::kShape, "samplingLocations");
  CHECK_ERROR(deformable_problem(value, good, locations, t.f32({2, 5, 3, 2, 5}, "attentionWeights", zero)),
              ErrorCode::kShape, "[B, Q, H, L, P] = [2, 5, 3, 2, 6] for attentionWeights");
  CHECK_ERROR(deformable_problem(t.f32({1, 1, 1, 8193}, "value", zero), {{1, 1}}, locations, weights),
              ErrorCode::kShape, "8192");
  CHECK_ERROR(deformable_backward_problem(p, t.f32({2, 5, 3, 4}, "gradOut", zero)), ErrorCode::kShape,
              "[B, Q, H·D] = [2, 5, 12] for gradOut");
}

}  // namespace
}  // namespace attention_bias::test

int main(int count, char** arguments) {
  using namespace attention_bias::test;
  const bool quick = count > 1 && std::string(arguments[1]) == "quick";
  random_cases(quick ? 30 : 150, quick ? 10 : 40);
  shapes();
  large_maps();
  atomics_depend_on_order();
  finite_differences();
  exact_values();
  nan_stays_where_it_is();
  aborts();
  refusals();
  printf("greatest relative errors: %.3g, emulated %.3g\n", greatest_error, greatest_emulated);
  return finish("deformable");
}
