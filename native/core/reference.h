// The slow float64 evaluation of the contract, for tests and self-tests: one pass a row, nothing tiled,
// nothing clever.
#pragma once

#include <vector>

#include "core/deformable.h"
#include "core/multihead.h"
#include "core/operations.h"

namespace attention_bias {

// out [B, H, Q, Dv] and lse [B, H, Q] in float64.
void reference_attention(const AttentionProblem& problem, double* out, double* lse);

// The gradients in float64; terms as bias->learnables(). Of the problem's outputs nothing is read or written.
struct ReferenceGradients {
  std::vector<double> query, key, value;
  std::vector<std::vector<double>> terms;
};
ReferenceGradients reference_backward(const BackwardProblem& problem);

// bias_shape(bias) in float64.
void reference_bias(const Program& bias, double* out);

// out [B, Q, H·D] in float64.
void reference_deformable(const DeformableProblem& problem, double* out);

// The gradients of Σ grad_out·out, [B, S, H, D], [B, Q, H, L, P, 2] and [B, Q, H, L, P], in float64.
void reference_deformable_backward(const DeformableBackwardProblem& problem, double* grad_value,
                                   double* grad_locations, double* grad_weights);
// The output in its own layout.
void reference_linear(const LinearProblem& problem, double* out);
// out [B, Q, E]; between its parts rounded to float32, the parts' type, which costs 6e-8.
void reference_multihead(const MultiheadProblem& problem, double* out);

}  // namespace attention_bias
