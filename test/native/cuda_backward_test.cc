// Gradients of the CUDA backend, emulated: its kernels and launches as plain C++ upon the emulator, against
// the float64 reference. What passes here has not run on a GPU.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "cuda/cuda.h"
#include "cuda/runtime.cuh"
#include "gradient_case.h"

namespace attention_bias::test {
namespace {

double greatest = 0;

// A device of its own, with an order of threads and streams of its own.
std::unique_ptr<Backend> backend(uint64_t seed) {
  cuda::emulated_seed = seed;
  return cuda::make_backend(0);
}

// The same problem with every tensor but the terms' in the device's memory.
class OnDevice {
 public:
  OnDevice(Backend* backend, const BackwardProblem& host) : backend_(backend) {
    backend->prepare();
    source_ = backend->memory();
    problem = host;
    AttentionProblem& p = problem.attention;
    const int64_t heads = p.extent.batch * p.extent.heads;
    const auto rows = [&](HeadRows* tensor, int64_t floats) {
      tensor->data = copy(tensor->data, floats * (tensor->dtype == DType::kBfloat16 ? 2 : 4));
    };
    rows(&p.query, heads * p.extent.queries * p.head_dim);
    rows(&p.key, heads * p.extent.keys * p.head_dim);
    rows(&p.value, heads * p.extent.keys * p.value_dim);
    if (p.out)
      p.out =
          static_cast<float*>(copy(p.out, heads * p.extent.queries * p.value_dim * int64_t{sizeof(float)}));
    if (p.lse) p.lse = static_cast<float*>(copy(p.lse, heads * p.extent.queries * int64_t{sizeof(float)}));
    problem.grad_out = static_cast<const float*>(
        copy(problem.grad_out, heads * p.extent.queries * p.value_dim * int64_t{sizeof(float)}));
    const auto output = [&](float** to, int64_t count) {
      outputs_.push_back({*to, count * int64_t{sizeof(float)}, nullptr});
      outputs_.back().device = allocate(outputs_.back().bytes);
      *to = static_cast<float*>(outputs_.back().device);
    };
    output(&problem.grad_query, heads * p.extent.queries * p.head_dim);
    output(&problem.grad_key, heads * p.extent.keys * p.head_dim);
    output(&problem.grad_value, heads * p.extent.keys * p.value_dim);
    for (size_t i = 0; i < problem.grad_terms.size(); ++i) {
      output(&problem.grad_terms[i], element_count(p.bias->learnables()[i].tensor.shape, ""));
    }
  }
  ~OnDevice() {
    for (void* memory : memory_) source_->release(memory);
  }

  void download() {
    for (const Output& output : outputs_) backend_->copy(output.host, output.device, output.bytes, nullptr);
  }

  BackwardProblem problem;

 private:
  struct Output {
    void* host;
    int64_t bytes;
    void* device;
  };

  void* allocate(int64_t bytes) {
    memory_.push_back(source_->allocate(Place::kDevice, bytes, false, "a test"));
    return memory_.back();
  }
  void* copy(const void* host, int64_t bytes) {
    void* const device = allocate(bytes);
    backend_->copy(device, host, bytes, nullptr);
    return device;
  }

  Backend* backend_;
  std::shared_ptr<MemorySource> source_;
  std::vector<void*> memory_;
  std::vector<Output> outputs_;
};

// From the host's memory, and from the device's with another order of threads: the same bits.
void check_gradients(const Case& c, Random& r, bool give_results = false) {
  Gradients g(c, r);
  if (give_results) g.give_results(c);
  const std::vector<std::vector<double>> want = reference(g.problem);
  const std::string name = context;
  backend(1)->attention_backward(g.problem, nullptr);
  const std::vector<std::vector<float>> first = g.grads;
  for (auto& grad : g.grads) std::fill(grad.begin(), grad.end(), 123.0f);
  const auto other = backend(2);
  {
    OnDevice device(other.get(), g.problem);
    other->attention_backward(device.problem, nullptr);
    device.download();
  }
  for (size_t i = 0; i < want.size(); ++i) {
    context = name + ", " + g.name(i);
    CHECK(std::memcmp(first[i].data(), g.grads[i].data(), first[i].size() * sizeof(float)) == 0);
    const double error = error_of(g.grads[i], want[i]);
    report(error <= kTolerance, __FILE__, __LINE__, "error " + show(error));
    greatest = std::fmax(greatest, error);
  }
  context = name;
}

void shapes() {
  Random r(11);
  for (const int64_t d : {1, 8, 31, 32, 64, 128, 200}) {
    for (const int64_t queries : {1, 5, 49}) {
      context = "head dim " + std::to_string(d) + ", queries " + std::to_string(queries);
      check_gradients(*make_case({1, 2, queries, 131}, d, d, r), r);
    }
  }
  context = "head dim 8, value dim 70";
  check_gradients(*make_case({1, 1, 70, 70}, 8, 70, r), r);
  context = "head dim 257";
  const auto c = make_case({1, 1, 1, 1}, 257, 8, r);
  Gradients g(*c, r);
  CHECK_ERROR(backend(0)->attention_backward(g.problem, nullptr), ErrorCode::kShape, "256");
}

// Several runs of keys, every kind of sum over them, in tensors that batch rows, heads and rows share.
void shared_tensors() {
  Random r(13);
  const Extent e = {2, 2, 20, 1100};
  const auto normal = [&] { return r.normal(); };
  for (int i = 0; i < 16; ++i) {
    const Shape shape = {i & 1 ? 2 : 1, i & 2 ? 2 : 1, i & 4 ? 20 : 1, i & 8 ? 1100 : 1};
    const Shape q = {i & 1 ? 2 : 1, i & 2 ? 2 : 1, 20, 5}, k = {i & 4 ? 2 : 1, i & 8 ? 2 : 1, 1100, 5};
    context = "dense " + to_string(shape) + ", factors " + to_string(q) + " and " + to_string(k);
    auto c = make_case(e, 8, 8, r);
    c->bias->add_dense(c->tensors.f32(shape, "bias", normal), "bias[0]");
    const TensorView query = c->tensors.f32(q, "queryFactors", normal);
    c->bias->add_low_rank(query, c->tensors.f32(k, "keyFactors", normal), 0.3, "bias[1]");
    check_gradients(*c, r);
  }
  context = "factors of rank 40";
  auto c = make_case({1, 2, 20, 130}, 8, 8, r);
  const TensorView query = c->tensors.f32({1, 1, 20, 40}, "queryFactors", normal);
  c->bias->add_low_rank(query, c->tensors.f32({1, 2, 130, 40}, "keyFactors", normal), 0.1, "bias[0]");
  check_gradients(*c, r);
}

// Weights, slopes and tables, of two terms each.
void sums_of_terms() {
  Random r(15);
  const auto uniform = [&] { return r.uniform(0, 1); };
  context = "weights and slopes";
  auto c = make_case({2, 2, 70, 1300}, 8, 8, r);
  Tensors& t = c->tensors;
  for (const int64_t cut : {500, 640}) {
    c->bias->add_modality(
        5,
        {{cut, 1300 - cut, t.f32({2, 70}, "far", uniform)}, {0, cut - 10, t.f32({2, 70}, "near", uniform)}},
        "bias[0]");
  }
  for (const int64_t start : {0, 100}) {
    const TensorView centers = t.f32({2, 70, 2}, "centers", [&] { return r.uniform(0, 30); });
    c->bias->add_spatial(5, {{{start, {30, 40}, centers}, 6, t.f32({2, 70}, "weights", uniform)}}, "bias[2]");
  }
  for (int i = 0; i < 2; ++i) {
    c->bias->add_alibi(t.f32({2}, "slopes", [&] { return r.uniform(0, 0.005f); }), "bias[4]");
  }
  check_gradients(*c, r);
  for (const bool cls : {false, true}) {
    context = cls ? "tables with a class token" : "tables";
    c = make_case({3, 2, 140 + cls, 140 + cls}, 16, 16, r);
    for (const std::vector<int64_t>& window : {std::vector<int64_t>{10, 14}, {70, 2}}) {
      const int64_t rows = (2 * window[0] - 1) * (2 * window[1] - 1) + (cls ? 3 : 0);
      c->bias->add_relative_position(window, c->tensors.f32({rows, 2}, "table", [&] { return r.normal(); }),
                                     cls, "bias[0]");
    }
    c->bias->add_causal(Align::kTopLeft, "bias[2]");
    check_gradients(*c, r);
  }
}

// out and lse that are given save the forward pass and change nothing; bfloat16 is what it widens to.
void given_results() {
  context = "given out and lse";
  Random r(19);
  auto c = make_case({1, 2, 70, 200}, 16, 16, r);
  c->bias->add_alibi(c->tensors.f32({2}, "slopes", [&] { return 0.01f; }), "bias[0]");
  backend(3)->attention(c->problem, nullptr);
  Gradients g(*c, r), again(*c, r), some(*c, r);
  again.problem.grad_out = some.problem.grad_out = g.problem.grad_out;
  again.problem.attention.out = c->out.data();
  again.problem.attention.lse = c->lse.data();
  cuda::launched = {};
  backend(4)->attention_backward(g.problem, nullptr);
  const int64_t mma = cuda::launched.mma;
  cuda::launched = {};
  backend(5)->attention_backward(again.problem, nullptr);
  CHECK(mma > 0);  // the forward pass has tensor cores
  CHECK_EQ(cuda::launched.mma, 0);
  CHECK(cuda::launched.blocks > 0);
  for (size_t i = 0; i < g.grads.size(); ++i) CHECK(g.grads[i] == again.grads[i]);
  context = "no gradients of terms";
  some.problem.grad_terms.clear();
  backend(6)->attention_backward(some.problem, nullptr);
  for (size_t i = 0; i < 3; ++i) CHECK(g.grads[i] == some.grads[i]);
  CHECK_EQ(some.grads[3][0], 123.0f);
  context = "bfloat16";
  const auto narrow = [](const HeadRows& from, size_t count, std::vector<uint16_t>* bits) {
    for (size_t i = 0; i < count; ++i) {
      float& x = const_cast<float*>(from.f32())[i];
      bits->push_back(bias_to_bf16(x));
      x = bf16_to_float(bits->back());
    }
    return HeadRows{bits->data(), DType::kBfloat16};
  };
  std::vector<uint16_t> bits[3];
  const AttentionProblem& p = c->problem;
  again.problem.attention.out = again.problem.attention.lse = nullptr;
  AttentionProblem& narrowed = again.problem.attention;
  narrowed.query = narrow(p.query, g.grads[0].size(), bits + 0);
  narrowed.key = narrow(p.key, g.grads[1].size(), bits + 1);
  narrowed.value = narrow(p.value, g.grads[2].size(), bits + 2);
  backend(7)->attention_backward(g.problem, nullptr);
  backend(8)->attention_backward(again.problem, nullptr);
  const std::vector<std::vector<double>> want = reference(g.problem);
  for (size_t i = 0; i < g.grads.size(); ++i) {
    CHECK(g.grads[i] == again.grads[i]);
    CHECK(error_of(g.grads[i], want[i]) <= kTolerance);
  }
}

void aborts() {
  context = "abort";
  Random r(3);
  auto c = make_case({1, 1, 9, 80}, 8, 8, r);
  Gradients g(*c, r);
  const std::atomic<bool> abort{true};
  CHECK_ERROR(backend(0)->attention_backward(g.problem, &abort), ErrorCode::kAborted, "aborted");
}

}  // namespace
}  // namespace attention_bias::test

int main(int count, char** arguments) {
  using namespace attention_bias::test;
  const bool quick = count > 1 && std::string(arguments[1]) == "quick";
  const auto timed = [](const char* name, const auto& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    printf("%s: %.1f s\n", name, time.count());
  };
  const auto check = [](const Case& c, Random& r) { check_gradients(c, r); };
  timed("random stacks", [&] { random_gradients(quick ? 10 : 60, check); });
  timed("shapes", shapes);
  timed("shared tensors", shared_tensors);
  timed("sums of terms", sums_of_terms);
  timed("hidden NaN", [&] { hidden_nan(check); });
  timed("lowered scores", [&] { lowered_scores(check); });
  timed("opposed terms", [&] { opposed_terms(check); });
  timed("great scores", [&] {
    great_scores([](const Case& c, Random& r) {
      check_gradients(c, r);
      check_gradients(c, r, true);
    });
  });
  timed("covered rows", [&] {
    covered_rows([](const Case& c, Random& r) {
      check_gradients(c, r);
      check_gradients(c, r, true);
    });
  });
  given_results();
  aborts();
  printf("greatest relative error of a gradient: %.3g (emulated)\n", greatest);
  return finish("cuda backward, emulated");
}
