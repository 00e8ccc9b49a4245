// What may go from a RocksDB, and that it may not while a snapshot has it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>

#include "base/mutex.h"
#include "storage/row_store.h"

namespace damo {

using ReclaimableTables = std::map<uint32_t, Reclaimable>;  // by number

// Compaction filters see no snapshots: what they remove is gone for those, too. So a snapshot is held here as well,
// with what was reclaimable when it was taken. That only grows: what was reclaimable for the oldest is so for all.
// Thread-safe.
class ReclaimableRecords : public std::enable_shared_from_this<ReclaimableRecords> {
 public:
  // See RowStore::SetReclaimable.
  void Add(uint32_t table, const Reclaimable& reclaimable);

  // Nothing more becomes Removable until what it returns is gone. To be called before the snapshot is taken.
  std::shared_ptr<const void> Hold();
  bool held() const;

  // What nobody can see any more.
  ReclaimableTables Removable() const;

 private:
  mutable Mutex mutex_;
  ReclaimableTables now_ DAMO_GUARDED_BY(mutex_);
  std::list<ReclaimableTables> held_ DAMO_GUARDED_BY(mutex_);  // the oldest first
};

}  // namespace damo
