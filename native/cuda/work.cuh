// One operation's work on a device: its memory, its copies from and to the host, its time.
//
// Copies have a stream of their own. Pinned memory is copied by the device itself; any other goes through two
// pinned buffers, the host filling one while the device empties the other, so that kernels on what came
// before run meanwhile.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

// The two buffers. They stay from operation to operation.
class Staging {
 public:
  static constexpr int64_t kBytes = 4 << 20;

  explicit Staging(Runtime* runtime) : runtime_(runtime) {}
  ~Staging() {
    for (Buffer& buffer : buffers_) {
      if (buffer.memory) runtime_->release(buffer.memory);
    }
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void upload(void* device, const char* host, int64_t bytes) {
    for (int64_t at = 0, size; at < bytes; at += size) {
      if (used_ == kBytes) turn();
      size = std::min(bytes - at, kBytes - used_);
      char* const part = memory() + used_;
      std::memcpy(part, host + at, static_cast<size_t>(size));
      runtime_->copy(Stream::kTransfer, static_cast<char*>(device) + at, part, static_cast<size_t>(size));
      buffers_[current_].mark.record(runtime_, Stream::kTransfer);
      used_ = std::min(kBytes, (used_ + size + 15) / 16 * 16);
    }
  }

  // Returns when the host has it all.
  void download(char* host, const void* device, int64_t bytes) {
    struct Part {
      int buffer;
      int64_t at, size;
    } last = {-1, 0, 0};
    const auto take = [&](const Part& part) {
      if (part.buffer < 0) return;
      buffers_[part.buffer].mark.wait();
      std::memcpy(host + part.at, buffers_[part.buffer].memory, static_cast<size_t>(part.size));
    };
    for (int64_t at = 0; at < bytes; at += kBytes) {
      turn();
      const int64_t size = std::min(bytes - at, kBytes);
      runtime_->copy(Stream::kTransfer, memory(), static_cast<const char*>(device) + at,
                     static_cast<size_t>(size));
      buffers_[current_].mark.record(runtime_, Stream::kTransfer);
      used_ = kBytes;
      take(last);
      last = {current_, at, size};
    }
    take(last);
  }

 private:
  struct Buffer {
    char* memory = nullptr;
    Runtime::Mark mark;  // the newest copy from or to it
  };

  // Goes to the other buffer, when the copies of its content are done.
  void turn() {
    current_ = 1 - current_;
    buffers_[current_].mark.wait();
    used_ = 0;
  }
  char* memory() {
    char*& memory = buffers_[current_].memory;
    if (!memory) {
      memory = static_cast<char*>(runtime_->allocate(Place::kPinned, kBytes, false, "copies"));
    }
    return memory;
  }

  Runtime* runtime_;
  Buffer buffers_[2];
  int current_ = 0;
  int64_t used_ = 0;  // of the current buffer
};

inline void check_abort(AbortFlag abort) {
  if (abort && abort->load(std::memory_order_relaxed)) {
    throw Error(ErrorCode::kAborted, "the operation was aborted");
  }
}

class Work {
 public:
  Work(Runtime* runtime, Staging* staging, AbortFlag abort)
      : runtime_(runtime), staging_(staging), abort_(abort) {
    cuda::check_abort(abort);
    // Tensors that were made since may be being filled with zeros.
    runtime_->order(Stream::kCompute, Stream::kTransfer);
  }
  ~Work() {
    runtime_->settle();
    for (void* memory : memory_) runtime_->release(memory);
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  // Device memory to the end of the work.
  template <class T>
  T* allocate(int64_t count, const char* what = "the operation") {
    memory_.push_back(nullptr);  // first, so that what is allocated has its place
    memory_.back() = runtime_->allocate(Place::kDevice, count * static_cast<int64_t>(sizeof(T)), false, what);
    return static_cast<T*>(memory_.back());
  }

  bool on_device(const void* address) const { return runtime_->place_of(address) == Place::kDevice; }

  // Queues a copy of the host's memory to the device's.
  void upload(void* device, const void* host, int64_t bytes) {
    if (runtime_->place_of(host) == Place::kPinned) {
      move(device, host, bytes);
    } else {
      staging_->upload(device, static_cast<const char*>(host), bytes);
    }
  }

  // The opposite. Pinned memory has it when the work is finished, any other on return.
  void download(void* host, const void* device, int64_t bytes) {
    if (runtime_->place_of(host) == Place::kPinned) {
      move(host, device, bytes);
    } else {
      staging_->download(static_cast<char*>(host), device, bytes);
    }
  }
  // Queues a copy that the device makes by itself: of its own and pinned memory.
  void move(void* to, const void* from, int64_t bytes) {
    runtime_->copy(Stream::kTransfer, to, from, static_cast<size_t>(bytes));
  }

  // A tensor on the device, aligned to 16 bytes: itself, or a copy that kernels may read after start().
  template <class T>
  const T* input(const T* tensor, int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    const bool there = on_device(tensor);
    if (there && is_aligned(tensor)) return tensor;
    T* const copy = allocate<T>(count);
    if (there) {
      move(copy, tensor, bytes);
    } else {
      upload(copy, tensor, bytes);
    }
    return copy;
  }

  // The same of a tensor that stays as it is for the time of the work: one copy serves it in several roles.
  const float* shared_input(const float* tensor, int64_t count) {
    for (const Copy& made : copies_) {
      if (made.tensor == tensor && made.count == count) return made.memory;
    }
    copies_.push_back({tensor, input(tensor, count), count});
    return copies_.back().memory;
  }

  // Where kernels write a tensor: itself, or memory that finish() copies there.
  template <class T>
  T* output(T* tensor, int64_t count) {
    if (on_device(tensor) && is_aligned(tensor)) return tensor;
    T* const memory = allocate<T>(count);
    outputs_.push_back({reinterpret_cast<char*>(tensor), memory, count * static_cast<int64_t>(sizeof(T))});
    return memory;
  }

  void check_abort() const { cuda::check_abort(abort_); }

  // Kernels that follow see what was uploaded so far.
  void order_kernels() { runtime_->order(Stream::kTransfer, Stream::kCompute); }

  // Before kernels that see what was uploaded so far; stop() after the last. Time begins with the first.
  void start() {
    check_abort();
    order_kernels();
    if (!started_) runtime_->start_clock();
    started_ = true;
  }
  void stop() { runtime_->stop_clock(); }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes,
              const Arguments&... arguments) {
    runtime_->launch(kernel, grid, threads, shared_bytes, arguments...);
  }

  // Copies the outputs and waits for all of it. Returns the milliseconds from start() to stop().
  double finish() {
    runtime_->order(Stream::kCompute, Stream::kTransfer);
    for (const Output& output : outputs_) {
      if (on_device(output.tensor)) {
        move(output.tensor, output.memory, output.bytes);
      } else {
        download(output.tensor, output.memory, output.bytes);
      }
    }
    runtime_->synchronize();
    check_abort();
    return runtime_->clock_ms();
  }

 private:
  struct Copy {
    const float* tensor;
    const float* memory;
    int64_t count;
  };
  struct Output {
    char* tensor;
    const void* memory;
    int64_t bytes;
  };

  static bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

  Runtime* runtime_;
  Staging* staging_;
  AbortFlag abort_;
  std::vector<void*> memory_;
  std::vector<Copy> copies_;
  std::vector<Output> outputs_;
  bool started_ = false;
};

}  // namespace attention_bias::cuda
