// A table's rows in a RocksDB, in the order of their ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "row_store.h"

namespace rocksdb {
class DB;
}

namespace damo {

// See RowStore::Scan. Reads `readahead` bytes ahead, past the block cache. REQUIRES: table < 2^31.
std::unique_ptr<RowIterator> ScanRocksDb(std::shared_ptr<rocksdb::DB> db, uint32_t table, size_t payload_size,
                                         size_t readahead);

}  // namespace damo
