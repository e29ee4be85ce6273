// 64-bit index paths of the CUDA backend, emulated: gathered; with argument `large` in tiles, too, which the
// emulator plans for a minute.
#include <memory>
#include <string>

#include "cuda/cuda.h"
#include "cuda/runtime.cuh"
#include "large_case.h"

namespace attention_bias::test {
namespace {

void elements(Backend* backend, int64_t count, int64_t left) {
  constexpr int64_t kDim = 256;
  const int64_t keys = count / kDim + 64;
  context = std::to_string(keys * kDim) + " elements, a window of " + std::to_string(left + 1);
  const std::shared_ptr<MemorySource> source = backend->memory();
  // The emulated device's memory is the host's.
  const auto tensor = [&](int64_t floats) {
    return static_cast<float*>(source->allocate(Place::kDevice, 4 * floats, false, "a test"));
  };
  float* const key = tensor(keys * kDim);
  float* const value = tensor(keys);
  check_last_keys(backend, key, value, keys, kDim, left);
  source->release(key);
  source->release(value);
  source->trim();
}

}  // namespace
}  // namespace attention_bias::test

int main(int argc, char** argv) {
  using namespace attention_bias;
  cuda::emulated_bytes = size_t{1} << 36;
  const std::unique_ptr<Backend> backend = cuda::make_backend(0);
  backend->prepare();
  for (const int64_t count : {test::k31, test::k32}) test::elements(backend.get(), count, 700);
  // Beyond what is gathered (gather_launch.cu).
  if (argc > 1 && std::string(argv[1]) == "large") test::elements(backend.get(), test::k31, 5000);
  return test::finish("cuda large, emulated");
}
