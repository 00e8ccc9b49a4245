// Brings rows into the cache: for a call that waits for them, or ahead of one that will. On their way there they are in
// the cache's index, flagged kLoading, and their segments are pinned.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "base/worker.h"
#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/compute.h"
#include "storage/row_store.h"

namespace damo {

// Rows of one table that are to be loaded.
struct LoadRun {
  uint16_t index;  // of the table
  Table* table;
  float initial_state;       // of rows that are new
  std::vector<int64_t> ids;  // ascending, distinct
  size_t first = 0;          // where theirs begin in what a Load has of all rows
};

class Loader {
 public:
  // `direct_io`: every read waits for a disk.
  Loader(CachedTables* rows, RowStore* store, const Compute& compute, bool direct_io);

  // Drops the loads that wait for the thread in the background, after which nothing may be loaded. Idempotent.
  void Stop() { background_.reset(); }

  // What `units` miss, by table.
  std::vector<LoadRun> Missing(std::span<const Unit> units) DAMO_REQUIRES(store_mutex);
  // What the rows take in the cache.
  size_t BytesOf(std::span<const LoadRun> runs) const DAMO_REQUIRES(store_mutex);

  // Both take rows from the RowStore or, where they are not, give them their initial values and the flag kAbsent. What
  // they bring may be dead.
  // REQUIRES: none of the rows is in the cache, and there is room for all.

  // Returns when they are there; lets go of the mutex meanwhile. If it throws, they are not.
  void Load(std::vector<LoadRun> runs) DAMO_REQUIRES(store_mutex);
  // For a call to come: only puts them on their way. If it throws, they are not. If reading fails, they are missing
  // again: who needs them then reads them again, and gets the error.
  void LoadInBackground(std::vector<LoadRun> runs) DAMO_REQUIRES(store_mutex);
  // Waits until no row that `units` have found is on its way.
  void AwaitLoading(std::span<const Unit> units) DAMO_REQUIRES(store_mutex);

  // Asked for, whether they were there or not.
  uint64_t rows_read() const { return rows_read_; }

 private:
  struct Rows;

  // All that it allocates it has before it adds the first row.
  std::shared_ptr<Rows> Begin(std::vector<LoadRun> runs, bool awaited) DAMO_REQUIRES(store_mutex);
  void Read(Rows* rows);
  void End(const Rows& rows, bool complete) DAMO_REQUIRES(store_mutex);

  CachedTables* const rows_;
  RowStore* const store_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex);
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  const Arena arena_;  // of the cache; it stays where it is
  const Compute compute_;
  const bool direct_io_;
  std::atomic<bool> reads_wait_;  // for a disk, as far as is known
  std::atomic<uint64_t> rows_read_ = 0;
  std::unique_ptr<ThreadPool> waiting_readers_;  // from the first read on that waits
  std::unique_ptr<Worker> background_;           // from the first load on that it does
};

}  // namespace damo
