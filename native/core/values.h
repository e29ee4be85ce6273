// Checks of tensors' values.
#pragma once

#include <string>

#include "core/shapes.h"

namespace attention_bias {

// All elements of a float32 tensor lie in [low, high]; none is NaN. `what` is what a message expects.
struct ValueCheck {
  TensorView view;
  float low, high;
  const char* what;
};

// ERR_VALUE with the first element that fails and its index. For tensors that the host can read.
void require_values(const ValueCheck& check);

// The error where element `index` is `value`.
Error value_error(const ValueCheck& check, int64_t index, float value);

// As messages show it, "%.9g".
std::string number(double value);

}  // namespace attention_bias
