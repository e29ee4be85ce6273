// What the gradients' kernels are told, apart from them: they may be in one object only.
#pragma once

#include "core/operations.h"
#include "core/softmax.h"

namespace attention_bias::cuda {

struct BackwardArguments {
  HeadRows query;          // [B·H, Q, D]
  HeadRows key;            // [B·H, K, D]
  HeadRows value;          // [B·H, K, Dv]
  const float* grad_out;   // [B·H, Q, Dv]
  const RowSum* row_sums;  // [B·H, Q]
  const float* mean;       // likewise
  const Term* terms;
  int32_t term_count;
  int64_t rows, heads;  // B·H, H
  int32_t queries, keys;
  int32_t head_dim, value_dim;
  float scale;
};

}  // namespace attention_bias::cuda
