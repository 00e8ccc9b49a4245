#include "rocksdb_store.h"

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/iterator.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cstring>
#include <mutex>
#include <string_view>
#include <utility>

#include "key.h"
#include "record.h"
#include "rocksdb_checkpoint.h"
#include "rocksdb_options.h"
#include "rocksdb_status.h"
#include "status.h"

namespace damo {
namespace {

using rocksdb::Slice;

// Keys of one RocksDB MultiGet. Their values pin a block of the cache each, so it bounds memory, too.
constexpr size_t kKeysPerRead = 128;

Slice ToSlice(const Key& key) { return Slice(key.bytes.data(), kKeySize); }
std::string_view ToView(const Slice& slice) { return {slice.data(), slice.size()}; }

class Listener : public rocksdb::EventListener {
 public:
  uint64_t bytes_written() const { return bytes_written_.load(std::memory_order_relaxed); }

  void OnTableFileCreated(const rocksdb::TableFileCreationInfo& info) override {
    bytes_written_.fetch_add(info.file_size, std::memory_order_relaxed);
  }

  // A compaction that finds the disk full is tried again every second, and nobody waits for it: no need to stop writes.
  // A flush that does fails the writes that follow.
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    if (reason == rocksdb::BackgroundErrorReason::kCompaction && error->IsNoSpace()) *error = rocksdb::Status::OK();
  }

  // RocksDB would look for space every few seconds and meanwhile refuse to resume. The store does so when it is used.
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status, bool* auto_recovery) override {
    *auto_recovery = false;
  }

 private:
  std::atomic<uint64_t> bytes_written_ = 0;
};

class RocksDbIterator : public RowIterator {
 public:
  RocksDbIterator(std::shared_ptr<rocksdb::DB> db, uint32_t table, size_t payload_size, size_t readahead)
      : table_(table), payload_size_(payload_size), end_(EndKey(table)), end_slice_(ToSlice(end_)), db_(std::move(db)) {
    rocksdb::ReadOptions options;
    options.iterate_upper_bound = &end_slice_;
    options.readahead_size = readahead;
    options.fill_cache = false;
    rows_.reset(db_->NewIterator(options));
    rows_->Seek(ToSlice(FirstKey(table)));
  }

  bool Next(int64_t* id, const char** payload) override {
    if (!std::exchange(at_first_, false) && rows_->Valid()) rows_->Next();
    if (!rows_->Valid()) {
      Check(rows_->status(), "scan of table " + std::to_string(table_));
      return false;
    }
    *id = DecodeId(ToView(rows_->key()));
    *payload = RowPayload(ToView(rows_->value()), payload_size_, table_, *id);
    return true;
  }

 private:
  const uint32_t table_;
  const size_t payload_size_;
  const Key end_;
  const Slice end_slice_;
  const std::shared_ptr<rocksdb::DB> db_;  // outlives rows_
  std::unique_ptr<rocksdb::Iterator> rows_;
  bool at_first_ = true;
};

class RocksDbStore : public RowStore {
 public:
  RocksDbStore(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<Listener> listener, size_t readahead)
      : db_(std::move(db)), listener_(std::move(listener)), readahead_(readahead) {}
  ~RocksDbStore() override { Close(); }

  void MultiGet(uint32_t table, std::span<const int64_t> ids, size_t payload_size, char* const* dst,
                uint8_t* found) override {
    CheckTableNumber(table);
    assert(std::is_sorted(ids.begin(), ids.end()));
    std::array<Key, kKeysPerRead> keys;
    std::array<Slice, kKeysPerRead> slices;
    std::array<rocksdb::PinnableSlice, kKeysPerRead> values;
    std::array<rocksdb::Status, kKeysPerRead> statuses;
    for (size_t begin = 0; begin < ids.size(); begin += kKeysPerRead) {
      const size_t n = std::min(kKeysPerRead, ids.size() - begin);
      for (size_t i = 0; i < n; ++i) {
        keys[i] = EncodeKey(table, ids[begin + i]);
        slices[i] = ToSlice(keys[i]);
      }
      db_->MultiGet(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), n, slices.data(), values.data(),
                    statuses.data(), /*sorted_input=*/true);
      for (size_t i = 0; i < n; ++i) {
        const int64_t id = ids[begin + i];
        found[begin + i] = !statuses[i].IsNotFound();
        if (!found[begin + i]) continue;
        if (!statuses[i].ok()) Check(statuses[i], "read of " + RowName(table, id));
        std::memcpy(dst[begin + i], RowPayload(ToView(values[i]), payload_size, table, id), payload_size);
        values[i].Reset();
      }
    }
  }

  void Write(std::span<const RowWrite> rows) override {
    constexpr size_t kFraming = 8 + kKeySize;  // of one entry, at most: tag, sizes, version byte, key
    size_t bytes = 16;
    for (const RowWrite& row : rows) {
      CheckTableNumber(row.table);
      bytes += row.payload == nullptr ? 2 * kFraming + sizeof(DeletionRecord) : kFraming + row.payload_size;
    }
    rocksdb::WriteBatch batch(bytes);
    rocksdb::Status added;
    for (const RowWrite& row : rows) {
      if (added.ok()) added = Add(row, &batch);
    }
    Check(added, "write of " + std::to_string(rows.size()) + " rows");

    rocksdb::WriteOptions options;
    options.disableWAL = true;
    rocksdb::Status written = db_->Write(options, &batch);
    if (!written.ok()) {
      written = Resume();
      if (written.ok()) written = db_->Write(options, &batch);
    }
    Check(written, "write of " + std::to_string(rows.size()) + " rows");
  }

  std::unique_ptr<RowIterator> Scan(uint32_t table, size_t payload_size) override {
    CheckTableNumber(table);
    return std::make_unique<RocksDbIterator>(db_, table, payload_size, readahead_);
  }

  bool Checkpoint(const std::string& path, bool link) override {
    // Not only after a failure just now: RocksDB before 8.11, once it has resumed from an error, no longer waits for
    // the flush within a checkpoint, and the newest rows would be missing. Then, and only then, Resume flushes, too.
    Check(Resume(), "checkpoint into " + path);
    std::lock_guard lock(maintenance_);
    return WriteRocksDbCheckpoint(db_.get(), path, link);
  }

  RowStoreStats Stats() const override {
    RowStoreStats stats;
    db_->GetIntProperty(rocksdb::DB::Properties::kLiveSstFilesSize, &stats.disk_bytes);
    db_->GetIntProperty(rocksdb::DB::Properties::kBlockCacheUsage, &stats.memory_bytes);
    stats.bytes_written = listener_->bytes_written();
    return stats;
  }

  void Close() override {
    if (db_ == nullptr) return;
    rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/true);
    db_.reset();
  }

 private:
  static rocksdb::Status Add(const RowWrite& row, rocksdb::WriteBatch* batch) {
    const Key key = EncodeKey(row.table, row.id);
    const Slice key_slice = ToSlice(key);
    if (row.payload == nullptr) {
      const Key deletion_key = EncodeDeletionKey(row.table, row.id);
      const DeletionRecord record = EncodeDeletion(row.step);
      const rocksdb::Status deleted = batch->Delete(key_slice);
      return deleted.ok() ? batch->Put(ToSlice(deletion_key), Slice(record.data(), record.size())) : deleted;
    }
    const Slice value[] = {Slice(&kRecordVersion, 1), Slice(row.payload, row.payload_size)};
    return batch->Put(rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(value, 2));
  }

  // Tries failed background work again, which RocksDB does not by itself; without an error, does nothing.
  rocksdb::Status Resume() {
    std::lock_guard lock(maintenance_);
    return db_->Resume();
  }

  std::shared_ptr<rocksdb::DB> db_;  // shared with iterators
  const std::shared_ptr<Listener> listener_;
  const size_t readahead_;
  std::mutex maintenance_;  // checkpoints and resumptions take turns: both switch file deletions
};

}  // namespace

std::unique_ptr<RowStore> OpenRocksDbStore(const RocksDbOptions& options) {
  constexpr size_t kLeastMemory = size_t{8} << 20;
  if (options.create && options.read_only) {
    throw Error(ErrorCode::kInvalidArgument, "a new store cannot be read-only: " + options.path);
  }
  if (options.memory_bytes < kLeastMemory) {
    throw Error(ErrorCode::kInvalidArgument, "RocksDB needs memory_bytes >= " + std::to_string(kLeastMemory) +
                                                 ", got " + std::to_string(options.memory_bytes));
  }
  auto listener = std::make_shared<Listener>();
  rocksdb::Options db_options = MakeOptions(options);
  db_options.listeners.push_back(listener);
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> db;
#else
  rocksdb::DB* db = nullptr;
#endif
  Check(options.read_only ? rocksdb::DB::OpenForReadOnly(db_options, options.path, &db)
                          : rocksdb::DB::Open(db_options, options.path, &db),
        "cannot open " + options.path);
  return std::make_unique<RocksDbStore>(std::shared_ptr<rocksdb::DB>(std::move(db)), std::move(listener),
                                        ReadaheadBytes(options.memory_bytes));
}

}  // namespace damo
