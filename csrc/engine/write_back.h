// Brings dirty rows from the cache to the RowStore: at once where the caller needs it, and ahead of eviction on a
// thread of its own, so that a segment that has to go is clean by then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/cached_tables.h"
#include "engine/journal.h"
#include "storage/row_store.h"

namespace damo {

class WriteBack {
 public:
  WriteBack(RowStore* store, Journal* journal, CachedTables* rows);
  ~WriteBack();

  // Waits for the write under way in the background and begins no more. Idempotent.
  void Stop();

  // Writes the rows of `segments` that an eviction now would drop and that are dirty. When it throws, every row that
  // was not written still is dirty.
  void WriteEvictable(const std::vector<uint32_t>& segments) DAMO_REQUIRES(store_mutex);
  // Writes all rows that are dirty, after which checkpoints need no journal. As to errors, as above.
  void WriteAll() DAMO_REQUIRES(store_mutex);
  // Some of WriteAll's work ahead of it: writes the dirty rows of some segments, from the `first`th of those in use on.
  // Returns how many segments that leaves done, and how many there are. As to errors, as above.
  std::pair<size_t, size_t> WritePart(size_t first) DAMO_REQUIRES(store_mutex);

  // Waits until done() holds, and begins no write in the background meanwhile. REQUIRES: who makes it hold notifies
  // `progress`.
  template <class F>
  void WaitUntil(F done) DAMO_REQUIRES(store_mutex) {
    ++waiting_;
    rows_->progress.Wait(rows_->mutex(), done);
    --waiting_;
  }
  // Waits until no write is under way in the background.
  void WaitIdle() DAMO_REQUIRES(store_mutex) {
    WaitUntil([&]() DAMO_REQUIRES(store_mutex) { return !busy_; });
  }

  // Waits until no write is under way in the background, and lets none begin until Release.
  void Hold() DAMO_REQUIRES(store_mutex) {
    WaitIdle();
    ++waiting_;
  }
  void Release() DAMO_REQUIRES(store_mutex) {
    --waiting_;
    Wake();
  }

  // By either thread.
  uint64_t rows_written() const DAMO_REQUIRES(store_mutex) { return rows_written_; }

  // Lets the background thread look for work. To be called when an operation ends.
  void Wake() DAMO_REQUIRES(store_mutex);

 private:
  // What the background thread is to take out of the cache for one write.
  struct Taken {
    std::vector<uint32_t> cleaned;   // segments that need no second look
    std::vector<uint32_t> segments;  // those of the rows
    std::vector<Slot> slots;
  };

  template <class F>
  void Write(const std::vector<uint32_t>& segments, bool evictable_only, F written) DAMO_REQUIRES(store_mutex);
  void Loop();
  // Returns whether there were rows to write.
  bool WriteAhead() DAMO_REQUIRES(store_mutex);
  Taken Take() const DAMO_REQUIRES(store_mutex);
  size_t PayloadBytes(const std::vector<Slot>& slots, size_t first) const DAMO_REQUIRES(store_mutex);

  RowStore* const store_;
  Journal* const journal_;
  CachedTables* const rows_;
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  CondVar work_;
  bool stop_ DAMO_GUARDED_BY(store_mutex) = false;
  // Calls that wait for the thread, or hold it: it starts nothing new then.
  int waiting_ DAMO_GUARDED_BY(store_mutex) = 0;
  bool busy_ DAMO_GUARDED_BY(store_mutex) = false;
  bool wanted_ DAMO_GUARDED_BY(store_mutex) = false;
  uint64_t rows_written_ DAMO_GUARDED_BY(store_mutex) = 0;
  std::thread thread_;
};

}  // namespace damo
