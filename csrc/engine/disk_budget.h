// A limit for what a store's directory takes on disk.
//
// What counts is the size of all files there, hard links once: live rows and their journal, checkpoints, and what
// crashes left behind. To measure that takes a look at each file. In between it is at most as much more as has been
// written since, which is known without: the nearer that comes to the limit, the more often it is measured.
#pragma once

#include <cstdint>
#include <string>

#include "base/mutex.h"
#include "storage/row_store.h"

namespace damo {

// Thread-safe. With a limit of 0 it is never full.
class DiskBudget {
 public:
  DiskBudget(uint64_t limit, std::string directory, const RowStore* rows);

  // Whether the limit is reached: then what grows is refused, and what changes or removes is not.
  bool IsFull();
  // Throws kOutOfSpace, in the former if it IsFull.
  void RequireRoom();
  [[noreturn]] void Refuse();

  // As last measured.
  uint64_t used() const;

 private:
  void Measure() DAMO_REQUIRES(mutex_);

  const uint64_t limit_;
  const std::string directory_;
  const RowStore* const rows_;
  mutable Mutex mutex_;
  uint64_t used_ DAMO_GUARDED_BY(mutex_) = 0;
  uint64_t written_ DAMO_GUARDED_BY(mutex_) = 0;  // RowStoreStats::bytes_written, when that was measured
};

}  // namespace damo
