// What an emulated build offers of CUDA: one device that is none.
#include "cuda/cuda.h"

namespace attention_bias::cuda {

Status status() {
  Status s;
  s.built = true;
  s.toolkit = "emulated";
  s.devices.push_back({0, "emulated on the CPU", 0, 0, 3, 0});
  return s;
}

}  // namespace attention_bias::cuda
