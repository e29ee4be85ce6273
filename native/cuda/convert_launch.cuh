// Operands of the attention kernel in the type that its precision reads.
#pragma once

#include <string>

#include "core/operations.h"
#include "cuda/attention_kernel.cuh"
#include "cuda/convert_kernel.cuh"
#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

// `rows` of `columns` float32 as bfloat16, padded (convert_kernel.cuh).
inline DeviceMemory to_bf16_rows(Runtime* runtime, const float* from, int64_t rows, int32_t columns) {
  const int64_t elements = rows * padded_dim(columns), runs = elements / kConvertRun;
  const int64_t blocks = (runs + kConvertThreads - 1) / kConvertThreads;
  if (blocks >= (int64_t{1} << 31)) {
    throw expected(ErrorCode::kShape, "fewer than 2^42 elements", "key and value", std::to_string(elements));
  }
  DeviceMemory to(runtime, static_cast<size_t>(elements) * sizeof(uint16_t));
  runtime->launch(convert_kernel, {static_cast<int>(blocks), 1, 1}, kConvertThreads, size_t{0}, from,
                  to.as<uint16_t>(), runs, columns);
  return to;
}

// Points `a` at keys and values in bfloat16, which live as long as what is returned.
struct Bf16Operands {
  DeviceMemory key, value;
};
inline Bf16Operands convert_operands(Runtime* runtime, Precision precision, AttentionArguments* a) {
  if (precision != Precision::kBf16) return {};
  Bf16Operands operands = {to_bf16_rows(runtime, a->key, a->rows * a->keys, a->head_dim),
                           to_bf16_rows(runtime, a->value, a->rows * a->keys, a->value_dim)};
  a->key_bf16 = operands.key.as<uint16_t>();
  a->value_bf16 = operands.value.as<uint16_t>();
  return operands;
}

}  // namespace attention_bias::cuda
