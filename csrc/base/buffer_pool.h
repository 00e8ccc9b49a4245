// Memory for outputs, used again from step to step: fresh memory costs a page fault and a clearing for each page, which
// takes longer than filling it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/huge_pages.h"
#include "base/mutex.h"

namespace damo {

// Thread-safe.
class BufferPool {
 public:
  // Keeps at most `kept_bytes` of memory that nobody uses.
  explicit BufferPool(size_t kept_bytes) : kept_bytes_(kept_bytes) {}

  // At least `bytes`, of unknown contents. Throws std::bad_alloc.
  Pages Take(size_t bytes);
  void GiveBack(Pages pages) noexcept;
  // That nobody uses.
  size_t kept_bytes();

 private:
  const size_t kept_bytes_;
  Mutex mutex_;
  std::vector<Pages> free_ DAMO_GUARDED_BY(mutex_);  // most recently used last
  size_t free_bytes_ DAMO_GUARDED_BY(mutex_) = 0;
};

}  // namespace damo
