// A buffer of floats on 64-byte boundaries that grows and never shrinks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

#include "core/errors.h"

namespace attention_bias::cpu {

class Scratch {
 public:
  // At least `count` floats, uninitialised. ERR_MEMORY where they can't be had.
  float* floats(int64_t count) {
    if (count > count_) {
      data_.reset();
      count_ = 0;
      void* data = ::operator new(static_cast<size_t>(count) * sizeof(float), kAlignment, std::nothrow);
      if (!data)
        throw Error(ErrorCode::kMemory,
                    "could not allocate " + std::to_string(count * 4) + " bytes of scratch");
      data_.reset(static_cast<float*>(data));
      count_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t count_ = 0;
};

}  // namespace attention_bias::cpu
