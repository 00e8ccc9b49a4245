#include "storage_rocksdb/rocksdb_scan.h"

#include <rocksdb/db.h>
#include <rocksdb/iterator.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/snapshot.h>

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "base/status.h"
#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_changes.h"
#include "storage_rocksdb/rocksdb_status.h"

namespace damo {
namespace {

class HeldSnapshot {
 public:
  HeldSnapshot(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<const void> hold)
      : hold_(std::move(hold)), db_(std::move(db)), snapshot_(db_->GetSnapshot()) {}
  ~HeldSnapshot() { db_->ReleaseSnapshot(snapshot_); }
  HeldSnapshot(const HeldSnapshot&) = delete;
  HeldSnapshot& operator=(const HeldSnapshot&) = delete;

  rocksdb::DB* db() const { return db_.get(); }
  const rocksdb::Snapshot* get() const { return snapshot_; }

 private:
  const std::shared_ptr<const void> hold_;
  const std::shared_ptr<rocksdb::DB> db_;
  const rocksdb::Snapshot* const snapshot_;
};

// RocksDB's option holds a filter until 11.8, and from then on points to one that outlives the iterator.
template <class Option>
void SetFilter(const TableFilter& filter, Option* option) {
  if constexpr (std::is_pointer_v<Option>) {
    *option = &filter;
  } else {
    *option = filter;
  }
}

class RocksDbIterator : public RowIterator {
 public:
  RocksDbIterator(std::shared_ptr<const HeldSnapshot> snapshot, uint32_t table, size_t payload_size, uint64_t since,
                  bool sightings, size_t readahead)
      : table_(table),
        payload_size_(payload_size),
        sightings_(sightings),
        snapshot_(std::move(snapshot)),
        end_(std::string(LastKey(table).view()) + '\0'),
        end_slice_(end_),
        filter_(ChangedSince(table, since)) {
    rocksdb::ReadOptions options;
    options.snapshot = snapshot_->get();
    options.iterate_upper_bound = &end_slice_;
    options.readahead_size = readahead;
    options.fill_cache = false;
    if (since > 0) SetFilter(filter_, &options.table_filter);
    rows_.reset(snapshot_->db()->NewIterator(options));
    rows_->Seek(FirstKey(table).view());
  }

  bool Next(int64_t* id, const char** payload) override {
    if (!std::exchange(at_first_, false) && rows_->Valid()) rows_->Next();
    while (rows_->Valid() && IsSighting(rows_->value().ToStringView()) != sightings_) rows_->Next();
    if (!rows_->Valid()) {
      CheckRead(rows_->status(), "scan of table " + std::to_string(table_));
      return false;
    }
    const std::string_view key = rows_->key().ToStringView();
    if (key.size() != kKeySize) {
      throw Error(ErrorCode::kCorruption,
                  "table " + std::to_string(table_) + " has a key of " + std::to_string(key.size()) + " bytes");
    }
    *id = DecodeId(key);
    *payload = RowPayload(rows_->value().ToStringView(), payload_size_, table_, *id);
    return true;
  }

 private:
  const uint32_t table_;
  const size_t payload_size_;
  const bool sightings_;
  const std::shared_ptr<const HeldSnapshot> snapshot_;  // outlives rows_
  const std::string end_;                               // the least key beyond the table's
  const rocksdb::Slice end_slice_;
  const TableFilter filter_;
  std::unique_ptr<rocksdb::Iterator> rows_;
  bool at_first_ = true;
};

class RocksDbSnapshot : public RowStoreSnapshot {
 public:
  RocksDbSnapshot(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<const void> hold, size_t readahead)
      : snapshot_(std::make_shared<const HeldSnapshot>(std::move(db), std::move(hold))), readahead_(readahead) {}

  std::unique_ptr<RowIterator> Scan(uint32_t table, size_t payload_size, uint64_t since,
                                    bool sightings) const override {
    return std::make_unique<RocksDbIterator>(snapshot_, table, payload_size, since, sightings, readahead_);
  }

 private:
  const std::shared_ptr<const HeldSnapshot> snapshot_;
  const size_t readahead_;
};

}  // namespace

std::unique_ptr<RowStoreSnapshot> TakeRocksDbSnapshot(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<const void> hold,
                                                      size_t readahead) {
  return std::make_unique<RocksDbSnapshot>(std::move(db), std::move(hold), readahead);
}

}  // namespace damo
