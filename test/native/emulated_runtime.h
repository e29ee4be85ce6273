// The device that emulated kernels run on. Memory is the host's, in blocks of the driver's apart from each
// other; new memory is 0xff, and AddressSanitizer sees a kernel or a copy that leaves what was asked for. The
// two streams are queues that run only when the host waits for something, in a random order wherever nothing
// orders them: a missing wait shows as a wrong result.
#pragma once

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "emulator.h"
#include "faults.h"

#if defined(AB_ASAN)
#include <sanitizer/asan_interface.h>
#define AB_UNWATCHED __attribute__((no_sanitize("address")))
#else
#define AB_UNWATCHED
#endif

namespace attention_bias::cuda {

// Of devices made from now on: the order in which threads and streams run.
inline uint64_t emulated_seed = 0;
// The memory of a device made after.
inline size_t emulated_bytes = size_t{1} << 30;

// What all launches that ran on this thread did, so that a test can assert which kernels an operation took.
inline thread_local emulator::Emulation launched;

class Runtime : public MemoryPool {
  struct Queue;
  struct Item {
    std::function<void()> run;  // or, empty, wait for what was queued elsewhere
    const Queue* other;
    uint64_t until;
    const void* fills;  // the block that is filled with zeros, if that is what it does
  };
  struct Queue {
    std::deque<Item> items;
    uint64_t queued = 0, done = 0;
  };

 public:
  Runtime(int device, int64_t limit_bytes) : MemoryPool(limit_bytes), device_(device) {
    require("cudaStreamCreateWithFlags");
  }
  ~Runtime() override {
    settle();
    trim();
  }

  int multiprocessors() const { return 3; }
  template <class Kernel>
  void require_kernel(Kernel) const {}

  void copy(Stream stream, void* to, const void* from, size_t bytes) {
    require("cudaMemcpyAsync");
    push(stream, [=] { std::memcpy(to, from, bytes); });
  }
  void order(Stream first, Stream then) {
    require("cudaStreamWaitEvent");
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Queue& queue = of(then);
    queue.items.push_back({{}, &of(first), of(first).queued, nullptr});
    ++queue.queued;
  }
  void synchronize() {
    require("cudaStreamSynchronize");
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    for (Queue& queue : queues_) run_until(queue, queue.queued);
  }
  void settle() noexcept {
    try {
      synchronize();
    } catch (...) {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      for (Queue& queue : queues_) {
        queue.items.clear();
        queue.done = queue.queued;
      }
    }
  }

  class Mark {
   public:
    void record(Runtime* runtime, Stream stream) {
      runtime->require("cudaEventRecord");
      const std::lock_guard<std::recursive_mutex> lock(runtime->mutex_);
      runtime_ = runtime;
      queue_ = &runtime->of(stream);
      until_ = queue_->queued;
    }
    void wait() {
      if (!runtime_) return;
      runtime_->require("cudaEventSynchronize");
      const std::lock_guard<std::recursive_mutex> lock(runtime_->mutex_);
      runtime_->run_until(*queue_, until_);
    }

   private:
    Runtime* runtime_ = nullptr;
    Queue* queue_ = nullptr;
    uint64_t until_ = 0;
  };

  void start_clock() { require("cudaEventRecord"); }
  void stop_clock() { require("cudaEventRecord"); }
  float clock_ms() const { return 0; }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes,
              const Arguments&... arguments) {
    require("a kernel's launch");
    push(Stream::kCompute, [=, seed = seed_] {
      const faults::Suspended own;  // the emulator's memory is none of a device's
      const emulator::Emulation did = emulator::emulate({grid.x, grid.y, grid.z}, threads, shared_bytes, seed,
                                                        [&] { kernel(arguments...); });
      launched.blocks += did.blocks;
      launched.block_barriers += did.block_barriers;
      launched.warp_collectives += did.warp_collectives;
      launched.mma += did.mma;
      launched.async_copies += did.async_copies;
    });
  }

 protected:
  void* take(Place place, size_t bytes) override {
    if (!faults::lost(device_) && faults::fails(faults::Kind::kDeviceMemory)) return nullptr;
    require("cudaMalloc");
    if (place == Place::kDevice && taken_ + bytes > device_bytes_) return nullptr;
    const faults::Suspended own;
    void* memory = ::operator new (bytes, std::align_val_t{256});
    sizes_[memory] = bytes;
    if (place == Place::kDevice) taken_ += bytes;
    return memory;
  }
  void give_back(Place place, void* memory) noexcept override {
    // The driver waits until the device is done with a block; here what is still to be filled is left out.
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    for (Item& item : of(Stream::kCompute).items) {
      if (item.fills == memory) item.run = [] {};
    }
    const size_t bytes = sizes_.at(memory);
    sizes_.erase(memory);
    if (place == Place::kDevice) taken_ -= bytes;
    unpoison(memory, bytes);
    ::operator delete (memory, std::align_val_t{256});
  }
  void available(size_t* free, size_t* total) override {
    *free = device_bytes_ - taken_;
    *total = device_bytes_;
  }
  void fill_zero(Place place, void* memory, size_t bytes) override {
    if (place == Place::kPinned) std::memset(memory, 0, bytes);
    if (place == Place::kPinned) return;
    require("cudaMemsetAsync");
    push(
        Stream::kCompute, [=] { zero_unwatched(memory, bytes); }, memory);
    order(Stream::kCompute, Stream::kTransfer);
  }
  void mark_used(void* memory, size_t bytes, size_t held) override {
    unpoison(memory, held);
    // NaN, but for what is so large that a test has it for its addresses alone.
    if (held <= size_t{1} << 30) std::memset(memory, 0xff, held);
#if defined(AB_ASAN)
    ASAN_POISON_MEMORY_REGION(static_cast<char*>(memory) + bytes, held - bytes);
#endif
    (void)bytes;
  }

 private:
  // What any call of a device may end with: a fault that a test asked for, or what an earlier one left.
  void require(const char* call) const {
    if (const faults::Fault* fault = faults::of_call(device_)) {
      throw device_error(call, fault->name, fault->text, fault->lasts);
    }
  }

  static void unpoison(void* memory, size_t bytes) {
#if defined(AB_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
#endif
    (void)memory;
    (void)bytes;
  }

  // A block may be released, and so poisoned, before it is filled: nobody reads it before it is written
  // again.
  AB_UNWATCHED static void zero_unwatched(void* memory, size_t bytes) {
    volatile char* const at = static_cast<char*>(memory);
    for (size_t i = 0; i < bytes; ++i) at[i] = 0;
  }

  Queue& of(Stream stream) { return queues_[static_cast<int>(stream)]; }
  void push(Stream stream, std::function<void()> run, const void* fills = nullptr) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    of(stream).items.push_back({std::move(run), nullptr, 0, fills});
    ++of(stream).queued;
  }

  void run_until(const Queue& target, uint64_t until) {
    while (target.done < until) {
      const size_t first = next_random() % 2;
      if (!run_head(queues_[first]) && !run_head(queues_[1 - first])) {
        throw std::logic_error("streams that wait for each other");
      }
    }
  }
  // False where the head has to wait, or there is none.
  static bool run_head(Queue& queue) {
    if (queue.items.empty()) return false;
    const Item& head = queue.items.front();
    if (head.other && head.other->done < head.until) return false;
    const std::function<void()> run = std::move(queue.items.front().run);
    queue.items.pop_front();
    if (run) run();
    ++queue.done;
    return true;
  }
  uint64_t next_random() {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return random_ >> 33;
  }

  const int device_;
  const size_t device_bytes_ = emulated_bytes;
  const uint64_t seed_ = emulated_seed;
  uint64_t random_ = seed_;
  std::recursive_mutex mutex_;
  Queue queues_[2];
  size_t taken_ = 0;
  std::map<void*, size_t> sizes_;
};

}  // namespace attention_bias::cuda
