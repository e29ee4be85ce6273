// One device as the host sees it: memory, copies, launches, on one stream. Under nvcc it is CUDA's runtime;
// compiled as plain C++ the emulator stands in (test/native/emulated_runtime.h), so that what is written upon
// it runs in tests with no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/errors.h"

#if !defined(__CUDACC__)

#include "emulated_runtime.h"

#else

#include <cuda_runtime.h>

#include <map>
#include <string>
#include <vector>

namespace attention_bias::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it does not surface in the next call
  throw Error(ErrorCode::kDevice,
              std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}
#define AB_CUDA(call) ::attention_bias::cuda::check((call), #call)

struct Grid {
  int x = 1, y = 1, z = 1;
};

class Runtime {
 public:
  explicit Runtime(int device) : device_(device) {
    use();
    AB_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    AB_CUDA(cudaEventCreate(&start_));
    AB_CUDA(cudaEventCreate(&stop_));
    AB_CUDA(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device));
  }
  ~Runtime() {
    cudaSetDevice(device_);
    cudaStreamSynchronize(stream_);
    trim();
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  int multiprocessors() const { return multiprocessors_; }

  // Before any other call on a thread.
  void use() const { AB_CUDA(cudaSetDevice(device_)); }

  // Memory comes from blocks that were released before, where one of its size is there. ERR_MEMORY says how
  // much was asked for and how much is free.
  void* allocate(size_t bytes) {
    const size_t rounded = round_up(bytes);
    auto& list = released_[rounded];
    if (!list.empty()) {
      void* memory = list.back();
      list.pop_back();
      return memory;
    }
    void* memory = nullptr;
    if (cudaMalloc(&memory, rounded) == cudaSuccess) return memory;
    cudaGetLastError();
    trim();
    if (cudaMalloc(&memory, rounded) == cudaSuccess) return memory;
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    throw Error(ErrorCode::kMemory, "could not allocate " + std::to_string(bytes) +
                                        " bytes on the device, of which " + std::to_string(free_bytes) +
                                        " of " + std::to_string(total) + " are free");
  }
  void release(void* memory, size_t bytes) { released_[round_up(bytes)].push_back(memory); }

  void copy_in(void* device, const void* host, size_t bytes) {
    AB_CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_));
  }
  void copy_out(void* host, const void* device, size_t bytes) {
    AB_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
  }
  void synchronize() { AB_CUDA(cudaStreamSynchronize(stream_)); }

  // The time that the device took between the two calls, once synchronize() has returned.
  void start_clock() { AB_CUDA(cudaEventRecord(start_, stream_)); }
  void stop_clock() { AB_CUDA(cudaEventRecord(stop_, stream_)); }
  float clock_ms() const {
    float ms = 0;
    AB_CUDA(cudaEventElapsedTime(&ms, start_, stop_));
    return ms;
  }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes,
              const Arguments&... arguments) {
    constexpr size_t kDefaultShared = 48 * 1024;
    if (shared_bytes > kDefaultShared) {
      AB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)));
    }
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                      static_cast<unsigned>(grid.z));
    // clang-format off
    kernel<<<blocks, threads, shared_bytes, stream_>>>(arguments...);
    // clang-format on
    AB_CUDA(cudaGetLastError());
  }

 private:
  // Powers of two to 1 MiB, then multiples of it.
  static size_t round_up(size_t bytes) {
    constexpr size_t kMebibyte = size_t{1} << 20;
    if (bytes > kMebibyte) return (bytes + kMebibyte - 1) / kMebibyte * kMebibyte;
    size_t rounded = 256;
    while (rounded < bytes) rounded *= 2;
    return rounded;
  }

  // Gives released memory back to the device.
  void trim() {
    for (auto& [bytes, list] : released_) {
      for (void* memory : list) cudaFree(memory);
    }
    released_.clear();
  }

  int device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  int multiprocessors_ = 1;
  std::map<size_t, std::vector<void*> > released_;
};

}  // namespace attention_bias::cuda

#endif

namespace attention_bias::cuda {

// Memory of a device, given back at the end of its scope. Work that uses it is on the same stream as whoever
// gets it next.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Runtime* runtime, size_t bytes)
      : runtime_(runtime), bytes_(bytes), memory_(runtime->allocate(bytes)) {}
  DeviceMemory(DeviceMemory&& other) noexcept
      : runtime_(other.runtime_), bytes_(other.bytes_), memory_(other.memory_) {
    other.memory_ = nullptr;
  }
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() {
    if (memory_) runtime_->release(memory_, bytes_);
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  Runtime* runtime_ = nullptr;
  size_t bytes_ = 0;
  void* memory_ = nullptr;
};

// A copy of host memory.
inline DeviceMemory upload(Runtime* runtime, const void* host, size_t bytes) {
  DeviceMemory memory(runtime, bytes);
  runtime->copy_in(memory.as<void>(), host, bytes);
  return memory;
}

}  // namespace attention_bias::cuda
