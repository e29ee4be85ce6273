// Launches of project_kernel, and what the machine offers. Every CUDA call is checked.
#include <cuda_runtime.h>

#include <memory>

#include "cuda/cuda.h"
#include "cuda/project_kernel.cuh"

namespace attention_bias::cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const bool memory = error == cudaErrorMemoryAllocation;
  throw Error(memory ? ErrorCode::kMemory : ErrorCode::kDevice,
              std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

#define AB_CUDA(call) check((call), #call)

struct FreeDevice {
  void operator()(float* memory) const { cudaFree(memory); }
};
using DeviceFloats = std::unique_ptr<float, FreeDevice>;

DeviceFloats device_floats(int64_t count) {
  float* memory = nullptr;
  AB_CUDA(cudaMalloc(&memory, static_cast<size_t>(count) * sizeof(float)));
  return DeviceFloats(memory);
}

class Stream {
 public:
  Stream() { AB_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace

Status status() {
  Status s;
  s.built = true;
  s.toolkit = AB_CUDA_TOOLKIT;
  s.architectures = AB_CUDA_ARCHITECTURES;
  cudaDriverGetVersion(&s.driver);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // so that it does not surface in the next call
    s.reason = s.driver == 0 ? "no NVIDIA driver is installed"
                             : std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
    return s;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    s.devices.push_back({properties.name, properties.major, properties.minor, properties.multiProcessorCount,
                         static_cast<int64_t>(properties.totalGlobalMem)});
  }
  if (s.devices.empty()) s.reason = "the driver knows no device";
  return s;
}

void project(const ProjectProblem& p, int device) {
  AB_CUDA(cudaSetDevice(device));
  const int64_t points = p.batch * p.queries, matrices = p.batch * p.views * 16;
  const Stream stream;
  const DeviceFloats reference_points = device_floats(points * 3), lidar2img = device_floats(matrices);
  const DeviceFloats bev_centers = device_floats(points * 2), camera_centers = device_floats(points * 3);
  const auto copy = [&](float* to, const float* from, int64_t floats) {
    AB_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(floats) * sizeof(float), cudaMemcpyDefault,
                            stream.get()));
  };
  copy(reference_points.get(), p.reference_points, points * 3);
  copy(lidar2img.get(), p.lidar2img, matrices);
  const unsigned blocks = static_cast<unsigned>((points + kProjectThreads - 1) / kProjectThreads);
  project_kernel<<<blocks, kProjectThreads, 0, stream.get()>>>(project_geometry(p), points, p.queries,
                                                               reference_points.get(), lidar2img.get(),
                                                               bev_centers.get(), camera_centers.get());
  AB_CUDA(cudaGetLastError());
  copy(p.bev_centers, bev_centers.get(), points * 2);
  copy(p.camera_centers, camera_centers.get(), points * 3);
  AB_CUDA(cudaStreamSynchronize(stream.get()));
}

}  // namespace attention_bias::cuda
