#include "testing/failing_allocations.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

namespace damo::testing {
namespace {

std::atomic<bool> counts = false;
std::atomic<size_t> allocations = 0;
std::atomic<size_t> fails_at = 0;

bool Fails() { return counts && allocations++ == fails_at; }

void* Allocate(size_t bytes, size_t alignment) {
  // aligned_alloc wants a multiple of the alignment, and may give nothing for nothing.
  void* memory = Fails() ? nullptr : std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

FailingAllocation::FailingAllocation(size_t n) : n_(n) {
  allocations = 0;
  fails_at = n;
  counts = true;
}

FailingAllocation::~FailingAllocation() { counts = false; }

size_t FailingAllocation::seen() const { return allocations; }

}  // namespace damo::testing

#ifdef DAMO_ALLOCATIONS_CAN_FAIL
// In place of the standard library's. Its others call these; a sanitizer's do not, so there are all that the tests use.
void* operator new(size_t bytes) { return damo::testing::Allocate(bytes, alignof(std::max_align_t)); }
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return damo::testing::Allocate(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return operator new(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](size_t bytes, const std::nothrow_t& nothrow) noexcept { return operator new(bytes, nothrow); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
#endif

#ifndef DAMO_TESTS_RUN_SANITIZED
// In place of the C library's, whose own malloc does without it.
extern "C" [[gnu::visibility("default")]] void* mmap(void* address, size_t bytes, int protection, int flags, int fd,
                                                     off_t offset) noexcept {
  if ((flags & MAP_ANONYMOUS) != 0 && damo::testing::Fails()) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, protection, flags, fd, offset));
}
#endif
