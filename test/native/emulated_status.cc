// What an emulated build offers of CUDA: two devices that are none.
#include "cuda/cuda.h"

namespace attention_bias::cuda {

Status status() {
  Status s;
  s.built = true;
  s.toolkit = "emulated";
  for (const int ordinal : {0, 1}) {
    s.devices.push_back({ordinal, "emulated on the CPU", 0, 0, 3, int64_t{1} << 30});
  }
  return s;
}

}  // namespace attention_bias::cuda
