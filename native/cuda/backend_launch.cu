// The CUDA backend. Tensors in the device's memory are used where they are; others are copied there and back
// (work.cuh). One operation runs at a time.
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "cuda/attention_launch.cuh"
#include "cuda/backward_launch.cuh"
#include "cuda/bias_kernel.cuh"
#include "cuda/check_kernel.cuh"
#include "cuda/cuda.h"
#include "cuda/deformable_launch.cuh"
#include "cuda/device_program.cuh"
#include "cuda/gather_launch.cuh"
#include "cuda/head_tensor.cuh"
#include "cuda/linear_launch.cuh"
#include "cuda/merge_kernel.cuh"
#include "cuda/project_kernel.cuh"
#include "cuda/router_kernel.cuh"
#include "cuda/work.cuh"

namespace attention_bias::cuda {

namespace {

class CudaBackend : public Backend {
 public:
  CudaBackend(int device, int64_t limit_bytes) : device_(device), limit_bytes_(limit_bytes) {}

  void prepare() override {
    if (runtime_) return;
    const Status found = status();
    const auto device = std::find_if(found.devices.begin(), found.devices.end(),
                                     [&](const DeviceInfo& d) { return d.ordinal == device_; });
    if (device == found.devices.end()) {
      std::string known = "only";
      for (const DeviceInfo& d : found.devices) {
        known += (d.ordinal == found.devices.front().ordinal ? " cuda:" : ", cuda:") +
                 std::to_string(d.ordinal) + " (" + d.name + ")";
      }
      throw Error(ErrorCode::kDevice, found.reason.empty() ? known + " can be used" : found.reason);
    }
    auto runtime = std::make_shared<Runtime>(device_, limit_bytes_);
    runtime->require_kernel(merge_kernel);
    BackendInfo info;
    info.name = device->name;
    info.compute_capability = std::to_string(device->major) + "." + std::to_string(device->minor);
    info.multiprocessors = device->multiprocessors;
    info.memory_bytes = device->memory_bytes;
    staging_.emplace(runtime.get());
    const std::lock_guard<std::mutex> lock(mutex_);
    info_ = std::move(info);
    runtime_ = std::move(runtime);
  }

  BackendInfo info() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return info_;
  }
  std::shared_ptr<MemorySource> memory() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return runtime_;
  }

  void attention(const AttentionProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    attend(&work, p);
    end(&work);
  }

  void linear(const LinearProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    LinearProblem a = p;
    a.out = work.output(p.out, p.rows() * p.outputs);
    apply(&work, a);
    end(&work);
  }

  void multihead(const MultiheadProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    const MultiheadSizes sizes = multihead_sizes(p);
    const MultiheadMemory memory = {work.allocate<float>(sizes.query), work.allocate<float>(sizes.key),
                                    work.allocate<float>(sizes.value), work.allocate<float>(sizes.attended),
                                    work.allocate<float>(sizes.lse)};
    MultiheadProblem a = p;
    a.out = work.output(p.out, sizes.query);
    const MultiheadParts parts = multihead_parts(a, memory);
    // Each projection computes while the next one's inputs are copied.
    for (const LinearProblem* linear : {&parts.query, &parts.key, &parts.value}) apply(&work, *linear);
    attend(&work, parts.attention);
    apply(&work, parts.out);
    end(&work);
  }

  void attention_backward(const BackwardProblem& problem, AbortFlag abort) override {
    Work work = begin(abort);
    const AttentionProblem& p = problem.attention;
    const Extent& e = p.extent;
    const int64_t heads = e.batch * e.heads, rows = heads * e.queries;
    HeadTensor query(&work, p.query, heads, e.queries, p.head_dim);
    HeadTensor key(&work, p.key, heads, e.keys, p.head_dim, &query);
    HeadTensor value(&work, p.value, heads, e.keys, p.value_dim, &key);
    for (HeadTensor* tensor : {&query, &key, &value}) tensor->upload(0, heads);

    double forward_ms = 0;
    const float *out = nullptr, *lse = nullptr;
    if (p.out) {
      out = work.input(p.out, rows * p.value_dim);
      lse = work.input(p.lse, rows);
    } else {
      // Of the tensors on the device, in float32, as scores are computed again.
      AttentionProblem forward = p;
      forward.query = query.as_given();
      forward.key = key.as_given();
      forward.value = value.as_given();
      forward.precision = Precision::kF32;
      out = forward.out = work.allocate<float>(rows * p.value_dim);
      lse = forward.lse = work.allocate<float>(rows);
      attention(forward, abort);
      forward_ms = kernel_ms_;
    }
    const DeviceProgram program(&work, p.bias);
    BackwardArguments a = {};
    a.query = query.as_given();
    a.key = key.as_given();
    a.value = value.as_given();
    a.grad_out = work.input(problem.grad_out, rows * p.value_dim);
    a.terms = program.terms();
    a.term_count = program.count();
    a.rows = heads;
    a.heads = e.heads;
    a.queries = static_cast<int32_t>(e.queries);
    a.keys = static_cast<int32_t>(e.keys);
    a.head_dim = static_cast<int32_t>(p.head_dim);
    a.value_dim = static_cast<int32_t>(p.value_dim);
    a.scale = static_cast<float>(p.scale);
    work.start();
    launch_backward(&work, runtime_->multiprocessors(), problem, out, lse, a);
    end(&work);
    kernel_ms_ = kernel_ms_ + forward_ms;
  }

  void bias(const BiasProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    const Extent& e = p.bias->extent();
    const Shape shape = bias_shape(*p.bias);
    const DeviceProgram program(&work, p.bias);
    BiasArguments a = {};
    a.rows = shape[0] * shape[1] * shape[2];
    a.out = work.output(static_cast<char*>(p.out),
                        a.rows * shape[3] * static_cast<int64_t>(dtype_bytes(p.dtype)));
    a.terms = program.terms();
    a.term_count = program.count();
    a.out_heads = shape[1];
    a.queries = static_cast<int32_t>(e.queries);
    a.keys = static_cast<int32_t>(e.keys);
    const Grid grid = grid_of(a.rows * ceil_div(e.keys, kBiasRun), kBiasWarps);
    work.start();
    if (p.dtype == DType::kBfloat16) {
      work.launch(bias_kernel<uint16_t>, grid, kBiasThreads, size_t{0}, a);
    } else {
      work.launch(bias_kernel<float>, grid, kBiasThreads, size_t{0}, a);
    }
    end(&work);
  }

  void router(const RouterProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    RouterProblem a = p;
    a.input = work.input(p.input, p.rows * p.features);
    a.weight = work.input(p.weight, p.outputs * p.features);
    a.bias = work.input(p.bias, p.outputs);
    a.out = work.output(p.out, p.rows * p.outputs);
    work.start();
    work.launch(router_kernel, grid_of(p.rows * p.outputs, kRouterWarps), kRouterThreads, size_t{0}, a);
    end(&work);
  }

  void router_backward(const RouterBackwardProblem& problem, AbortFlag abort) override {
    Work work = begin(abort);
    RouterBackwardProblem a = problem;
    const RouterProblem& p = problem.router;
    const int64_t weights = p.rows * p.outputs, inputs = p.rows * p.features;
    a.router.input = work.input(p.input, inputs);
    a.router.weight = work.input(p.weight, p.outputs * p.features);
    a.router.bias = work.input(p.bias, p.outputs);
    a.grad_out = work.input(problem.grad_out, weights);
    a.grad_features = work.output(problem.grad_features, inputs);
    a.grad_weight = work.output(problem.grad_weight, p.outputs * p.features);
    a.grad_bias = work.output(problem.grad_bias, p.outputs);
    float* const delta = work.allocate<float>(weights);
    work.start();
    work.launch(router_delta_kernel, grid_of(weights, kRouterWarps), kRouterThreads, size_t{0}, a, delta);
    const int64_t elements = inputs + p.outputs * (p.features + 1);
    work.launch(router_backward_kernel, grid_of(elements, kRouterThreads), kRouterThreads, size_t{0}, a,
                static_cast<const float*>(delta));
    end(&work);
  }

  void project(const ProjectProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    const int64_t points = p.batch * p.queries;
    const float* reference_points = work.input(p.reference_points, points * 3);
    const float* lidar2img = work.input(p.lidar2img, p.batch * p.views * 16);
    float* bev = work.output(p.bev_centers, points * 2);
    float* camera = work.output(p.camera_centers, points * 3);
    work.start();
    work.launch(project_kernel, grid_of(points, kProjectThreads), kProjectThreads, size_t{0},
                project_geometry(p), points, p.queries, reference_points, lidar2img, bev, camera);
    end(&work);
  }

  void deformable(const DeformableProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    launch_deformable(&work, p);
    end(&work);
  }

  void deformable_backward(const DeformableBackwardProblem& p, AbortFlag abort) override {
    Work work = begin(abort);
    launch_deformable_backward(&work, p);
    end(&work);
  }

  void copy(void* to, const void* from, int64_t bytes, AbortFlag abort) override {
    Work work = begin(abort);
    const bool to_device = work.on_device(to), from_device = work.on_device(from);
    if (to_device && !from_device) {
      work.upload(to, from, bytes);
    } else if (from_device && !to_device) {
      work.download(to, from, bytes);
    } else {
      work.move(to, from, bytes);
    }
    work.start();
    end(&work);
  }

  void check_values(const std::vector<ValueCheck>& checks, AbortFlag abort) override {
    std::vector<RangeCheck> ranges;
    for (const ValueCheck& check : checks) {
      if (!check.view.on_device) {
        require_values(check);
        continue;
      }
      ranges.push_back(
          {check.view.f32(), element_count(check.view.shape, check.view.name), check.low, check.high});
    }
    if (ranges.empty()) return;
    const int64_t count = static_cast<int64_t>(ranges.size());
    std::vector<int64_t> found(ranges.size() * kCheckBlocks);
    {
      Work work = begin(abort);
      const RangeCheck* on_device = work.input(ranges.data(), count);
      int64_t* out = work.output(found.data(), static_cast<int64_t>(found.size()));
      work.start();
      work.launch(check_kernel, Grid{kCheckBlocks, static_cast<int>(count), 1}, kCheckThreads,
                  kCheckSharedBytes, on_device, out);
      end(&work);
    }
    size_t i = 0;
    for (const ValueCheck& check : checks) {
      if (!check.view.on_device) continue;
      const auto blocks = found.begin() + static_cast<int64_t>(i) * kCheckBlocks;
      const int64_t first = *std::min_element(blocks, blocks + kCheckBlocks);
      if (first < ranges[i].count) {
        float value = 0;
        copy(&value, ranges[i].data + first, sizeof value, abort);
        throw value_error(check, first, value);
      }
      ++i;
    }
  }

  std::string self_test() override { return compare_with_host(this); }

  double kernel_ms() const override { return kernel_ms_; }

 private:
  Work begin(AbortFlag abort) {
    prepare();
    return Work(runtime_.get(), &*staging_, abort);
  }
  void end(Work* work) {
    work->stop();
    kernel_ms_ = work->finish();
  }

  // Launches an attention, whose tensors may be the host's.
  void attend(Work* work, const AttentionProblem& p) {
    const Extent& e = p.extent;
    const int64_t heads = e.batch * e.heads;
    const DeviceProgram program(work, p.bias);
    HeadTensor query(work, p.query, heads, e.queries, p.head_dim);
    HeadTensor key(work, p.key, heads, e.keys, p.head_dim, &query);
    HeadTensor value(work, p.value, heads, e.keys, p.value_dim, &key);
    const int64_t out_floats = heads * e.queries * p.value_dim;

    AttentionArguments a = sizes_of(p);
    a.query = query.in_f32();
    a.key = key.as_given();
    a.value = value.as_given();
    a.out = work->output(p.out, out_floats);
    a.lse = work->output(p.lse, heads * e.queries);
    a.terms = program.terms();
    a.term_count = program.count();
    if (gathers(p)) {
      for (HeadTensor* tensor : {&query, &key, &value}) tensor->upload(0, heads);
      work->start();
      query.convert(0, heads);
      launch_gather(runtime_.get(), p, a);
      return;
    }
    if (p.precision == Precision::kBf16) {
      a.key_bf16 = key.in_padded_bf16();
      a.value_bf16 = value.in_padded_bf16();
    } else {
      a.key = {key.in_f32(), DType::kFloat32};
      a.value = {value.in_f32(), DType::kFloat32};
    }
    const AttentionCut cut = cut_attention(p, runtime_->multiprocessors());
    a.keys_per_split = cut.keys_per_split;
    AttentionArguments parts = a;
    if (cut.splits > 1) {
      parts.out = work->allocate<float>(cut.splits * out_floats);
      parts.states = work->allocate<SoftmaxState>(cut.splits * heads * e.queries);
    }

    // Inputs of the host's come in pieces of some heads, each computed while the next is copied.
    constexpr int64_t kPieceBytes = 2 * Staging::kBytes;
    const int64_t head_bytes =
        query.missing_head_bytes() + key.missing_head_bytes() + value.missing_head_bytes();
    const int64_t piece =
        head_bytes == 0 ? heads : std::min(heads, std::max<int64_t>(1, kPieceBytes / head_bytes));
    for (int64_t first = 0; first < heads; first += piece) {
      const int64_t end = std::min(heads, first + piece);
      for (HeadTensor* tensor : {&query, &key, &value}) tensor->upload(first, end);
      if (first == 0) {
        work->start();
      } else {
        work->order_kernels();
      }
      work->check_abort();
      for (HeadTensor* tensor : {&query, &key, &value}) tensor->convert(first, end);
      parts.first_row = first;
      Grid grid = cut.grid;
      grid.x = static_cast<int>(grid.x / heads * (end - first));
      launch(p, grid, parts);
    }
    if (cut.splits > 1) {
      const MergeArguments merge = {parts.out,         parts.states, a.out,       a.lse,
                                    heads * e.queries, cut.splits,   a.value_dim, a.natural};
      work->launch(merge_kernel, grid_of(merge.rows, kMergeRows), kMergeThreads, size_t{0}, merge);
    }
    work->launch(repair_kernel, grid_of(heads * e.queries, 1), kRepairThreads, kRepairSharedBytes, a);
  }

  // Launches a linear layer, whose inputs may be the host's.
  void apply(Work* work, LinearProblem p) {
    const auto input = [&](const float* tensor, int64_t count) {
      return tensor ? work->shared_input(tensor, count) : nullptr;
    };
    p.input = input(p.input, p.rows() * p.features);
    p.position = input(p.position, p.rows() * p.features);
    p.weight = input(p.weight, p.outputs * p.features);
    p.bias = input(p.bias, p.outputs);
    p.residual = input(p.residual, p.rows() * p.outputs);
    work->start();
    launch_linear(runtime_.get(), p);
  }

  void launch(const AttentionProblem& p, Grid grid, const AttentionArguments& a) {
    const int64_t dim = std::max(p.head_dim, p.value_dim);
    switch (p.precision) {
      case Precision::kF32:
        return launch_attention_f32(runtime_.get(), dim, grid, a);
      case Precision::kTf32:
        return launch_attention_tf32(runtime_.get(), dim, grid, a);
      case Precision::kBf16:
        return launch_attention_bf16(runtime_.get(), dim, grid, a);
    }
  }

  int device_;
  int64_t limit_bytes_;
  mutable std::mutex mutex_;  // of what prepare() makes and other threads ask for
  BackendInfo info_;
  std::shared_ptr<Runtime> runtime_;
  std::optional<Staging> staging_;  // before runtime_ goes
  std::atomic<double> kernel_ms_{0};
};

}  // namespace

std::unique_ptr<Backend> make_backend(int device, int64_t limit_bytes) {
  return std::make_unique<CudaBackend>(device, limit_bytes);
}

}  // namespace attention_bias::cuda
