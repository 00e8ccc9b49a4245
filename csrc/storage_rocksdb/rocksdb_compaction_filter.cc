#include "storage_rocksdb/rocksdb_compaction_filter.h"

#include <rocksdb/compaction_filter.h>

#include <string>
#include <utility>

#include "storage_rocksdb/rocksdb_dead_records.h"

namespace damo {
namespace {

// Of one thread's part of a compaction.
class Filter : public rocksdb::CompactionFilter {
 public:
  Filter(ReclaimableTables reclaimable, std::shared_ptr<ReclaimedCounts> counts)
      : reclaimable_(std::move(reclaimable)), counts_(std::move(counts)) {}
  ~Filter() override {
    counts_->records += records_;
    counts_->bytes += bytes_;
  }

  Decision FilterV2(int, const rocksdb::Slice& key, ValueType type, const rocksdb::Slice& value, std::string*,
                    std::string*) const override {
    if (type != ValueType::kValue) return Decision::kKeep;
    const RecordLife life = RecordLife::Of(key, value);
    const auto table = reclaimable_.find(life.table);
    if (table == reclaimable_.end() || !life.IsDead(table->second)) return Decision::kKeep;
    ++records_;
    bytes_ += key.size() + value.size();
    return Decision::kRemove;
  }

  const char* Name() const override { return "damo.ReclaimingFilter"; }

 private:
  const ReclaimableTables reclaimable_;
  const std::shared_ptr<ReclaimedCounts> counts_;
  mutable uint64_t records_ = 0;
  mutable uint64_t bytes_ = 0;
};

// Flushes are not filtered, which is RocksDB's default.
class Factory : public rocksdb::CompactionFilterFactory {
 public:
  Factory(std::shared_ptr<const ReclaimableRecords> reclaimable, std::shared_ptr<ReclaimedCounts> counts)
      : reclaimable_(std::move(reclaimable)), counts_(std::move(counts)) {}

  std::unique_ptr<rocksdb::CompactionFilter> CreateCompactionFilter(
      const rocksdb::CompactionFilter::Context&) override {
    ReclaimableTables removable = reclaimable_->Removable();
    return removable.empty() ? nullptr : std::make_unique<Filter>(std::move(removable), counts_);
  }

  const char* Name() const override { return "damo.ReclaimingFilterFactory"; }

 private:
  const std::shared_ptr<const ReclaimableRecords> reclaimable_;
  const std::shared_ptr<ReclaimedCounts> counts_;
};

}  // namespace

std::shared_ptr<rocksdb::CompactionFilterFactory> ReclaimingFilterFactory(
    std::shared_ptr<const ReclaimableRecords> reclaimable, std::shared_ptr<ReclaimedCounts> counts) {
  return std::make_shared<Factory>(std::move(reclaimable), std::move(counts));
}

}  // namespace damo
