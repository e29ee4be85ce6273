// What the CUDA backend's host side stands on, emulated: the pool of memory, the staging of copies, and that
// the emulated streams show a wait that is missing.
#include <cstring>
#include <numeric>
#include <vector>

#include "check.h"
#include "cuda/device.cuh"
#include "cuda/work.cuh"

namespace attention_bias::test {
namespace {

using cuda::Runtime;
using cuda::Staging;
using cuda::Stream;
using cuda::Work;

constexpr int kSeeds = 16;

AB_KERNEL void double_all(const int32_t* from, int32_t* to, int64_t count) {
  for (int64_t i = cuda::thread_index(); i < count; i += cuda::block_threads()) to[i] = 2 * from[i];
}

std::vector<int32_t> numbers(int64_t count) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 7);
  return values;
}

bool doubled(const std::vector<int32_t>& from, const std::vector<int32_t>& to) {
  for (size_t i = 0; i < from.size(); ++i) {
    if (to[i] != 2 * from[i]) return false;
  }
  return true;
}

// Host to device, doubled there, and back, by the bare streams; `up` and `down`: whether each wait is there.
int wrong_results(bool up, bool down) {
  int wrong = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    cuda::emulated_seed = static_cast<uint64_t>(seed);
    Runtime runtime(0, 0);
    const std::vector<int32_t> from = numbers(100);
    std::vector<int32_t> to(from.size());
    const size_t bytes = from.size() * sizeof(int32_t);
    auto* in = static_cast<int32_t*>(runtime.allocate(Place::kDevice, 400, false, "in"));
    auto* out = static_cast<int32_t*>(runtime.allocate(Place::kDevice, 400, false, "out"));
    runtime.copy(Stream::kTransfer, in, from.data(), bytes);
    if (up) runtime.order(Stream::kTransfer, Stream::kCompute);
    runtime.launch(double_all, {1, 1, 1}, 32, size_t{0}, static_cast<const int32_t*>(in), out, int64_t{100});
    if (down) runtime.order(Stream::kCompute, Stream::kTransfer);
    runtime.copy(Stream::kTransfer, to.data(), out, bytes);
    runtime.synchronize();
    wrong += doubled(from, to) ? 0 : 1;
    runtime.release(in);
    runtime.release(out);
  }
  return wrong;
}

void missing_waits() {
  context = "streams";
  CHECK_EQ(wrong_results(true, true), 0);
  CHECK(wrong_results(false, true) > 0);
  CHECK(wrong_results(true, false) > 0);
  // A buffer that is filled again while a copy from it may be under way.
  for (const bool waits : {true, false}) {
    int wrong = 0;
    for (int seed = 0; seed < kSeeds; ++seed) {
      cuda::emulated_seed = static_cast<uint64_t>(seed);
      Runtime runtime(0, 0);
      Runtime::Mark mark;
      int32_t buffer = 1, to[2] = {0, 0};
      runtime.copy(Stream::kTransfer, &to[0], &buffer, sizeof buffer);
      mark.record(&runtime, Stream::kTransfer);
      if (waits) mark.wait();
      buffer = 2;
      runtime.copy(Stream::kTransfer, &to[1], &buffer, sizeof buffer);
      runtime.synchronize();
      wrong += to[0] == 1 && to[1] == 2 ? 0 : 1;
    }
    CHECK_EQ(wrong > 0, !waits);
  }
}

// A block that is to be filled with zeros is released, and is another's, before it was filled.
void late_fill() {
  context = "late fill";
  const std::vector<int32_t> from = numbers(100);
  for (int seed = 0; seed < kSeeds; ++seed) {
    cuda::emulated_seed = static_cast<uint64_t>(seed);
    Runtime runtime(0, 0);
    void* const zeros = runtime.allocate(Place::kDevice, 400, true, "zeros");
    runtime.release(zeros);
    void* const in = runtime.allocate(Place::kDevice, 400, false, "in");
    CHECK(in == zeros);
    runtime.copy(Stream::kTransfer, in, from.data(), 400);
    runtime.synchronize();
    CHECK(std::memcmp(in, from.data(), 400) == 0);
    // In the cache, and given back to the driver, which waits for it.
    runtime.release(runtime.allocate(Place::kDevice, 5000, true, "zeros"));
    runtime.synchronize();
    runtime.release(runtime.allocate(Place::kDevice, 5000, true, "zeros"));
    runtime.trim();
    runtime.synchronize();
    runtime.release(in);
  }
}

// Several times what the staging buffers hold, of memory of each kind.
void staging() {
  const int64_t count = 3 * Staging::kBytes / 4 + 12345;
  for (int seed = 0; seed < 4; ++seed) {
    context = "staging, seed " + std::to_string(seed);
    cuda::emulated_seed = static_cast<uint64_t>(seed);
    Runtime runtime(0, 0);
    Staging buffers(&runtime);
    auto* pinned = static_cast<int32_t*>(runtime.allocate(Place::kPinned, count * 4, true, "pinned memory"));
    std::vector<int32_t> from = numbers(count), to(from.size());
    for (int32_t* out : {to.data(), pinned}) {
      Work work(&runtime, &buffers, nullptr);
      const int32_t* in = work.input(from.data(), count);
      const int32_t few[] = {seed, seed + 1};
      const int32_t* more = work.input(few, 2);  // shares a buffer with the end of the first
      int32_t* doubles = work.output(out, count);
      int32_t both[2] = {0, 0};
      int32_t* both_doubles = work.output(both, 2);
      std::fill(from.begin(), from.end(), -1);  // staged already
      work.start();
      work.launch(double_all, {1, 1, 1}, 64, size_t{0}, in, doubles, count);
      work.launch(double_all, {1, 1, 1}, 32, size_t{0}, more, both_doubles, int64_t{2});
      work.finish();
      from = numbers(count);
      CHECK_EQ(both[0], 2 * seed);
      CHECK_EQ(both[1], 2 * seed + 2);
    }
    CHECK(doubled(from, to));
    CHECK(std::memcmp(pinned, to.data(), to.size() * 4) == 0);
    runtime.release(pinned);
    CHECK_EQ(runtime.use().used_bytes, 0);
  }
}

void pool() {
  context = "pool";
  cuda::emulated_seed = 0;
  constexpr int64_t kMebibyte = 1 << 20;
  Runtime runtime(0, 10 * kMebibyte);
  const auto take = [&](int64_t bytes) {
    return static_cast<char*>(runtime.allocate(Place::kDevice, bytes, false, "a test"));
  };
  char* const large = take(4 * kMebibyte - 1);
  CHECK_EQ(runtime.use().used_bytes, 4 * kMebibyte);
  CHECK(runtime.place_of(large + 1000) == Place::kDevice);
  CHECK(runtime.place_of(&runtime) == Place::kHost);
  runtime.release(large);
  runtime.release(large);     // not in use any more
  runtime.release(&runtime);  // never was
  CHECK(runtime.place_of(large) == Place::kHost);
  CHECK_EQ(runtime.use().cached_bytes, 4 * kMebibyte);
  // A block serves what is not much smaller than it.
  char* const small = take(1000);
  CHECK(small != large);
  char* const fits = take(7 * kMebibyte / 2);
  CHECK(fits == large);
  // What is cached makes room; what is used does not.
  char* const other = take(5 * kMebibyte);
  runtime.release(other);
  CHECK_EQ(runtime.use().cached_bytes, 5 * kMebibyte);
  char* const rest = take(5 * kMebibyte + 1 - kMebibyte / 2);
  CHECK(rest == other);
  CHECK_ERROR(take(2 * kMebibyte), ErrorCode::kMemory, "2097152 bytes of device memory for a test");
  CHECK_ERROR(take(2 * kMebibyte), ErrorCode::kMemory, "in use of a limit of 10485760");
  char* const last = take(kMebibyte / 2);
  for (char* memory : {small, fits, rest, last}) runtime.release(memory);
  CHECK_EQ(runtime.use().used_bytes, 0);
  runtime.trim();
  CHECK_EQ(runtime.use().cached_bytes, 0);
  CHECK_EQ(runtime.use().free_bytes, runtime.use().total_bytes);
  // An operation that ends by an exception gives back what it took, when the device is done with it.
  Staging buffers(&runtime);
  try {
    Work work(&runtime, &buffers, nullptr);
    const std::vector<int32_t> from = numbers(1000);
    const int32_t* in = work.input(from.data(), 1000);
    work.start();
    work.launch(double_all, {1, 1, 1}, 32, size_t{0}, in, work.allocate<int32_t>(1000), int64_t{1000});
    work.allocate<char>(20 * kMebibyte);
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kMemory);
  }
  CHECK_EQ(runtime.use().used_bytes, 0);
}

}  // namespace
}  // namespace attention_bias::test

int main() {
  using namespace attention_bias::test;
  missing_waits();
  late_fill();
  staging();
  pool();
  return finish("runtime, emulated");
}
