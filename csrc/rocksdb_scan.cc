#include "rocksdb_scan.h"

#include <rocksdb/db.h>
#include <rocksdb/iterator.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>

#include <string>
#include <utility>

#include "key.h"
#include "record.h"
#include "rocksdb_status.h"

namespace damo {
namespace {

class RocksDbIterator : public RowIterator {
 public:
  RocksDbIterator(std::shared_ptr<rocksdb::DB> db, uint32_t table, size_t payload_size, size_t readahead)
      : table_(table), payload_size_(payload_size), db_(std::move(db)), end_(EndKey(table)), end_slice_(end_.view()) {
    rocksdb::ReadOptions options;
    options.iterate_upper_bound = &end_slice_;
    options.readahead_size = readahead;
    options.fill_cache = false;
    rows_.reset(db_->NewIterator(options));
    rows_->Seek(FirstKey(table).view());
  }

  bool Next(int64_t* id, const char** payload) override {
    if (!std::exchange(at_first_, false) && rows_->Valid()) rows_->Next();
    if (!rows_->Valid()) {
      Check(rows_->status(), "scan of table " + std::to_string(table_));
      return false;
    }
    *id = DecodeId(rows_->key().ToStringView());
    *payload = RowPayload(rows_->value().ToStringView(), payload_size_, table_, *id);
    return true;
  }

 private:
  const uint32_t table_;
  const size_t payload_size_;
  const std::shared_ptr<rocksdb::DB> db_;  // outlives rows_
  const Key end_;
  const rocksdb::Slice end_slice_;
  std::unique_ptr<rocksdb::Iterator> rows_;
  bool at_first_ = true;
};

}  // namespace

std::unique_ptr<RowIterator> ScanRocksDb(std::shared_ptr<rocksdb::DB> db, uint32_t table, size_t payload_size,
                                         size_t readahead) {
  return std::make_unique<RocksDbIterator>(std::move(db), table, payload_size, readahead);
}

}  // namespace damo
