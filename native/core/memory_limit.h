// A bound on what a device of the CPU takes of the system's memory, for its tensors and for its operations'
// scratch.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "core/errors.h"

namespace attention_bias {

// Any thread.
class MemoryLimit {
 public:
  explicit MemoryLimit(int64_t bytes) : limit_(bytes) {}
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

  // Before memory is taken. ERR_MEMORY naming `what`, with what is asked for, in use, and the limit.
  void take(int64_t bytes, const char* what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_ - used_) {
      throw expected(
          ErrorCode::kMemory, std::to_string(bytes) + " bytes of memory", what,
          "none: " + std::to_string(used_) + " are in use of a limit of " + std::to_string(limit_));
    }
    used_ += bytes;
  }
  void give_back(int64_t bytes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ -= bytes;
  }

  int64_t used_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return used_;
  }
  int64_t limit_bytes() const { return limit_; }

 private:
  mutable std::mutex mutex_;
  const int64_t limit_;
  int64_t used_ = 0;
};

// Counts memory for as long as it lives. `limit` null: none.
class Counted {
 public:
  Counted() = default;
  Counted(MemoryLimit* limit, int64_t bytes, const char* what) : limit_(limit), bytes_(bytes) {
    if (limit_) limit_->take(bytes_, what);
  }
  ~Counted() {
    if (limit_) limit_->give_back(bytes_);
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  MemoryLimit* limit_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace attention_bias
