// Compacts table files of which much is dead. RocksDB by itself leaves a file alone that nothing is merged into, as are
// most of its last level.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "storage_rocksdb/rocksdb_reclaimable.h"

namespace rocksdb {
class DB;
}

namespace damo {

// Thread-safe.
class RocksDbReclaimer {
 public:
  // `db` outlives it, or its Stop.
  RocksDbReclaimer(rocksdb::DB* db, std::shared_ptr<const ReclaimableRecords> reclaimable)
      : db_(db), reclaimable_(std::move(reclaimable)) {}
  ~RocksDbReclaimer() { Stop(); }
  RocksDbReclaimer(const RocksDbReclaimer&) = delete;
  RocksDbReclaimer& operator=(const RocksDbReclaimer&) = delete;

  // Has a thread of its own Run, now and again until Stop, and rest for longer than it works. Without memory for a
  // thread, there is none until the next call.
  void Wake();
  // Does not begin another file. What is under way ends once RocksDB's background work is canceled.
  void RequestStop();
  void Stop();

  // Compacts the files of which a third is dead, one by one, worst first; returns how many. None while a snapshot is
  // held, which would have their bytes stay, and no more once the disk is full.
  size_t Run();

  // As the last Run left them.
  uint64_t dead_bytes() const { return dead_bytes_; }
  bool lacks_space() const { return lacks_space_; }

 private:
  void Loop();
  // False if it is to end.
  bool Rest(std::chrono::nanoseconds time);
  // Asks after each file whether to go on, and says how long it took.
  size_t Reclaim(const std::function<bool(std::chrono::nanoseconds)>& go_on);

  rocksdb::DB* const db_;
  const std::shared_ptr<const ReclaimableRecords> reclaimable_;
  std::atomic<uint64_t> dead_bytes_ = 0;
  std::atomic<bool> lacks_space_ = false;

  Mutex mutex_;
  CondVar changed_;
  bool wanted_ DAMO_GUARDED_BY(mutex_) = false;
  bool stop_ DAMO_GUARDED_BY(mutex_) = false;
  std::thread thread_ DAMO_GUARDED_BY(mutex_);
};

}  // namespace damo
