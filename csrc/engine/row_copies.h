// Rows taken out of the cache for one write, which may then go on without the store's mutex.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "engine/cached_tables.h"
#include "storage/row_store.h"

namespace damo {

class RowCopies {
 public:
  static RowWrite WriteOf(const Tables& tables, const char* row) {
    const Table& table = tables[RowTable(row)];
    const size_t size = table.layout.payload_size();
    RowWrite write = {table.schema.number, RowId(row), row + kPayloadOffset, size, 0, (RowFlags(row) & kChanged) != 0};
    if (!(RowFlags(row) & kAbsent)) return write;
    // Whatever the RowStore has under the id must not come back.
    const RowHeader sightings = PayloadHeader(write.payload, size);
    write.sighting = sightings.count > 0;
    write.recorded = false;
    write.payload = write.sighting ? write.payload + size - sizeof(RowHeader) : nullptr;
    write.payload_size = write.sighting ? sizeof(RowHeader) : 0;
    return write;
  }

  RowCopies(const CachedTables& rows, std::span<const Slot> slots) DAMO_REQUIRES(store_mutex) {
    writes_.reserve(slots.size());
    size_t bytes = 0;
    for (Slot slot : slots) {
      writes_.push_back(WriteOf(rows.tables, rows.cache.Row(slot)));
      bytes += writes_.back().payload_size;
    }
    payloads_ = std::make_unique_for_overwrite<char[]>(bytes);
    bytes_ = writes_.capacity() * sizeof(RowWrite) + bytes;
    char* to = payloads_.get();
    for (RowWrite& write : writes_) {
      if (write.deletes()) continue;
      std::memcpy(to, write.payload, write.payload_size);
      write.payload = to;
      to += write.payload_size;
    }
  }
  RowCopies(RowCopies&&) = default;
  RowCopies& operator=(RowCopies&&) = default;

  const std::vector<RowWrite>& all() const { return writes_; }
  size_t rows() const { return writes_.size(); }
  size_t bytes() const { return bytes_; }

  // Brings the rows into the order that RowStore::Write wants.
  const std::vector<RowWrite>& Sorted() {
    SortByKey(&writes_);
    return writes_;
  }

  static void SortByKey(std::vector<RowWrite>* writes) {
    std::sort(writes->begin(), writes->end(), [](const RowWrite& a, const RowWrite& b) {
      return a.table != b.table ? a.table < b.table : a.id < b.id;
    });
  }

 private:
  std::vector<RowWrite> writes_;
  std::unique_ptr<char[]> payloads_;
  size_t bytes_;
};

}  // namespace damo
