#include "core/values.h"

#include <algorithm>
#include <cstdio>

namespace attention_bias {

std::string number(double value) {
  char text[32];
  snprintf(text, sizeof text, "%.9g", value);
  return text;
}

Error value_error(const ValueCheck& check, int64_t index, float value) {
  return expected(ErrorCode::kValue, check.what, check.view.name,
                  number(value) + " at element " + std::to_string(index));
}

void require_values(const ValueCheck& check) {
  const float* data = check.view.f32();
  const float low = check.low, high = check.high;
  const int64_t count = element_count(check.view.shape, check.view.name);
  constexpr int64_t kBlock = 4096;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    int bad = 0;  // a sum without a branch, so that the loop vectorises
    for (int64_t i = begin; i < end; ++i) bad |= !(data[i] >= low && data[i] <= high);
    if (!bad) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (!(data[i] >= low && data[i] <= high)) throw value_error(check, i, data[i]);
    }
  }
}

}  // namespace attention_bias
