#include "base/huge_pages.h"

#include <sys/mman.h>

#include <new>

namespace damo {

void ReleasePages::operator()(void* memory) const { munmap(memory, bytes); }

Pages AllocatePages(size_t bytes) {
  if (bytes == 0) return Pages(nullptr, ReleasePages{0});
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);  // advice: without huge pages all is slower, not wrong
#endif
  return Pages(memory, ReleasePages{bytes});
}

void PopulatePages([[maybe_unused]] char* begin, [[maybe_unused]] size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  madvise(begin, bytes, MADV_POPULATE_WRITE);
#endif
}

}  // namespace damo
