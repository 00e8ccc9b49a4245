// Which records of a RocksDB are dead, and how much of a table file is.
//
// RocksDB keeps, with each table file, what a collector makes of its entries: here a sample of them, chosen by a
// hash of their keys. So how much of a file is dead is known, within some percent, without reading it.
#pragma once

#include <rocksdb/slice.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "row/row_header.h"
#include "storage_rocksdb/rocksdb_reclaimable.h"

namespace rocksdb {
class TablePropertiesCollectorFactory;
struct TableProperties;
}  // namespace rocksdb

namespace damo {

// What of a record says whether it is dead.
struct RecordLife {
  enum class Kind : uint8_t { kOther, kRow, kSighting, kDeletion };

  // Of an entry with a key of ours. Of a version or a size that this release does not know it is kOther.
  static RecordLife Of(const rocksdb::Slice& key, const rocksdb::Slice& value);

  // What is kOther never is.
  bool IsDead(const Reclaimable& reclaimable) const;

  Kind kind = Kind::kOther;
  uint32_t table = 0;  // without kDeletionBit
  int64_t id = 0;
  RowHeader header = {};  // of a row or a sighting
  uint64_t step = 0;      // of a deletion
};

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> SampleCollectorFactory();

// The share of a file's bytes that is dead, from 0 to 1. Nothing of a file without a sample, as of earlier releases.
std::optional<double> DeadShare(const rocksdb::TableProperties& properties, const ReclaimableTables& reclaimable);

}  // namespace damo
