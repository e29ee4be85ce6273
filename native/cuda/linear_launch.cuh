// Launches of linear layers.
#pragma once

#include "core/multihead.h"
#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

// Of a problem whose tensors are the device's, aligned to 16 bytes.
void launch_linear(Runtime* runtime, const LinearProblem& problem);

}  // namespace attention_bias::cuda
