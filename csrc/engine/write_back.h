// Brings dirty rows from the cache to the RowStore: at once where the caller needs it, and ahead of eviction on a
// thread of its own, so that a segment that has to go is clean by then.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cache/row_cache.h"
#include "engine/journal.h"
#include "engine/row_copies.h"
#include "storage/row_store.h"

namespace damo {

// All methods but the constructor and the destructor REQUIRE the store's mutex, and take its lock where they may wait.
class WriteBack {
 public:
  using Tables = RowCopies::Tables;

  // Notifies `progress`, which goes with `store_mutex`, whenever a write in the background has ended.
  WriteBack(RowStore* rows, Journal* journal, RowCache* cache, const Tables* tables, std::mutex* store_mutex,
            std::condition_variable* progress);
  ~WriteBack();

  // Writes the rows of `segments` that an eviction now would drop and that are dirty. When it throws, every row that
  // was not written still is dirty.
  void WriteEvictable(const std::vector<uint32_t>& segments, std::unique_lock<std::mutex>& lock);
  // Writes all rows that are dirty, after which checkpoints need no journal. As to errors, as above.
  void WriteAll(std::unique_lock<std::mutex>& lock);

  // Waits until done() holds, and begins no write in the background meanwhile. REQUIRES: who makes it hold notifies
  // `progress`.
  template <class F>
  void WaitUntil(std::unique_lock<std::mutex>& lock, F done) {
    ++waiting_;
    progress_->wait(lock, done);
    --waiting_;
  }
  // Waits until no write is under way in the background.
  void WaitIdle(std::unique_lock<std::mutex>& lock) {
    WaitUntil(lock, [&] { return !busy_; });
  }

  // Waits until no write is under way in the background, and lets none begin until Release.
  void Hold(std::unique_lock<std::mutex>& lock) {
    WaitIdle(lock);
    ++waiting_;
  }
  void Release() {
    --waiting_;
    Wake();
  }

  // By either thread.
  uint64_t rows_written() const { return rows_written_; }

  // Lets the background thread look for work. To be called when an operation ends.
  void Wake();

 private:
  struct Taken;

  template <class F>
  void Write(const std::vector<uint32_t>& segments, bool evictable_only, F written);
  void Loop();
  Taken Take();
  size_t PayloadBytes(const std::vector<Slot>& slots, size_t first) const;

  RowStore* const rows_;
  Journal* const journal_;
  RowCache* const cache_;
  const Tables* const tables_;
  std::mutex* const mutex_;
  std::condition_variable work_;
  std::condition_variable* const progress_;
  bool stop_ = false;
  int waiting_ = 0;  // calls that wait for the thread, or hold it: it starts nothing new then
  bool busy_ = false;
  bool wanted_ = false;
  uint64_t rows_written_ = 0;
  std::thread thread_;
};

}  // namespace damo
