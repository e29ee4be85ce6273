#include "cuda/attention_launch.cuh"

namespace attention_bias::cuda {

void launch_attention_tf32(Runtime* runtime, int64_t dim, Grid grid, const AttentionArguments& arguments) {
  launch_attention<Precision::kTf32>(runtime, dim, grid, arguments);
}

}  // namespace attention_bias::cuda
