// A RocksDB's rows as they are at one moment, table by table in the order of their ids.
#pragma once

#include <cstddef>
#include <memory>

#include "storage/row_store.h"

namespace rocksdb {
class DB;
}

namespace damo {

// `hold` lives as long as the snapshot or an iterator does. Its iterators read `readahead` bytes ahead, past the block
// cache. Until they and it are gone, the files stay open.
std::unique_ptr<RowStoreSnapshot> TakeRocksDbSnapshot(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<const void> hold,
                                                      size_t readahead);

}  // namespace damo
