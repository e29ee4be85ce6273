// The memory of one GPU, and page-locked memory for it: what was released is kept for the next request, since
// asking the driver takes up to milliseconds. Plain C++; where blocks come from is the derived class's.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "core/backend.h"

namespace attention_bias::cuda {

class MemoryPool : public MemorySource {
 public:
  void* allocate(Place place, int64_t bytes, bool zero, const std::string& what) override;
  void release(void* memory) noexcept override;
  MemoryUse use() override;
  void trim() override;

  // Where an address lies: in a block of this pool, or else in the host's memory.
  Place place_of(const void* address) const;

 protected:
  // `limit_bytes` of the GPU's memory, used and cached together; 0: none.
  explicit MemoryPool(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // A block of the driver's, aligned to 256 bytes; nullptr where there is none.
  virtual void* take(Place place, size_t bytes) = 0;
  virtual void give_back(Place place, void* memory) noexcept = 0;
  virtual void available(size_t* free, size_t* total) = 0;
  virtual void fill_zero(Place place, void* memory, size_t bytes) = 0;
  // A block of `held` bytes is handed out for `bytes` of them, or goes back to the cache (0).
  virtual void mark_used(void*, size_t /*bytes*/, size_t /*held*/) {}

 private:
  struct Block {
    Place place;
    size_t held;  // bytes, with what rounding added
  };
  using Cache = std::multimap<size_t, void*>;

  Cache& cache(Place place) { return place == Place::kDevice ? device_cache_ : pinned_cache_; }
  void* from_cache(Place place, size_t held);
  bool within_limit(size_t held) const;
  void trim_locked();
  void release_locked(void* memory) noexcept;

  mutable std::mutex mutex_;
  int64_t limit_bytes_;
  int64_t used_bytes_ = 0, cached_bytes_ = 0;  // of the GPU's
  std::map<const char*, Block> live_;          // handed out, by address
  Cache device_cache_, pinned_cache_;          // by size
};

}  // namespace attention_bias::cuda
