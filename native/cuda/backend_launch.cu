// The CUDA backend: operations on host memory. Inputs are copied to the device, kernels run on one stream,
// and results are copied back.
#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "cuda/attention_launch.cuh"
#include "cuda/bias_kernel.cuh"
#include "cuda/convert_launch.cuh"
#include "cuda/cuda.h"
#include "cuda/device_program.cuh"
#include "cuda/merge_kernel.cuh"
#include "cuda/project_kernel.cuh"
#include "cuda/router_kernel.cuh"
#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid of one dimension, of one block for every `size` of `count`.
Grid grid_of(int64_t count, int64_t size) {
  const int64_t blocks = ceil_div(count, size);
  if (blocks >= (int64_t{1} << 31)) {
    throw Error(ErrorCode::kShape,
                "a launch of " + std::to_string(blocks) + " blocks: more than a device takes");
  }
  return {static_cast<int>(blocks), 1, 1};
}

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(int device) : device_(device) {}

  void attention(const AttentionProblem& p, AbortFlag abort) override {
    begin(abort);
    const Extent& e = p.extent;
    const int64_t rows = e.batch * e.heads;
    const DeviceProgram program(&*runtime_, p.bias);
    const DeviceMemory query = floats(p.query, rows * e.queries * p.head_dim);
    const DeviceMemory key = floats(p.key, rows * e.keys * p.head_dim);
    const DeviceMemory value = floats(p.value, rows * e.keys * p.value_dim);
    const int64_t out_floats = rows * e.queries * p.value_dim;
    const DeviceMemory out = floats(out_floats), lse = floats(rows * e.queries);

    AttentionArguments a = {};
    a.query = query.as<float>();
    a.key = key.as<float>();
    a.value = value.as<float>();
    a.out = out.as<float>();
    a.lse = lse.as<float>();
    a.terms = program.terms();
    a.term_count = program.count();
    a.rows = rows;
    a.heads = e.heads;
    a.queries = static_cast<int32_t>(e.queries);
    a.keys = static_cast<int32_t>(e.keys);
    a.head_dim = static_cast<int32_t>(p.head_dim);
    a.value_dim = static_cast<int32_t>(p.value_dim);
    a.natural = p.precision == Precision::kF32;
    a.scale = static_cast<float>(a.natural ? p.scale : p.scale * 1.4426950408889634);
    const AttentionCut cut = cut_attention(p, runtime_->multiprocessors());
    a.keys_per_split = cut.keys_per_split;
    check_abort(abort);
    runtime_->start_clock();
    const Bf16Operands converted = convert_operands(&*runtime_, p.precision, &a);
    if (cut.splits == 1) {
      launch(p, cut.grid, a);
    } else {
      const DeviceMemory partial = floats(cut.splits * out_floats);
      const DeviceMemory states(&*runtime_,
                                static_cast<size_t>(cut.splits * rows * e.queries) * sizeof(SoftmaxState));
      AttentionArguments parts = a;
      parts.out = partial.as<float>();
      parts.states = states.as<SoftmaxState>();
      launch(p, cut.grid, parts);
      const MergeArguments merge = {parts.out,        parts.states, a.out,       a.lse,
                                    rows * e.queries, cut.splits,   a.value_dim, a.natural};
      runtime_->launch(merge_kernel, grid_of(merge.rows, kMergeRows), kMergeThreads, size_t{0}, merge);
    }
    runtime_->launch(repair_kernel, grid_of(rows * e.queries, 1), kRepairThreads, kRepairSharedBytes, a);
    runtime_->stop_clock();
    download(p.out, out, out_floats);
    download(p.lse, lse, rows * e.queries);
    end(abort);
  }

  void bias(const BiasProblem& p, AbortFlag abort) override {
    begin(abort);
    const Extent& e = p.bias->extent();
    const Shape shape = bias_shape(*p.bias);
    const DeviceProgram program(&*runtime_, p.bias);
    BiasArguments a = {};
    a.rows = shape[0] * shape[1] * shape[2];
    const DeviceMemory out = floats(a.rows * shape[3]);
    a.out = out.as<float>();
    a.terms = program.terms();
    a.term_count = program.count();
    a.out_heads = shape[1];
    a.queries = static_cast<int32_t>(e.queries);
    a.keys = static_cast<int32_t>(e.keys);
    const int64_t runs = a.rows * ceil_div(e.keys, kBiasRun);
    runtime_->start_clock();
    runtime_->launch(bias_kernel, grid_of(runs, kBiasWarps), kBiasThreads, size_t{0}, a);
    runtime_->stop_clock();
    download(p.out, out, a.rows * shape[3]);
    end(abort);
  }

  void router(const RouterProblem& p, AbortFlag abort) override {
    begin(abort);
    const DeviceMemory features = floats(p.input, p.rows * p.features);
    const DeviceMemory weight = floats(p.weight, p.outputs * p.features);
    const DeviceMemory bias = floats(p.bias, p.outputs), out = floats(p.rows * p.outputs);
    const RouterArguments a = {
        features.as<float>(), weight.as<float>(), bias.as<float>(), out.as<float>(), p.rows,
        p.features,           p.outputs};
    runtime_->start_clock();
    runtime_->launch(router_kernel, grid_of(p.rows * p.outputs, kRouterWarps), kRouterThreads, size_t{0}, a);
    runtime_->stop_clock();
    download(p.out, out, p.rows * p.outputs);
    end(abort);
  }

  void project(const ProjectProblem& p, AbortFlag abort) override {
    begin(abort);
    const int64_t points = p.batch * p.queries;
    const DeviceMemory reference_points = floats(p.reference_points, points * 3);
    const DeviceMemory lidar2img = floats(p.lidar2img, p.batch * p.views * 16);
    const DeviceMemory bev = floats(points * 2), camera = floats(points * 3);
    runtime_->start_clock();
    runtime_->launch(project_kernel, grid_of(points, kProjectThreads), kProjectThreads, size_t{0},
                     project_geometry(p), points, p.queries, reference_points.as<float>(),
                     lidar2img.as<float>(), bev.as<float>(), camera.as<float>());
    runtime_->stop_clock();
    download(p.bev_centers, bev, points * 2);
    download(p.camera_centers, camera, points * 3);
    end(abort);
  }

  double kernel_ms() const override { return kernel_ms_; }

 private:
  static void check_abort(AbortFlag abort) {
    if (abort && abort->load(std::memory_order_relaxed))
      throw Error(ErrorCode::kAborted, "the operation was aborted");
  }
  void begin(AbortFlag abort) {
    check_abort(abort);
    if (!runtime_) runtime_.emplace(device_);
    runtime_->use();
  }
  void end(AbortFlag abort) {
    runtime_->synchronize();
    kernel_ms_ = runtime_->clock_ms();
    check_abort(abort);
  }

  DeviceMemory floats(int64_t count) {
    return DeviceMemory(&*runtime_, static_cast<size_t>(count) * sizeof(float));
  }
  DeviceMemory floats(const float* host, int64_t count) {
    return upload(&*runtime_, host, static_cast<size_t>(count) * sizeof(float));
  }
  void download(float* host, const DeviceMemory& memory, int64_t count) {
    runtime_->copy_out(host, memory.as<float>(), static_cast<size_t>(count) * sizeof(float));
  }

  void launch(const AttentionProblem& p, Grid grid, const AttentionArguments& a) {
    const int64_t dim = std::max(p.head_dim, p.value_dim);
    switch (p.precision) {
      case Precision::kF32:
        return launch_attention_f32(&*runtime_, dim, grid, a);
      case Precision::kTf32:
        return launch_attention_tf32(&*runtime_, dim, grid, a);
      case Precision::kBf16:
        return launch_attention_bf16(&*runtime_, dim, grid, a);
    }
  }

  int device_;
  // Made by the first operation, on its thread: a context takes some 100 ms, and open() is on JavaScript's.
  std::optional<Runtime> runtime_;
  std::atomic<double> kernel_ms_{0};
};

}  // namespace

std::unique_ptr<Backend> make_backend(int device) { return std::make_unique<CudaBackend>(device); }

}  // namespace attention_bias::cuda
