// A buffer of floats on 64-byte boundaries that grows and never shrinks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

#include "core/errors.h"
#include "core/memory_limit.h"

namespace attention_bias::cpu {

class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { let_go(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Before the first floats(): what counts them. Null: nothing does.
  void bound_by(MemoryLimit* limit) { limit_ = limit; }

  // At least `count` floats, uninitialised. ERR_MEMORY where they can't be had.
  float* floats(int64_t count) {
    if (count > count_) {
      let_go();
      if (limit_) limit_->take(4 * count, "an operation's scratch");
      void* data = ::operator new(static_cast<size_t>(count) * sizeof(float), kAlignment, std::nothrow);
      if (!data && limit_) limit_->give_back(4 * count);
      if (!data)
        throw Error(ErrorCode::kMemory,
                    "could not allocate " + std::to_string(count * 4) + " bytes of scratch");
      data_.reset(static_cast<float*>(data));
      count_ = count;
    }
    return data_.get();
  }

 private:
  void let_go() {
    data_.reset();
    if (limit_) limit_->give_back(4 * count_);
    count_ = 0;
  }

  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t count_ = 0;
  MemoryLimit* limit_ = nullptr;
};

}  // namespace attention_bias::cpu
