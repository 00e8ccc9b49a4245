// How recent the rows in a table file are, so that a scan for what changed since a step reads few files.
//
// RocksDB keeps, with each table file, what a collector makes of its entries: here the largest step of each table's
// rows. A scan for changes passes over files whose largest step is older. It may then meet, of a row whose newest
// version is in such a file, an older version: that one's step is no larger, so whoever looks at steps drops it, too. A
// file with a tombstone counts as new: were it passed over, a deleted row would come back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace rocksdb {
class TablePropertiesCollectorFactory;
struct TableProperties;
}  // namespace rocksdb

namespace damo {

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> StepsCollectorFactory();

// For rocksdb::ReadOptions::table_filter.
using TableFilter = std::function<bool(const rocksdb::TableProperties&)>;

// Whether a file may hold rows of the table with number `table` (or deletion records of one, with kDeletionBit) that
// are of step `since` or later.
TableFilter ChangedSince(uint32_t table, uint64_t since);

}  // namespace damo
