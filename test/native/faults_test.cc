// Faults in the middle of an operation, at every place where one can strike: the n-th request for memory
// fails, or the n-th call of an emulated device, for each n until the operation passes. Each time the
// operation ends by an error, the backend then computes the same bits, and nothing stays behind.
#include "faults.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/deformable.h"
#include "core/router.h"
#include "cpu/backend.h"
#include "cuda/cuda.h"
#include "gradient_case.h"
#include "multihead_case.h"

namespace attention_bias::test {

constexpr int64_t kManyKeys = 300, kFewKeys = 100;  // of the larger attentions

namespace {

using faults::Kind;

// An operation on whatever backend, and what it writes.
struct Call {
  std::string name;
  std::function<void(Backend*)> run;
  std::vector<std::vector<float>*> outputs;
  std::shared_ptr<void> keeps;
};

using Bits = std::vector<std::vector<float>>;

Bits bits(Call& call, Backend* backend) {
  for (std::vector<float>* output : call.outputs) std::fill(output->begin(), output->end(), 123.0f);
  call.run(backend);
  Bits all;
  for (const std::vector<float>* output : call.outputs) all.push_back(*output);
  return all;
}

bool same(const Bits& a, const Bits& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  }
  return a.size() == b.size();
}

struct Attention {
  std::unique_ptr<Case> c;
  std::unique_ptr<Gradients> gradients;
};

// An attention and its gradients under terms that `add` adds.
template <class Add>
void add_attention(std::vector<Call>* calls, const std::string& name, const Extent& e, int64_t dim, Add add,
                   Precision precision = Precision::kF32) {
  Random r(7);
  auto a = std::make_shared<Attention>();
  a->c = make_case(e, dim, dim, r);
  add(a->c->bias.get(), a->c->tensors, r);
  a->c->problem.precision = precision;
  a->gradients = std::make_unique<Gradients>(*a->c, r);
  calls->push_back({"attention, " + name,
                    [c = a->c.get()](Backend* b) { b->attention(c->problem, nullptr); },
                    {&a->c->out, &a->c->lse},
                    a});
  std::vector<std::vector<float>*> grads;
  for (std::vector<float>& grad : a->gradients->grads) grads.push_back(&grad);
  calls->push_back({"attention-backward, " + name,
                    [g = a->gradients.get()](Backend* b) { b->attention_backward(g->problem, nullptr); },
                    grads, a});
}

struct Others {
  Tensors tensors;
  std::unique_ptr<LinearCase> linear;
  std::unique_ptr<MultiheadCase> multihead;
  std::unique_ptr<Program> bias;
  std::vector<std::vector<float>> out = std::vector<std::vector<float>>(16);
};

// `keys` of the larger attentions, which run for long upon an emulator.
std::vector<Call> calls(int64_t keys) {
  std::vector<Call> all;
  const auto none = [](Program*, Tensors&, Random&) {};
  add_attention(&all, "few keys", {3, 2, 9, 33}, 8, none);
  add_attention(&all, "runs of keys", {1, 1, 5, 7 * keys}, 8, none);
  add_attention(&all, "bf16", {1, 1, 40, keys}, 8, none, Precision::kBf16);
  add_attention(&all, "modality and spatial", {2, 2, 20, keys}, 8, [](Program* bias, Tensors& t, Random& r) {
    const auto weight = [&] { return r.uniform(0, 1); };
    bias->add_modality(5, {{0, 90, t.f32({2, 20}, "modality", weight)}}, "bias[0]");
    SpatialSegmentSpec spatial;
    spatial.cells = {0, {8, 10}, t.f32({2, 20, 2}, "centers", [&] { return r.uniform(0, 10); })};
    spatial.radius = 3;
    spatial.weights = t.f32({2, 20}, "spatial", weight);
    bias->add_spatial(5, {spatial}, "bias[1]");
  });
  add_attention(&all, "gathered keys", {2, 2, 30, keys}, 8, [](Program* bias, Tensors&, Random&) {
    bias->add_sliding_window(2, 2, Align::kTopLeft, "bias[0]");
  });
  add_attention(&all, "dense and lowRank", {1, 2, 33, keys}, 8, [&](Program* bias, Tensors& t, Random& r) {
    const auto next = [&] { return r.normal(); };
    bias->add_dense(t.f32({1, 2, 33, keys}, "dense", next), "bias[0]");
    bias->add_low_rank(t.f32({1, 1, 33, 3}, "qf", next), t.f32({1, 1, keys, 3}, "kf", next), 1, "bias[1]");
  });
  add_attention(&all, "alibi of shared rows", {12, 2, 16, 16}, 8, [](Program* bias, Tensors& t, Random&) {
    bias->add_alibi(t.f32({2}, "slopes", [] { return 0.1f; }), "bias[0]");
  });

  auto o = std::make_shared<Others>();
  Random r(3);
  const auto next = [&] { return r.normal(); };
  const auto add = [&](const char* name, std::function<void(Backend*)> run, std::vector<size_t> outputs) {
    std::vector<std::vector<float>*> written;
    for (const size_t i : outputs) written.push_back(&o->out[i]);
    all.push_back({name, std::move(run), written, o});
  };
  // bias: batch rows that are alike.
  o->bias = std::make_unique<Program>(Extent{8, 2, 12, 12});
  o->bias->add_shifted_window({6, 8}, {3, 4}, {1, 1}, -100, "bias[0]");
  o->out[0].resize(8 * 12 * 12);
  add("bias",
      [b = o->bias.get(), out = o->out[0].data()](Backend* backend) {
        backend->bias({b, out, DType::kFloat32}, nullptr);
      },
      {0});
  // linear and multihead.
  LinearProblem linear;
  linear.batch = 2, linear.tokens = 60, linear.features = 96, linear.outputs = 40;
  o->linear = make_linear(linear, true, true, true, r);
  o->out[1].resize(2 * 60 * 40);
  o->linear->problem.out = o->out[1].data();
  add("linear", [p = &o->linear->problem](Backend* b) { b->linear(*p, nullptr); }, {1});
  o->multihead = random_multihead(3);
  o->out[2].resize(o->multihead->want.size());
  o->multihead->problem.out = o->out[2].data();
  add("multihead", [p = &o->multihead->problem](Backend* b) { b->multihead(*p, nullptr); }, {2});
  // router and its gradients.
  RouterBackwardProblem router;
  router.router = router_problem(o->tensors.f32({2, 30, 24}, "features", next),
                                 o->tensors.f32({3, 24}, "weight", next), o->tensors.f32({3}, "bias", next));
  router.grad_out = o->tensors.f32({2, 30, 3}, "gradOut", next).f32();
  const int64_t sizes[] = {180, 60 * 24, 72, 3};
  for (size_t i = 0; i < 4; ++i) o->out[3 + i].resize(static_cast<size_t>(sizes[i]));
  router.router.out = o->out[3].data();
  router.grad_features = o->out[4].data();
  router.grad_weight = o->out[5].data();
  router.grad_bias = o->out[6].data();
  add("router", [router](Backend* b) { b->router(router.router, nullptr); }, {3});
  add("router-backward", [router](Backend* b) { b->router_backward(router, nullptr); }, {4, 5, 6});
  // project.
  ProjectProblem project =
      project_problem(o->tensors.f32({1, 40, 3}, "referencePoints", [&] { return r.uniform(0, 1); }),
                      {-50, -50, -5, 50, 50, 3}, o->tensors.f32({1, 2, 4, 4}, "lidar2img", next), {256, 704},
                      {16, 44}, {180, 180});
  o->out[7].resize(80);
  o->out[8].resize(120);
  project.bev_centers = o->out[7].data();
  project.camera_centers = o->out[8].data();
  add("project", [project](Backend* b) { b->project(project, nullptr); }, {7, 8});
  // deformable and its gradients.
  DeformableBackwardProblem deformable = deformable_backward_problem(
      deformable_problem(
          o->tensors.f32({2, 40, 2, 8}, "value", next), {{4, 8}, {2, 4}},
          o->tensors.f32({2, 9, 2, 2, 3, 2}, "samplingLocations", [&] { return r.uniform(0, 1); }),
          o->tensors.f32({2, 9, 2, 2, 3}, "attentionWeights", next)),
      o->tensors.f32({2, 9, 16}, "gradOut", next));
  const DeformableProblem& f = deformable.forward;
  const int64_t counts[] = {f.out_count(), f.value_count(), 2 * f.samples(), f.samples()};
  for (size_t i = 0; i < 4; ++i) o->out[9 + i].resize(static_cast<size_t>(counts[i]));
  deformable.forward.out = o->out[9].data();
  deformable.grad_value = o->out[10].data();
  deformable.grad_locations = o->out[11].data();
  deformable.grad_weights = o->out[12].data();
  add("deformable", [deformable](Backend* b) { b->deformable(deformable.forward, nullptr); }, {9});
  add("deformable-backward", [deformable](Backend* b) { b->deformable_backward(deformable, nullptr); },
      {10, 11, 12});
  // copy.
  const float* from = o->tensors.f32({3000}, "source", next).f32();
  o->out[13].resize(3000);
  add("copy", [from, to = o->out[13].data()](Backend* b) { b->copy(to, from, 12000, nullptr); }, {13});
  return all;
}

// What an operation ended with: "" where it passed, else a code, with the message in `message`.
std::string ended(const std::function<void()>& run, std::string* message) {
  try {
    run();
    return "";
  } catch (const Error& error) {
    *message = error.what();
    return error_code_name(error.code());
  } catch (const std::bad_alloc&) {  // the addon makes it ERR_MEMORY
    *message = "memory";
    return error_code_name(ErrorCode::kMemory);
  }
}

// Makes a backend of its own.
using Make = std::function<std::unique_ptr<Backend>()>;

constexpr int64_t kMostRequests = 20000;

// The n-th request of a kind fails, for every n; all that follow too if it `lasts`. Returns how many places
// there were.
int64_t each_request(Call& call, const Make& make, Kind kind, bool lasts) {
  Bits want;
  {
    const auto backend = make();
    want = bits(call, backend.get());
  }
  std::string message;
  for (int64_t n = 1; n < kMostRequests; ++n) {
    const int64_t before = faults::live_blocks();
    std::string code;
    {
      const auto backend = make();
      faults::arm(kind, lasts ? -n : n);
      code = ended([&] { call.run(backend.get()); }, &message);
      faults::arm(kind, 0);
      Bits again = bits(call, backend.get());
      CHECK(same(again, want));
      if (const auto memory = backend->memory()) CHECK_EQ(memory->use().used_bytes, 0);
    }
    message = std::string();
    message.shrink_to_fit();
    CHECK_EQ(faults::live_blocks(), before);
    if (code.empty()) return n - 1;
    CHECK_EQ(code, "ERR_MEMORY");
  }
  CHECK(false);
  return 0;
}

void memory(const char* name, const Make& make, Kind kind, int64_t keys) {
  int64_t places = 0;
  for (Call& call : calls(keys)) {
    for (const bool lasts : {false, true}) {
      if (lasts && kind == Kind::kDeviceMemory) continue;  // which always lasts
      context = std::string(name) + ", " + call.name + (lasts ? ", and all that follow" : "");
      places += each_request(call, make, kind, lasts);
    }
  }
  printf("%s: %lld requests that fail, alone or with all that follow\n", name,
         static_cast<long long>(places));
  CHECK(places > 20);
}

// The n-th call of the device fails, by each fault.
void device_faults() {
  int64_t places = 0;
  for (const faults::Fault& fault : faults::kFaults) {
    for (Call& call : calls(kFewKeys)) {
      Bits want;
      {
        const auto backend = cuda::make_backend(0);
        want = bits(call, backend.get());
      }
      for (int64_t n = 1; n < kMostRequests; ++n) {
        context = std::string(fault.name) + " at call " + std::to_string(n) + ", " + call.name;
        const int64_t before = faults::live_blocks();
        std::string code, message;
        {
          const auto backend = cuda::make_backend(0);
          backend->prepare();
          faults::next_fault = &fault;
          faults::arm(Kind::kDevice, n);
          code = ended([&] { call.run(backend.get()); }, &message);
          const bool struck = faults::plans[static_cast<int>(Kind::kDevice)].left <= 0;
          faults::arm(Kind::kDevice, 0);
          if (!code.empty()) {
            CHECK_EQ(code, "ERR_DEVICE");
            CHECK(message.find(fault.name) != std::string::npos);
            CHECK_EQ(message.find("start a new process") != std::string::npos, fault.lasts);
          }
          std::string later;
          const std::string next = ended([&] { CHECK(same(bits(call, backend.get()), want)); }, &later);
          CHECK_EQ(next, faults::lost(0) ? "ERR_DEVICE" : "");
          CHECK_EQ(faults::lost(0) != nullptr, fault.lasts && struck);
          if (!next.empty()) {
            CHECK(later.find(fault.name) != std::string::npos);
            // So does a device that is opened anew; the other one goes on.
            CHECK_EQ(ended([] { cuda::make_backend(0)->prepare(); }, &later), "ERR_DEVICE");
            CHECK_EQ(ended([] { cuda::make_backend(1)->prepare(); }, &later), "");
          }
          CHECK_EQ(backend->memory()->use().used_bytes, 0);
          later = message = std::string();
          later.shrink_to_fit();
          message.shrink_to_fit();
        }
        const bool passed = code.empty();
        code.shrink_to_fit();
        faults::restore();
        CHECK_EQ(faults::live_blocks(), before);
        if (passed) break;
        ++places;
        if (n > 6) n += n / 2;  // the first, then fewer and fewer: they come from the same few lines
      }
    }
  }
  printf("device faults: %lld\n", static_cast<long long>(places));
  CHECK(places > 200);
}

}  // namespace
}  // namespace attention_bias::test

int main() {
  using namespace attention_bias::test;
  using attention_bias::faults::Kind;
  const Make one = [] { return std::make_unique<attention_bias::cpu::Backend>(1, ""); };
  const Make three = [] { return std::make_unique<attention_bias::cpu::Backend>(3, ""); };
  const Make emulated = [] { return attention_bias::cuda::make_backend(0); };
  memory("memory, CPU, 1 thread", one, Kind::kMemory, kManyKeys);
  memory("memory, CPU, 3 threads", three, Kind::kMemory, kManyKeys);
  memory("memory, emulated CUDA", emulated, Kind::kMemory, kFewKeys);
  memory("device memory, emulated CUDA", emulated, Kind::kDeviceMemory, kFewKeys);
  device_faults();
  return finish("faults");
}
