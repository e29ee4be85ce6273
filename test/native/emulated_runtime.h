// The device that emulated kernels run on: memory is the host's, in blocks of exactly the size asked for and
// apart from everything, so that AddressSanitizer sees a kernel or a copy that leaves it; new memory is 0xff.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "emulator.h"

namespace attention_bias::cuda {

using emulator::Grid;

// What all launches of this thread did, so that a test can assert which kernels an operation took.
inline thread_local emulator::Emulation launched;

class Runtime {
 public:
  // `device` is the seed of the order in which threads run.
  explicit Runtime(int device) : seed_(static_cast<uint64_t>(device)) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  int multiprocessors() const { return 3; }
  void use() const {}

  void* allocate(size_t bytes) {
    void* memory = ::operator new (bytes, std::align_val_t{256});
    std::memset(memory, 0xff, bytes);
    return memory;
  }
  void release(void* memory, size_t) { ::operator delete (memory, std::align_val_t{256}); }
  void copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
  void copy_out(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }
  void synchronize() {}
  void start_clock() {}
  void stop_clock() {}
  float clock_ms() const { return 0; }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes,
              const Arguments&... arguments) {
    const emulator::Emulation did =
        emulator::emulate(grid, threads, shared_bytes, seed_, [&] { kernel(arguments...); });
    launched.blocks += did.blocks;
    launched.block_barriers += did.block_barriers;
    launched.warp_collectives += did.warp_collectives;
    launched.mma += did.mma;
    launched.async_copies += did.async_copies;
  }

 private:
  uint64_t seed_;
};

}  // namespace attention_bias::cuda
