// 64-bit index paths of the CUDA backend, emulated.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda.h"
#include "cuda/runtime.cuh"
#include "large_case.h"

namespace attention_bias::test {
namespace {

// A key tensor of more than 2^31, or 2^32, elements in the device's memory, of which two queries see the
// last: gathered where their window is narrow, in tiles where it is wide.
void elements(Backend* backend, int64_t count, int64_t left) {
  constexpr int64_t kDim = 256;
  const int64_t keys = count / kDim + 64;
  context = std::to_string(keys * kDim) + " elements, a window of " + std::to_string(left + 1);
  const std::shared_ptr<MemorySource> source = backend->memory();
  const auto tensor = [&](int64_t floats) {
    return static_cast<float*>(source->allocate(Place::kDevice, 4 * floats, false, "a test"));
  };
  float* const key = tensor(keys * kDim);
  float* const value = tensor(keys);
  Random r(9);
  std::vector<float> query(2 * kDim), out(2), lse(2);
  for (float& x : query) x = r.normal();
  // The emulated device's memory is the host's.
  for (int64_t k = keys - left - 2; k < keys; ++k) {
    value[k] = r.normal();
    for (int64_t d = 0; d < kDim; ++d) key[k * kDim + d] = r.normal() / 4;
  }
  AttentionProblem p = attention_problem({query.data(), DType::kFloat32, {1, 1, 2, kDim}, "query"},
                                         {key, DType::kFloat32, {1, 1, keys, kDim}, "key"},
                                         {value, DType::kFloat32, {1, 1, keys, 1}, "value"}, NAN);
  Program bias(p.extent);
  bias.add_sliding_window(left, 0, Align::kBottomRight, "bias[0]");
  p.bias = &bias;
  p.out = out.data();
  p.lse = lse.data();
  backend->attention(p, nullptr);
  check_row(p, 0, keys - left - 2, keys - 1);
  check_row(p, 1, keys - left - 1, keys);
  source->release(key);
  source->release(value);
  source->trim();
}

}  // namespace
}  // namespace attention_bias::test

int main() {
  using namespace attention_bias;
  cuda::emulated_bytes = size_t{1} << 36;
  const std::unique_ptr<Backend> backend = cuda::make_backend(0);
  backend->prepare();
  for (const int64_t count : {test::k31, test::k32}) {
    for (const int64_t left : {3, 700}) test::elements(backend.get(), count, left);
  }
  return test::finish("cuda large, emulated");
}
