// Large zeroed memory that asks for huge pages: random accesses over it miss the processor's address translation cache
// far less often. Pages are taken from the system as they are first touched.
#pragma once

#include <cstddef>
#include <memory>

namespace damo {

struct ReleasePages {
  size_t bytes = 0;
  void operator()(void* memory) const;
};
using Pages = std::unique_ptr<void, ReleasePages>;

// Throws std::bad_alloc. Zero bytes give an empty pointer.
Pages AllocatePages(size_t bytes);

// Takes these pages from the system now, which zeroes them: on several threads at once, if each calls it for a part.
// REQUIRES: `begin` is a multiple of the size of a page. A hint: who touches them gets those that are missing.
void PopulatePages(char* begin, size_t bytes);

}  // namespace damo
