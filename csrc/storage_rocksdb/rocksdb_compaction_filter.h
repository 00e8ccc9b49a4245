// Has compactions remove dead records. What a filter removes becomes a tombstone, unless nothing older can lie below:
// an older version, which may be alive by what it says itself, stays hidden. So compactions never change what a reader
// sees that takes dead records for none.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "storage_rocksdb/rocksdb_reclaimable.h"

namespace rocksdb {
class CompactionFilterFactory;
}

namespace damo {

// What compactions have removed; of those that failed, too.
struct ReclaimedCounts {
  std::atomic<uint64_t> records = 0;
  std::atomic<uint64_t> bytes = 0;  // of keys and values
};

std::shared_ptr<rocksdb::CompactionFilterFactory> ReclaimingFilterFactory(
    std::shared_ptr<const ReclaimableRecords> reclaimable, std::shared_ptr<ReclaimedCounts> counts);

}  // namespace damo
