// Launches of the gradients' kernels.
#pragma once

#include "core/operations.h"
#include "cuda/backward_arguments.cuh"
#include "cuda/work.cuh"

namespace attention_bias::cuda {

// Queues all kernels of a problem whose inputs are on the device (as a.query, a.key, … and a.terms say), with
// `out` and `lse` the attention's results there; a.mean and a.row_sums are filled in here. The outputs are
// wherever `problem` has them.
void launch_backward(Work* work, int multiprocessors, const BackwardProblem& problem, const float* out,
                     const float* lse, BackwardArguments a);

}  // namespace attention_bias::cuda
