// C++'s memory where the n-th request for it fails (faults.h). In the emulated addon these are its own,
// hidden from the process, with the system's calls that the linker hands over (CMakeLists.txt).
#include <pthread.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <new>

#include "faults.h"

namespace {

using attention_bias::faults::Kind;

std::atomic<int64_t> live{0};

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (attention_bias::faults::fails(Kind::kMemory)) return nullptr;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    memory = std::malloc(bytes > 0 ? bytes : 1);
  } else if (posix_memalign(&memory, alignment, rounded > 0 ? rounded : alignment) != 0) {
    memory = nullptr;
  }
  if (memory) ++live;
  return memory;
}

void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  void* const memory = allocate(bytes, alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

void deallocate(void* memory) noexcept {
  if (memory) --live;
  std::free(memory);
}

constexpr std::size_t kPlain = alignof(std::max_align_t);

}  // namespace

namespace attention_bias::faults {
int64_t live_blocks() { return live; }
}  // namespace attention_bias::faults

using Alignment = std::align_val_t;
constexpr std::size_t of(Alignment alignment) { return static_cast<std::size_t>(alignment); }

void* operator new(std::size_t bytes) { return allocate_or_throw(bytes, kPlain); }
void* operator new[](std::size_t bytes) { return allocate_or_throw(bytes, kPlain); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, kPlain); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, kPlain); }
void* operator new(std::size_t bytes, Alignment a) { return allocate_or_throw(bytes, of(a)); }
void* operator new[](std::size_t bytes, Alignment a) { return allocate_or_throw(bytes, of(a)); }
void* operator new(std::size_t n, Alignment a, const std::nothrow_t&) noexcept { return allocate(n, of(a)); }
void* operator new[](std::size_t n, Alignment a, const std::nothrow_t&) noexcept {
  return allocate(n, of(a));
}
void operator delete(void* memory) noexcept { deallocate(memory); }
void operator delete[](void* memory) noexcept { deallocate(memory); }
void operator delete(void* memory, std::size_t) noexcept { deallocate(memory); }
void operator delete[](void* memory, std::size_t) noexcept { deallocate(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { deallocate(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { deallocate(memory); }
void operator delete(void* memory, Alignment) noexcept { deallocate(memory); }
void operator delete[](void* memory, Alignment) noexcept { deallocate(memory); }
void operator delete(void* memory, std::size_t, Alignment) noexcept { deallocate(memory); }
void operator delete[](void* memory, std::size_t, Alignment) noexcept { deallocate(memory); }
void operator delete(void* memory, Alignment, const std::nothrow_t&) noexcept { deallocate(memory); }
void operator delete[](void* memory, Alignment, const std::nothrow_t&) noexcept { deallocate(memory); }

#if defined(AB_WRAPPED)
extern "C" {
void* __real_mmap(void*, std::size_t, int, int, int, off_t);
void* __real_aligned_alloc(std::size_t, std::size_t);
int __real_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);

void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int file, off_t offset) {
  if (attention_bias::faults::fails(Kind::kMemory)) return errno = ENOMEM, MAP_FAILED;
  return __real_mmap(at, bytes, protection, flags, file, offset);
}
void* __wrap_aligned_alloc(std::size_t alignment, std::size_t bytes) {
  return attention_bias::faults::fails(Kind::kMemory) ? nullptr : __real_aligned_alloc(alignment, bytes);
}
int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* with) {
  return attention_bias::faults::fails(Kind::kThread) ? EAGAIN
                                                      : __real_pthread_create(thread, how, run, with);
}
}
#endif
