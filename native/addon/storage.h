// Native memory of tensors: what JavaScript sees as an ArrayBuffer, or the memory of a device.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/backend.h"
#include "core/memory_limit.h"

namespace attention_bias::addon {

// What the live Storage of one environment adds up to.
struct MemoryAccount {
  std::atomic<int64_t> bytes{0};
  std::atomic<int64_t> blocks{0};
};

// A block of memory, freed with its last reference: the ArrayBuffer over it holds one, each running operation
// that uses it another. Aligned to 64 bytes; from 4 MiB on to 2 MiB, on huge pages where the system has them.
class Storage {
 public:
  enum class Contents { kZero, kUndefined };

  // ERR_MEMORY naming `what` and the bytes. `bytes` at least 1. `limit`, if any, counts them. Any thread.
  static std::shared_ptr<Storage> allocate(int64_t bytes, Contents contents, const std::string& what,
                                           std::shared_ptr<MemoryAccount> account,
                                           std::shared_ptr<MemoryLimit> limit = nullptr);
  // Of a backend's own memory; `place` is not the host's. Pinned memory counts in the account, a device's
  // does not.
  static std::shared_ptr<Storage> allocate_from(std::shared_ptr<MemorySource> source, Place place,
                                                int64_t bytes, Contents contents, const std::string& what,
                                                std::shared_ptr<MemoryAccount> account);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Where it is from; null: from the system.
  const MemorySource* source() const { return source_.get(); }

 private:
  // Of nothing yet.
  Storage(size_t bytes, std::shared_ptr<MemorySource> source);
  void own(void* data, size_t mapped_bytes, std::shared_ptr<MemoryAccount> account) noexcept;

  void* data_ = nullptr;
  size_t bytes_;
  size_t mapped_bytes_ = 0;  // 0: from the heap
  std::shared_ptr<MemorySource> source_;
  std::shared_ptr<MemoryAccount> account_;  // null: not counted
  std::shared_ptr<MemoryLimit> limit_;      // likewise
};

}  // namespace attention_bias::addon
