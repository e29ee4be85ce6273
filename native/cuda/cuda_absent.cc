// The CUDA part of a binary that was built without a toolkit.
#include "cuda/cuda.h"

#ifndef AB_CUDA_ABSENT_REASON
#define AB_CUDA_ABSENT_REASON "built by node-gyp, which builds the CPU backend only"
#endif

namespace attention_bias::cuda {

Status status() {
  Status s;
  s.reason = AB_CUDA_ABSENT_REASON;
  return s;
}

std::unique_ptr<Backend> make_backend(int, int64_t) {
  throw Error(ErrorCode::kDevice, std::string("CUDA is not part of this binary: ") + AB_CUDA_ABSENT_REASON);
}

}  // namespace attention_bias::cuda
