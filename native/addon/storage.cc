#include "addon/storage.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/errors.h"

namespace attention_bias::addon {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = size_t{64} << 10;  // a multiple of any system's
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = 2 * kHugePage;
// From here on blocks are mapped one by one, so that freed memory is the system's again: malloc would keep
// it.
constexpr size_t kMapFrom = size_t{256} << 10;

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

// Zero-filled pages, from kHugeFrom on huge ones where the system has them; nullptr where there are none.
void* map_pages(size_t bytes) {
  const bool huge = bytes >= kHugeFrom;
  const size_t reserved = huge ? bytes + kHugePage : bytes;
  void* base = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  if (!huge) return base;
  const uintptr_t start = reinterpret_cast<uintptr_t>(base);
  const uintptr_t aligned = round_up(start, kHugePage);
  if (aligned > start) munmap(base, aligned - start);
  const size_t tail = start + reserved - (aligned + bytes);
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
  void* data = reinterpret_cast<void*>(aligned);
#ifdef MADV_HUGEPAGE
  madvise(data, bytes, MADV_HUGEPAGE);  // a hint: a system without huge pages refuses it, and nothing is lost
#endif
  return data;
}

}  // namespace

Storage::Storage(size_t bytes, std::shared_ptr<MemorySource> source)
    : bytes_(bytes), source_(std::move(source)) {}

void Storage::own(void* data, size_t mapped_bytes, std::shared_ptr<MemoryAccount> account) noexcept {
  data_ = data;
  mapped_bytes_ = mapped_bytes;
  account_ = std::move(account);
  if (!account_) return;
  account_->bytes += static_cast<int64_t>(bytes_);
  account_->blocks += 1;
}

Storage::~Storage() {
  if (limit_) limit_->give_back(static_cast<int64_t>(bytes_));
  if (!data_) return;
  if (source_) {
    source_->release(data_);
  } else if (mapped_bytes_ > 0) {
    munmap(data_, mapped_bytes_);
  } else {
    std::free(data_);
  }
  if (!account_) return;
  account_->bytes -= static_cast<int64_t>(bytes_);
  account_->blocks -= 1;
}

std::shared_ptr<Storage> Storage::allocate_from(std::shared_ptr<MemorySource> source, Place place,
                                                int64_t bytes, Contents contents, const std::string& what,
                                                std::shared_ptr<MemoryAccount> account) {
  if (place == Place::kDevice) account = nullptr;
  // The owner first, which then has the memory to free.
  const std::shared_ptr<Storage> storage(new Storage(static_cast<size_t>(bytes), std::move(source)));
  storage->own(storage->source_->allocate(place, bytes, contents == Contents::kZero, what), 0,
               std::move(account));
  return storage;
}

std::shared_ptr<Storage> Storage::allocate(int64_t bytes, Contents contents, const std::string& what,
                                           std::shared_ptr<MemoryAccount> account,
                                           std::shared_ptr<MemoryLimit> limit) {
  const size_t size = static_cast<size_t>(bytes);
  const bool mapped = size >= kMapFrom;
  const size_t held = round_up(size, mapped ? kPage : kAlignment);
  const std::shared_ptr<Storage> storage(new Storage(size, nullptr));  // first: it has the memory to free
  if (limit) {
    limit->take(bytes, what.c_str());
    storage->limit_ = std::move(limit);
  }
  void* data = mapped ? map_pages(held) : std::aligned_alloc(kAlignment, held);
  if (data == nullptr) {
    throw expected(ErrorCode::kMemory, std::to_string(size) + " bytes of memory", what,
                   "none from the system");
  }
  if (!mapped && contents == Contents::kZero) std::memset(data, 0, size);
  storage->own(data, mapped ? held : 0, std::move(account));
  return storage;
}

}  // namespace attention_bias::addon
