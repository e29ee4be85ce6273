#include "cuda/linear_kernel.cuh"
#include "cuda/linear_launch.cuh"

namespace attention_bias::cuda {

namespace {

template <class T>
int64_t blocks_of(const LinearProblem& p) {
  return ceil_div(p.rows(), T::kSide) * ceil_div(p.outputs, T::kSide);
}

}  // namespace

void launch_linear(Runtime* runtime, const LinearProblem& p) {
  using Large = LinearTile<8>;
  using Small = LinearTile<4>;
  if (blocks_of<Large>(p) >= runtime->multiprocessors()) {
    runtime->launch(linear_kernel<Large::kMicro>, grid_of(blocks_of<Large>(p), 1), kLinearThreads,
                    Large::kSharedBytes, p);
  } else {
    runtime->launch(linear_kernel<Small::kMicro>, grid_of(blocks_of<Small>(p), 1), kLinearThreads,
                    Small::kSharedBytes, p);
  }
}

}  // namespace attention_bias::cuda
