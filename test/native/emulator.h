// Runs CUDA kernels, compiled as plain C++, on the CPU: for tests on machines with no GPU. The threads of a
// block are fibres; each runs to its next collective (a barrier, a shuffle, an mma …), and when all lanes of
// its warp, or all threads of its block, have met there, they go on in a new random order, warps at random
// speeds. So:
//
//   a race              gives other bits under other seeds: order_dependent()
//   a missing barrier   reads what nobody wrote: shared memory starts as 0xff, which is NaN
//   a missing wait      likewise: an asynchronous copy leaves 0xff until the wait that covers it
//   divergence          a collective that not all threads reach, at one place in the source, is an exception
//   an overrun          shared memory is a heap block of exactly the size asked for: AddressSanitizer stops
//   there
//
// It is stricter than the hardware, which lets ended threads miss a barrier, and it finds no data race whose
// result is the same in any order. What runs here is emulated; it says nothing of speed or of the device's
// rounding. What each function of namespace cuda does is said in native/cuda/device.cuh.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#if !defined(AB_EMULATED)
#define AB_EMULATED 1
#endif
// Built with AddressSanitizer, or with ThreadSanitizer.
#if defined(__SANITIZE_ADDRESS__)
#define AB_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define AB_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define AB_ASAN 1
#elif __has_feature(thread_sanitizer)
#define AB_TSAN 1
#endif
#endif
#define AB_KERNEL inline
#define AB_LAUNCH_BOUNDS(threads, blocks)
#define AB_DEVICE inline
#define AB_UNROLL
#define AB_NO_UNROLL

namespace attention_bias::emulator {

struct Grid {
  int x = 1, y = 1, z = 1;
};

// What a launch did, so that a test can assert which path a kernel took.
struct Emulation {
  int64_t blocks = 0;
  int64_t block_barriers = 0;    // met by whole blocks
  int64_t warp_collectives = 0;  // met by whole warps, mma included
  int64_t mma = 0;
  int64_t async_copies = 0;
};

// Runs the kernel in every thread of the grid; the seed decides the order of blocks, warps and lanes. An
// exception of the kernel, or std::runtime_error for a defect (see above), naming block, thread and
// collective, ends the launch. Blocks are of 32 to 1024 threads, a multiple of 32. Launches of different host
// threads are independent.
Emulation emulate(Grid grid, int block_threads, size_t shared_bytes, uint64_t seed,
                  const std::function<void()>& kernel);

// True if run(output, seed), begun with copies of `initial`, leaves other bits under some of the seeds 0 …
// seeds - 1.
template <class T, class Run>
bool order_dependent(const std::vector<T>& initial, int seeds, const Run& run) {
  std::vector<T> first;
  for (int seed = 0; seed < seeds; ++seed) {
    std::vector<T> output = initial;
    run(output, static_cast<uint64_t>(seed));
    if (seed == 0) first = output;
    if (output.size() != first.size() ||
        std::memcmp(output.data(), first.data(), output.size() * sizeof(T)) != 0) {
      return true;
    }
  }
  return false;
}

// ---- between the wrappers below and emulator.cc
// ----------------------------------------------------------------------

// Where in the source a collective is; as a default argument, where the function was called.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Collective : uint8_t {
  kNone,
  kEnd,  // of the kernel
  kBarrier,
  kAnyInBlock,
  kWarpBarrier,
  kShuffle,
  kAnyInWarp,
  kBallot,
  kMmaTf32,
  kMmaBf16,
  kLoadMatrices,
  kLoadMatricesTransposed,
};

// What a thread shows while it waits: the operands of its collective, then the result.
struct Thread {
  int index = 0;
  uint32_t value = 0;   // operand and result of what moves 4 bytes
  int source_lane = 0;  // of a shuffle
  const uint32_t* a = nullptr;
  const uint32_t* b = nullptr;
  const float* c = nullptr;
  float* d = nullptr;
  uint32_t words[4] = {};  // a row of a matrix, then this lane's part of four
};

struct Launch {
  Grid grid;
  int block_threads = 0;
  Grid block;  // the index of the block that runs
  char* shared = nullptr;
  size_t shared_bytes = 0;
};

Thread& self();  // the running thread; throws outside a kernel
const Launch& launch();
void meet(Collective collective, Site site);  // returns when all who must have met there
void copy_async(void* shared, const void* global, size_t bytes, bool valid);
void copy_async_commit();
void copy_async_wait(int groups);
void check_aligned_16(const void* address);
// Of 16 bytes, within shared memory.
void check_matrix_row(const void* address);

}  // namespace attention_bias::emulator

namespace attention_bias::cuda {

using emulator::Site;

constexpr int kWarpLanes = 32;

inline int thread_index() { return emulator::self().index; }
inline int block_threads() { return emulator::launch().block_threads; }
inline int block_x() { return emulator::launch().block.x; }
inline int block_y() { return emulator::launch().block.y; }
inline int block_z() { return emulator::launch().block.z; }
inline int grid_x() { return emulator::launch().grid.x; }
inline int grid_y() { return emulator::launch().grid.y; }
inline int grid_z() { return emulator::launch().grid.z; }
inline int lane_index() { return thread_index() % kWarpLanes; }
inline int warp_index() { return thread_index() / kWarpLanes; }

inline char* shared_memory() { return emulator::launch().shared; }

inline void barrier(Site site = Site::here()) { emulator::meet(emulator::Collective::kBarrier, site); }
inline void warp_barrier(Site site = Site::here()) {
  emulator::meet(emulator::Collective::kWarpBarrier, site);
}

template <class T>
T shuffle(T value, int lane, Site site = Site::here()) {
  static_assert(sizeof(T) == 4, "a shuffle moves 4 bytes");
  emulator::Thread& thread = emulator::self();
  std::memcpy(&thread.value, &value, 4);
  thread.source_lane = lane & (kWarpLanes - 1);
  emulator::meet(emulator::Collective::kShuffle, site);
  std::memcpy(&value, &thread.value, 4);
  return value;
}
template <class T>
T shuffle_xor(T value, int lane_mask, Site site = Site::here()) {
  return shuffle(value, lane_index() ^ lane_mask, site);
}

// A yes or no from every thread, and their common answer.
inline uint32_t vote(emulator::Collective collective, bool value, Site site) {
  emulator::Thread& thread = emulator::self();
  thread.value = value ? 1 : 0;
  emulator::meet(collective, site);
  return thread.value;
}
inline bool any_in_warp(bool value, Site site = Site::here()) {
  return vote(emulator::Collective::kAnyInWarp, value, site) != 0;
}
inline uint32_t ballot(bool value, Site site = Site::here()) {
  return vote(emulator::Collective::kBallot, value, site);
}
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline bool any_in_block(bool value, Site site = Site::here()) {
  return vote(emulator::Collective::kAnyInBlock, value, site) != 0;
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
  emulator::copy_async(shared, global, 16, valid);
}
inline void copy_async_4(void* shared, const void* global, bool valid) {
  emulator::copy_async(shared, global, 4, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int N>
void copy_async_wait() {
  static_assert(N >= 0, "a number of groups");
  emulator::copy_async_wait(N);
}

struct alignas(16) Float4 {
  float x, y, z, w;
};

inline Float4 load_16(const float* address) {
  emulator::check_aligned_16(address);
  Float4 value;
  std::memcpy(&value, address, 16);
  return value;
}
inline void load_8(uint16_t (&to)[4], const uint16_t* address) {
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0)
    throw std::runtime_error("load_8 of an address off 8 bytes");
  std::memcpy(to, address, 8);
}
inline void store_16(float* address, Float4 value) {
  emulator::check_aligned_16(address);
  std::memcpy(address, &value, 16);
}
inline void store_16(void* address, const uint32_t (&words)[4]) {
  emulator::check_aligned_16(address);
  std::memcpy(address, words, 16);
}
inline void store_16_streaming(float* address, Float4 value) { store_16(address, value); }

// Threads take turns, so that plain additions are as good.
inline void atomic_add(float* address, float value) { *address += value; }
inline void atomic_add_16(float* address, Float4 value) {
  emulator::check_aligned_16(address);
  const float values[4] = {value.x, value.y, value.z, value.w};
  for (int i = 0; i < 4; ++i) address[i] += values[i];
}

inline void load(emulator::Collective collective, uint32_t (&words)[4], const void* row, Site site) {
  emulator::check_matrix_row(row);
  emulator::Thread& thread = emulator::self();
  std::memcpy(thread.words, row, 16);
  emulator::meet(collective, site);
  std::memcpy(words, thread.words, 16);
}
inline void load_matrices(uint32_t (&words)[4], const void* row, Site site = Site::here()) {
  load(emulator::Collective::kLoadMatrices, words, row, site);
}
inline void load_matrices_transposed(uint32_t (&words)[4], const void* row, Site site = Site::here()) {
  load(emulator::Collective::kLoadMatricesTransposed, words, row, site);
}

inline float fast_exp2(float x) {
  const float result = std::exp2(x);
  return result < FLT_MIN ? 0.0f : result;
}

inline uint32_t to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fffffff;
  if (std::isinf(value)) return bits;
  return (bits + 0x1000) & 0xffffe000;  // a carry goes into the exponent, at the greatest to infinity
}

inline uint32_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) { return to_bf16(high) << 16 | to_bf16(low); }

inline void mma(emulator::Collective collective, float (&d)[4], const uint32_t (&a)[4],
                const uint32_t (&b)[2], const float (&c)[4], Site site) {
  emulator::Thread& thread = emulator::self();
  thread.a = a;
  thread.b = b;
  thread.c = c;
  thread.d = d;
  emulator::meet(collective, site);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                     Site site = Site::here()) {
  mma(emulator::Collective::kMmaTf32, d, a, b, c, site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                     Site site = Site::here()) {
  mma(emulator::Collective::kMmaBf16, d, a, b, c, site);
}

}  // namespace attention_bias::cuda
