// What the machine offers.
#include <cuda_runtime.h>

#include "cuda/cuda.h"

namespace attention_bias::cuda {

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
    if (s.driver == 0) {
      s.reason = "no NVIDIA driver is installed";
    } else if (error == cudaErrorInsufficientDriver) {
      s.reason = "the driver supports CUDA " + std::to_string(s.driver / 1000) + "." +
                 std::to_string(s.driver % 1000 / 10) +
                 " and this binary was built with " AB_CUDA_TOOLKIT
                 ": update the driver, or build with an older toolkit";
    } else {
      s.reason = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
    }
    return s;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    s.devices.push_back({i, properties.name, properties.major, properties.minor,
                         properties.multiProcessorCount, static_cast<int64_t>(properties.totalGlobalMem)});
  }
  if (s.devices.empty()) s.reason = "the driver knows no device";
  return s;
}

}  // namespace attention_bias::cuda
