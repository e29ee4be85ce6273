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

Storage::Storage(void* data, size_t bytes, size_t mapped_bytes, std::shared_ptr<MemorySource> source,
                 std::shared_ptr<MemoryAccount> account)
    : data_(data),
      bytes_(bytes),
      mapped_bytes_(mapped_bytes),
      source_(std::move(source)),
      account_(std::move(account)) {
  if (!account_) return;
  account_->bytes += static_cast<int64_t>(bytes_);
  account_->blocks += 1;
}

Storage::~Storage() {
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
  void* data = source->allocate(place, bytes, contents == Contents::kZero, what);
  if (place == Place::kDevice) account = nullptr;
  return std::shared_ptr<Storage>(
      new Storage(data, static_cast<size_t>(bytes), 0, std::move(source), std::move(account)));
}

std::shared_ptr<Storage> Storage::allocate(int64_t bytes, Contents contents, const std::string& what,
                                           std::shared_ptr<MemoryAccount> account) {
  const size_t size = static_cast<size_t>(bytes);
  const bool mapped = size >= kMapFrom;
  const size_t held = round_up(size, mapped ? kPage : kAlignment);
  void* data = mapped ? map_pages(held) : std::aligned_alloc(kAlignment, held);
  if (data == nullptr) {
    throw expected(ErrorCode::kMemory, std::to_string(size) + " bytes of memory", what,
                   "none from the system");
  }
  if (!mapped && contents == Contents::kZero) std::memset(data, 0, size);
  return std::shared_ptr<Storage>(new Storage(data, size, mapped ? held : 0, nullptr, std::move(account)));
}

}  // namespace attention_bias::addon
