#include "cuda/memory_pool.h"

namespace attention_bias::cuda {

namespace {

// Powers of two to 1 MiB, then multiples of it: a few sizes, so that blocks fit again.
size_t round_up(size_t bytes) {
  constexpr size_t kMebibyte = size_t{1} << 20;
  if (bytes > kMebibyte) return (bytes + kMebibyte - 1) / kMebibyte * kMebibyte;
  size_t rounded = 256;
  while (rounded < bytes) rounded *= 2;
  return rounded;
}

}  // namespace

void* MemoryPool::from_cache(Place place, size_t held) {
  Cache& blocks = cache(place);
  const auto found = blocks.lower_bound(held);
  // A block that is much too large is left for those who need it.
  if (found == blocks.end() || found->first > held + held / 4) return nullptr;
  void* const memory = found->second;
  const size_t size = found->first;
  live_[static_cast<const char*>(memory)] = {place, size};
  blocks.erase(found);
  if (place == Place::kDevice) {
    cached_bytes_ -= static_cast<int64_t>(size);
    used_bytes_ += static_cast<int64_t>(size);
  }
  return memory;
}

bool MemoryPool::within_limit(size_t held) const {
  return limit_bytes_ == 0 || used_bytes_ + cached_bytes_ + static_cast<int64_t>(held) <= limit_bytes_;
}

void* MemoryPool::allocate(Place place, int64_t bytes, bool zero, const std::string& what) {
  const size_t size = static_cast<size_t>(bytes), held = round_up(size);
  const bool device = place == Place::kDevice;
  const std::lock_guard<std::mutex> lock(mutex_);
  void* memory = from_cache(place, held);
  if (!memory) {
    if (!device || within_limit(held)) memory = take(place, held);
    if (!memory) {
      trim_locked();
      if (!device || within_limit(held)) memory = take(place, held);
    }
    if (!memory) {
      size_t free_bytes = 0, total = 0;
      available(&free_bytes, &total);
      std::string received = "none from the system";
      if (device) {
        received = "none: " + std::to_string(free_bytes) + " of " + std::to_string(total) + " bytes are free";
        if (limit_bytes_ > 0) {
          received += ", and " + std::to_string(used_bytes_) + " are in use of a limit of " +
                      std::to_string(limit_bytes_);
        }
      }
      throw expected(ErrorCode::kMemory,
                     std::to_string(bytes) + " bytes of " + (device ? "device" : "pinned") + " memory", what,
                     received);
    }
    try {
      live_[static_cast<const char*>(memory)] = {place, held};
    } catch (...) {
      give_back(place, memory);
      throw;
    }
    if (device) used_bytes_ += static_cast<int64_t>(held);
  }
  mark_used(memory, size, live_.at(static_cast<const char*>(memory)).held);
  if (!zero) return memory;
  try {
    fill_zero(place, memory, size);
  } catch (...) {
    release_locked(memory);
    throw;
  }
  return memory;
}

void MemoryPool::release(void* memory) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  release_locked(memory);
}

void MemoryPool::release_locked(void* memory) noexcept {
  const auto entry = live_.find(static_cast<const char*>(memory));
  if (entry == live_.end()) return;
  const Block block = entry->second;
  live_.erase(entry);
  const bool device = block.place == Place::kDevice;
  if (device) used_bytes_ -= static_cast<int64_t>(block.held);
  try {
    mark_used(memory, 0, block.held);
    cache(block.place).emplace(block.held, memory);
    if (device) cached_bytes_ += static_cast<int64_t>(block.held);
  } catch (...) {  // no memory to remember it by
    give_back(block.place, memory);
  }
}

MemoryUse MemoryPool::use() {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t free_bytes = 0, total = 0;
  available(&free_bytes, &total);
  return {used_bytes_, cached_bytes_, limit_bytes_, static_cast<int64_t>(free_bytes),
          static_cast<int64_t>(total)};
}

void MemoryPool::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  trim_locked();
}

void MemoryPool::trim_locked() {
  for (const Place place : {Place::kDevice, Place::kPinned}) {
    for (const auto& [held, memory] : cache(place)) give_back(place, memory);
    cache(place).clear();
  }
  cached_bytes_ = 0;
}

Place MemoryPool::place_of(const void* address) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const char* const at = static_cast<const char*>(address);
  auto entry = live_.upper_bound(at);
  if (entry == live_.begin()) return Place::kHost;
  --entry;
  return at < entry->first + entry->second.held ? entry->second.place : Place::kHost;
}

}  // namespace attention_bias::cuda
