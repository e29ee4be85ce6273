// The launch of the gather kernel, and the choice between it and the tiled kernels: by the shape and the
// terms' fields only, so that the same call gives the same bits.
#pragma once

#include "cuda/attention_kernel.cuh"
#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

// Whether gathering pays: where a row sees few of the keys that the tiled kernels would work through.
bool gathers(const AttentionProblem& problem);

// Of arguments as for the attention kernels, not split, of a problem with terms and head dims of at most 256.
// Needs no repair.
void launch_gather(Runtime* runtime, const AttentionProblem& problem, const AttentionArguments& arguments);

}  // namespace attention_bias::cuda
