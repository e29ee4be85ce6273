// The launches of deformable attention: from the problem's tensors, wherever they are, to its outputs,
// between the beginning of a work and its end.
#pragma once

#include "core/deformable.h"
#include "cuda/work.cuh"

namespace attention_bias::cuda {

void launch_deformable(Work* work, const DeformableProblem& problem);
void launch_deformable_backward(Work* work, const DeformableBackwardProblem& problem);

}  // namespace attention_bias::cuda
