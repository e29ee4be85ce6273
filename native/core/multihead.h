// A linear layer, and torch.nn.MultiheadAttention: projections into heads, attention, a projection back.
#pragma once

#include "core/operations.h"

namespace attention_bias {

// [B, H, T, dim]: what is said of H·dim columns of a token lies head by head. With one head, [B, T, dim].
struct HeadLayout {
  int64_t tokens = 1, heads = 1;  // T, H
  int32_t dim = 1;

  // Column c of token t of batch row b is at row(b, t) + column(c).
  AB_HD int64_t row(int64_t b, int64_t t) const { return (b * heads * tokens + t) * dim; }
  AB_HD int64_t column(int32_t c) const { return c / dim * (tokens * dim) + c % dim; }
};

// out = (input + position)·weightᵀ + bias + residual
struct LinearProblem {
  int64_t batch = 0;                // B
  int64_t tokens = 0;               // T
  int64_t features = 0;             // E
  int64_t outputs = 0;              // N
  int64_t input_heads = 1;          // H of the input
  int64_t out_heads = 1;            // H of the output
  const float* input = nullptr;     // [B, T, E], or [B, H, T, E/H]
  const float* position = nullptr;  // [B, T, E], or null; with one input head only
  const float* weight = nullptr;    // [N, E]
  const float* bias = nullptr;      // [N], or null
  const float* residual = nullptr;  // [B, T, N], or null
  float* out = nullptr;             // [B, T, N], or [B, H, T, N/H]

  AB_HD int64_t rows() const { return batch * tokens; }
  AB_HD HeadLayout input_layout() const {
    return {tokens, input_heads, static_cast<int32_t>(features / input_heads)};
  }
  AB_HD HeadLayout out_layout() const {
    return {tokens, out_heads, static_cast<int32_t>(outputs / out_heads)};
  }
};

// E and N, so that columns fit 32 bits with a tile added.
constexpr int64_t kMaxFeatures = int64_t{1} << 30;

// Of input [.., E], weight [N, E] and bias [N] or null; fills all but out.
LinearProblem linear_problem(const TensorView& input, const TensorView& weight, const TensorView* bias);

// The tensors of `multihead`. Those that may be null are optional.
struct MultiheadTensors {
  const TensorView *query, *key, *value;  // [B, Q, E], [B, K, E], [B, K, E]
  const TensorView *query_pos, *key_pos;  // [B, Q, E], [B, K, E], or null
  const TensorView* in_weight;            // [3E, E]: rows of query, key and value
  const TensorView* in_bias;              // [3E], or null
  const TensorView* out_weight;           // [E, E]
  const TensorView* out_bias;             // [E], or null
};

struct MultiheadProblem {
  Extent extent;
  int64_t features = 0;  // E
  const float *query = nullptr, *key = nullptr, *value = nullptr;
  const float *query_pos = nullptr, *key_pos = nullptr;
  const float *in_weight = nullptr, *in_bias = nullptr, *out_weight = nullptr, *out_bias = nullptr;
  bool identity = false;  // adds query, without its position, to the output
  Precision precision = Precision::kF32;
  const Program* bias = nullptr;
  float* out = nullptr;  // [B, Q, E]
};

// Checks the tensors and heads against each other, and fills all but identity, precision, bias and out.
MultiheadProblem multihead_problem(const MultiheadTensors& tensors, int64_t heads);

// What lies between the parts.
struct MultiheadMemory {
  float* query;     // [B, H, Q, D]
  float* key;       // [B, H, K, D]
  float* value;     // [B, H, K, D]
  float* attended;  // [B, H, Q, D]
  float* lse;       // [B, H, Q]
};
// How many floats each takes.
struct MultiheadSizes {
  int64_t query, key, value, attended, lse;
};
MultiheadSizes multihead_sizes(const MultiheadProblem& problem);

// One after the other they are the operation.
struct MultiheadParts {
  LinearProblem query, key, value;
  AttentionProblem attention;
  LinearProblem out;
};
MultiheadParts multihead_parts(const MultiheadProblem& problem, const MultiheadMemory& memory);

}  // namespace attention_bias
