// The slow float64 evaluation of the contract, for tests and self-tests: one pass a row, nothing tiled,
// nothing clever.
#pragma once

#include "core/multihead.h"
#include "core/operations.h"

namespace attention_bias {

// out [B, H, Q, Dv] and lse [B, H, Q] in float64.
void reference_attention(const AttentionProblem& problem, double* out, double* lse);

// bias_shape(bias) in float64.
void reference_bias(const Program& bias, double* out);

// The output in its own layout.
void reference_linear(const LinearProblem& problem, double* out);
// out [B, Q, E]; between its parts rounded to float32, the parts' type, which costs 6e-8.
void reference_multihead(const MultiheadProblem& problem, double* out);

}  // namespace attention_bias
