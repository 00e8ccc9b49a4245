// Compactions for the sake of some keys. For rocksdb_*.cc alone.
#pragma once

#include <span>
#include <vector>

#include "row/key.h"

namespace rocksdb {
class DB;
}

namespace damo {

// Rewrites each file that may hold one of the keys, down to the last level, so that nothing is left of those that were
// deleted but what snapshots need. REQUIRES: ascending; the deletions are flushed. Throws kOutOfSpace, kCorruption or
// kIo.
void CompactKeys(rocksdb::DB* db, std::span<const Key> keys);

// Those of the keys that have a value anywhere in the database, be it that it was overwritten or deleted since. Throws
// kCorruption or kIo.
std::vector<Key> KeysWithValues(rocksdb::DB* db, std::span<const Key> keys);

}  // namespace damo
