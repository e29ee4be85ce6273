// One device as the host sees it: memory, copies and launches on two streams. Under nvcc it is CUDA's
// runtime; compiled as plain C++ the emulator stands in (test/native/emulated_runtime.h), so that what is
// written upon it runs in tests with no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/errors.h"
#include "cuda/memory_pool.h"

namespace attention_bias::cuda {

struct Grid {
  int x = 1, y = 1, z = 1;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid of one dimension, of one block for every `size` of `count`.
inline Grid grid_of(int64_t count, int64_t size) {
  const int64_t blocks = ceil_div(count, size);
  if (blocks >= (int64_t{1} << 31)) {
    throw Error(ErrorCode::kShape,
                "a launch of " + std::to_string(blocks) + " blocks: more than a device takes");
  }
  return {static_cast<int>(blocks), 1, 1};
}

// What a call of the runtime failed with, as users see it. After a `lasting` one the device's context is
// gone, with all that was in its memory: CUDA gives the same error to every later call of the process.
inline Error device_error(const std::string& call, const std::string& name, const std::string& text,
                          bool lasting) {
  return Error(
      ErrorCode::kDevice,
      call + " failed: " + name + ": " + text +
          (lasting
               ? ". The device can't be used any more by this process, and what was in its memory is lost: "
                 "close it, and start a new process or go on with another device"
               : ""));
}

// Kernels run on one stream, copies from and to the host on the other, so that they go on side by side.
enum class Stream { kCompute, kTransfer };

}  // namespace attention_bias::cuda

#if !defined(__CUDACC__)

#include "emulated_runtime.h"

#else

#include <cuda_runtime.h>

#include <cstring>
#include <exception>
#include <string>
#include <thread>

namespace attention_bias::cuda {

// Those that CUDA's documentation says leave the process in an inconsistent state.
inline bool lasts(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return true;
    default:
      return false;
  }
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it does not surface in the next call
  throw device_error(what, cudaGetErrorName(error), cudaGetErrorString(error), lasts(error));
}
#define AB_CUDA(call) ::attention_bias::cuda::check((call), #call)

class Runtime : public MemoryPool {
 public:
  // On the thread that the operations will run on.
  Runtime(int device, int64_t limit_bytes) : MemoryPool(limit_bytes), device_(device) {
    AB_CUDA(cudaSetDevice(device));
    for (cudaStream_t& stream : streams_) {
      AB_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    for (cudaEvent_t* event : {&start_, &stop_}) AB_CUDA(cudaEventCreate(event));
    for (cudaEvent_t* event : {&order_, &filled_}) {
      AB_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    }
    AB_CUDA(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device));
  }
  ~Runtime() override {
    settle();
    trim();
    for (cudaEvent_t event : {start_, stop_, order_, filled_}) {
      if (event) cudaEventDestroy(event);
    }
    for (cudaStream_t stream : streams_) {
      if (stream) cudaStreamDestroy(stream);
    }
  }

  int multiprocessors() const { return multiprocessors_; }

  // ERR_DEVICE where this binary has no code of a kernel for the device.
  template <class Kernel>
  void require_kernel(Kernel kernel) const {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw Error(ErrorCode::kDevice, std::string("this binary has kernels for ") + AB_CUDA_ARCHITECTURES +
                                        ", none that the device takes (" + cudaGetErrorName(error) + ")");
  }

  // Any kind of memory to any other.
  void copy(Stream stream, void* to, const void* from, size_t bytes) {
    AB_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, of(stream)));
  }
  // What is queued on `then` from now on waits for what is queued on `first` by now.
  void order(Stream first, Stream then) {
    AB_CUDA(cudaEventRecord(order_, of(first)));
    AB_CUDA(cudaStreamWaitEvent(of(then), order_, 0));
  }
  void synchronize() {
    for (cudaStream_t stream : streams_) AB_CUDA(cudaStreamSynchronize(stream));
  }
  // The same, of whatever state the device is in.
  void settle() noexcept {
    for (cudaStream_t stream : streams_) {
      if (stream && cudaStreamSynchronize(stream) != cudaSuccess) cudaGetLastError();
    }
  }

  // A point in a stream that the host can wait for.
  class Mark {
   public:
    Mark() = default;
    ~Mark() {
      if (event_) cudaEventDestroy(event_);
    }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;
    void record(Runtime* runtime, Stream stream) {
      if (!event_) AB_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
      AB_CUDA(cudaEventRecord(event_, runtime->of(stream)));
    }
    // At once where nothing was recorded.
    void wait() {
      if (event_) AB_CUDA(cudaEventSynchronize(event_));
    }

   private:
    cudaEvent_t event_ = nullptr;
  };

  // The time that the device took between the two calls, once synchronize() has returned.
  void start_clock() { AB_CUDA(cudaEventRecord(start_, of(Stream::kCompute))); }
  void stop_clock() { AB_CUDA(cudaEventRecord(stop_, of(Stream::kCompute))); }
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
    kernel<<<blocks, threads, shared_bytes, of(Stream::kCompute)>>>(arguments...);
    // clang-format on
    AB_CUDA(cudaGetLastError());
  }

 protected:
  void* take(Place place, size_t bytes) override {
    void* memory = nullptr;
    cudaError_t error = cudaSuccess;
    on_device([&] {
      error = place == Place::kDevice ? cudaMalloc(&memory, bytes)
                                      : cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
      if (error != cudaSuccess) cudaGetLastError();
    });
    if (error == cudaErrorMemoryAllocation) return nullptr;
    check(error, "allocating memory");
    return memory;
  }
  void give_back(Place place, void* memory) noexcept override {
    try {
      on_device([&] {
        if (place == Place::kDevice ? cudaFree(memory) : cudaFreeHost(memory)) cudaGetLastError();
      });
    } catch (const std::exception&) {  // no thread to do it on: the process is out of everything
    }
  }
  void available(size_t* free, size_t* total) override {
    on_device([&] {
      if (cudaMemGetInfo(free, total) != cudaSuccess) cudaGetLastError();
    });
  }
  void fill_zero(Place place, void* memory, size_t bytes) override {
    if (place == Place::kPinned) {
      std::memset(memory, 0, bytes);
      return;
    }
    cudaError_t error = cudaSuccess;
    // Copies wait for it too: before it is filled the block may be released and be what an operation under
    // way uploads to. An event of its own, under the pool's lock: order() is the operations' thread's.
    on_device([&] {
      error = cudaMemsetAsync(memory, 0, bytes, of(Stream::kCompute));
      if (error == cudaSuccess) error = cudaEventRecord(filled_, of(Stream::kCompute));
      if (error == cudaSuccess) error = cudaStreamWaitEvent(of(Stream::kTransfer), filled_, 0);
    });
    check(error, "filling with zeros");
  }

 private:
  // Runs f, which does not throw, with the device as the thread's current one. On JavaScript's thread another
  // may be: setting it, or setting it back, would change what other addons see there and make a context on a
  // device that nobody asked for, so that f runs on a thread of its own.
  template <class F>
  void on_device(F f) const {
    int current = -1;
    if (cudaGetDevice(&current) == cudaSuccess && current == device_) {
      f();
    } else {
      std::thread([&] {
        if (cudaSetDevice(device_) != cudaSuccess) cudaGetLastError();
        f();
      }).join();
    }
  }

  cudaStream_t of(Stream stream) const { return streams_[static_cast<int>(stream)]; }

  int device_;
  cudaStream_t streams_[2] = {nullptr, nullptr};
  cudaEvent_t start_ = nullptr, stop_ = nullptr, order_ = nullptr, filled_ = nullptr;
  int multiprocessors_ = 1;
};

}  // namespace attention_bias::cuda

#endif
