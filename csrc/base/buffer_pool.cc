#include "base/buffer_pool.h"

#include <algorithm>
#include <new>
#include <utility>

namespace damo {

Pages BufferPool::Take(size_t bytes) {
  {
    const MutexLock lock(&mutex_);
    const auto fits = [&](const Pages& p) {
      return p.get_deleter().bytes >= bytes && p.get_deleter().bytes / 2 <= bytes;
    };
    const auto found = std::find_if(free_.rbegin(), free_.rend(), fits);
    if (found != free_.rend()) {
      Pages pages = std::move(*found);
      free_.erase(std::next(found).base());
      free_bytes_ -= pages.get_deleter().bytes;
      return pages;
    }
  }
  return AllocatePages(bytes);
}

void BufferPool::GiveBack(Pages pages) noexcept {
  const MutexLock lock(&mutex_);
  const size_t bytes = pages.get_deleter().bytes;
  try {
    free_.push_back(std::move(pages));
  } catch (const std::bad_alloc&) {  // they go back to the system
    return;
  }
  free_bytes_ += bytes;
  while (free_bytes_ > kept_bytes_) {
    free_bytes_ -= free_.front().get_deleter().bytes;
    free_.erase(free_.begin());
  }
}

size_t BufferPool::kept_bytes() {
  const MutexLock lock(&mutex_);
  return free_bytes_;
}

}  // namespace damo
