#include "storage_rocksdb/rocksdb_store.h"

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/listener.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <new>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/mutex.h"
#include "base/status.h"
#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_async_reads.h"
#include "storage_rocksdb/rocksdb_checkpoint.h"
#include "storage_rocksdb/rocksdb_compact_keys.h"
#include "storage_rocksdb/rocksdb_compaction_filter.h"
#include "storage_rocksdb/rocksdb_journal.h"
#include "storage_rocksdb/rocksdb_log_format.h"
#include "storage_rocksdb/rocksdb_options.h"
#include "storage_rocksdb/rocksdb_reclaimable.h"
#include "storage_rocksdb/rocksdb_reclaimer.h"
#include "storage_rocksdb/rocksdb_scan.h"
#include "storage_rocksdb/rocksdb_status.h"

namespace damo {
namespace {

using rocksdb::Slice;

// Keys of one RocksDB MultiGet. Their values pin a block of the cache each, so it bounds memory, too.
constexpr size_t kKeysPerRead = 128;

// Freed memory is released once blocks of so many times the store's memory have been read. At 100 times, releasing
// takes some thousandth of the time.
constexpr size_t kReadsPerRelease = 100;

// RocksDB retries by itself what found the disk full: a flush every five seconds, and a second later if another was
// asked for meanwhile, a compaction every second. Once there is space again, a call that needs it to succeed waits this
// long.
constexpr std::chrono::seconds kPatience(7);

// How long RocksDB may take to remove files that nothing reads any more. It is moments.
constexpr std::chrono::seconds kRemovalPatience(2);

class Listener : public rocksdb::EventListener {
 public:
  uint64_t bytes_written() const { return bytes_written_; }
  // Every write up to this sequence number has been flushed since the database was opened.
  uint64_t flushed_through() const { return flushed_through_; }
  // Whether the last compaction found the disk full.
  bool compactions_lack_space() const { return compactions_lack_space_; }
  // Why nothing is flushed any more, or OK.
  rocksdb::Status error() const {
    const MutexLock lock(&mutex_);
    return error_;
  }

  void OnTableFileCreated(const rocksdb::TableFileCreationInfo& info) override { bytes_written_ += info.file_size; }

  void OnFlushCompleted(rocksdb::DB*, const rocksdb::FlushJobInfo& info) override {
    flushed_through_ = info.largest_seqno;  // flushes are one at a time and in order
  }

  void OnCompactionCompleted(rocksdb::DB*, const rocksdb::CompactionJobInfo& info) override {
    if (info.status.ok()) compactions_lack_space_ = false;
  }

  // RocksDB would hold a compaction's lack of space against writes, which need not wait for compactions.
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    if (reason == rocksdb::BackgroundErrorReason::kCompaction && error->IsNoSpace()) {
      compactions_lack_space_ = true;
      *error = rocksdb::Status::OK();
    } else {
      const MutexLock lock(&mutex_);
      error_ = *error;
    }
  }

  void OnErrorRecoveryEnd(const rocksdb::BackgroundErrorRecoveryInfo& info) override {
    const MutexLock lock(&mutex_);
    error_ = info.new_bg_error;
  }

 private:
  std::atomic<uint64_t> bytes_written_ = 0;
  std::atomic<uint64_t> flushed_through_ = 0;
  std::atomic<bool> compactions_lack_space_ = false;
  mutable Mutex mutex_;
  rocksdb::Status error_ DAMO_GUARDED_BY(mutex_);
};

// What its compactions and snapshots share with a store, which they may outlive.
struct Reclaiming {
  std::shared_ptr<ReclaimableRecords> reclaimable = std::make_shared<ReclaimableRecords>();
  std::shared_ptr<ReclaimedCounts> counts = std::make_shared<ReclaimedCounts>();
};

class RocksDbStore : public RowStore {
 public:
  RocksDbStore(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<Listener> listener, Reclaiming reclaiming,
               const RocksDbOptions& options)
      : db_(std::move(db)),
        listener_(std::move(listener)),
        reclaiming_(std::move(reclaiming)),
        reclaimer_(db_.get(), reclaiming_.reclaimable),
        journal_(options.path),
        readahead_(ReadaheadBytes(options.memory_bytes)),
        overlaps_reads_(options.direct_io && HasAsyncReads()),
        rows_per_release_(kReadsPerRelease * options.memory_bytes / kBlockBytes) {}
  ~RocksDbStore() override { Close(); }

  void MultiGet(uint32_t table, std::span<const int64_t> ids, size_t payload_size, char* const* dst,
                Found* found) override {
    CheckTableNumber(table);
    assert(std::is_sorted(ids.begin(), ids.end()));
    rows_since_release_.fetch_add(ids.size(), std::memory_order_relaxed);
    std::array<Key, kKeysPerRead> keys;
    std::array<Slice, kKeysPerRead> slices;
    std::array<rocksdb::PinnableSlice, kKeysPerRead> values;
    std::array<rocksdb::Status, kKeysPerRead> statuses;
    for (size_t begin = 0; begin < ids.size(); begin += kKeysPerRead) {
      const size_t n = std::min(kKeysPerRead, ids.size() - begin);
      for (size_t i = 0; i < n; ++i) {
        keys[i] = EncodeKey(table, ids[begin + i]);
        slices[i] = keys[i].view();
      }
      db_->MultiGet(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), n, slices.data(), values.data(),
                    statuses.data(), /*sorted_input=*/true);
      for (size_t i = 0; i < n; ++i) {
        const int64_t id = ids[begin + i];
        found[begin + i] = Found::kNothing;
        if (statuses[i].IsNotFound()) continue;
        if (!statuses[i].ok()) CheckRead(statuses[i], "read of " + RowName(table, id));
        found[begin + i] = TakeRecord(values[i].ToStringView(), payload_size, table, id, dst[begin + i]);
        values[i].Reset();
      }
    }
  }

  void Write(std::span<const RowWrite> rows) override {
    constexpr size_t kFraming = 8 + kKeySize;  // of one entry, at most: tag, sizes, version byte, key
    size_t bytes = 16;
    for (const RowWrite& row : rows) {
      CheckTableNumber(row.table);
      bytes += row.deletes() ? 2 * kFraming + sizeof(DeletionRecord) : kFraming + row.payload_size;
    }
    rocksdb::WriteBatch batch(bytes);
    rocksdb::Status added;
    for (const RowWrite& row : rows) {
      if (added.ok()) added = Add(row, &batch);
    }
    Check(added, "write of " + std::to_string(rows.size()) + " rows");
    Check(Write(&batch), "write of " + std::to_string(rows.size()) + " rows");
  }

  void DeleteTable(uint32_t table) override {
    CheckTableNumber(table);
    rocksdb::WriteBatch batch;
    rocksdb::Status added;
    for (const auto& [first, end] : RangesOf(table)) {
      if (added.ok()) added = batch.DeleteRange(first, end);
    }
    if (added.ok()) added = Write(&batch);
    Check(added, "deletion of table " + std::to_string(table));
  }

  void ReclaimTable(uint32_t table) override {
    Check(WithPatience([&] { return Flush(); }), "deletion of table " + std::to_string(table));
    rocksdb::CompactRangeOptions options;
    options.exclusive_manual_compaction = false;
    for (const auto& [first, end] : RangesOf(table)) {
      const Slice begin_slice(first), end_slice(end);
      Check(db_->CompactRange(options, &begin_slice, &end_slice), "compaction of table " + std::to_string(table));
    }
  }

  void SetReclaimable(uint32_t table, const Reclaimable& reclaimable) noexcept override {
    try {
      reclaiming_.reclaimable->Add(table, reclaimable);
    } catch (const std::bad_alloc&) {
      return;
    }
    reclaimer_.Wake();
  }

  std::vector<int64_t> EraseDeleted(uint32_t table, std::span<const int64_t> ids) override {
    std::vector<Key> keys;
    for (const int64_t id : ids) keys.push_back(EncodeKey(table, id));
    keys = KeysWithValues(db_.get(), keys);
    rocksdb::WriteBatch batch;
    rocksdb::Status deleted;
    for (const Key& key : keys) {  // also what is not said to be deleted, as nothing reads it
      if (deleted.ok()) deleted = batch.Delete(key.view());
    }
    if (deleted.ok()) deleted = Write(&batch);
    if (deleted.ok()) deleted = WithPatience([&] { return Flush(); });
    Check(deleted, "deletion of " + std::to_string(ids.size()) + " rows");
    const std::set<std::string> before = TableFiles();
    CompactKeys(db_.get(), keys);
    if (AwaitRemoval(before)) keys = KeysWithValues(db_.get(), keys);
    std::vector<int64_t> left;
    for (const Key& key : keys) left.push_back(DecodeId(key.view()));
    return left;
  }

  bool OverlapsReads() const override { return overlaps_reads_; }

  std::unique_ptr<RowStoreSnapshot> TakeSnapshot(std::span<const uint32_t> tables) override {
    for (const uint32_t table : tables) CheckTableNumber(table);
    return TakeRocksDbSnapshot(db_, reclaiming_.reclaimable->Hold(), readahead_);
  }

  bool Checkpoint(const std::string& path, bool link) override {
    Check(WithPatience([&] { return Flush(); }), "checkpoint into " + path);
    return CopyRocksDb(db_.get(), path, link, journal_.Finish());
  }

  void AddToJournal(std::span<const RowWrite> rows) override { journal_.Add(rows, db_->GetLatestSequenceNumber()); }

  void ClearJournal() override { journal_.Clear(); }

  JournalSize journal_size() const override { return {journal_.bytes(), journal_.files()}; }

  // Each read allocates a block and frees it. glibc keeps some of what is freed on each of many threads in between, up
  // to a fifth of the store's budget after some hundred steps.
  void ReleaseFreedMemory() override {
#ifdef __GLIBC__
    if (rows_since_release_.load(std::memory_order_relaxed) < rows_per_release_) return;
    rows_since_release_ = 0;
    malloc_trim(0);
#endif
  }

  RowStoreStats Stats() const override {
    RowStoreStats stats;
    stats.disk_bytes = IntProperty(rocksdb::DB::Properties::kLiveSstFilesSize) + journal_.bytes();
    stats.memory_bytes = IntProperty(rocksdb::DB::Properties::kBlockCacheUsage);
    stats.bytes_written = listener_->bytes_written() + journal_.bytes_written();
    stats.dead_bytes = reclaimer_.dead_bytes();
    stats.reclaimed_records = reclaiming_.counts->records;
    stats.reclaimed_bytes = reclaiming_.counts->bytes;
    stats.reclaim_lacks_space = reclaimer_.lacks_space();
    return stats;
  }

  void Close() override {
    if (db_ == nullptr) return;
    journal_.Clear();
    reclaimer_.RequestStop();
    rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/true);
    reclaimer_.Stop();
    db_.reset();
  }

 private:
  // Where the keys of a table's rows, and of its deletion records, begin, and where the next ones would.
  static std::array<std::pair<std::string, std::string>, 2> RangesOf(uint32_t table) {
    const auto range = [](uint32_t numbered) {
      return std::pair(std::string(FirstKey(numbered).view()), std::string(LastKey(numbered).view()) + '\0');
    };
    return {range(table), range(table | kDeletionBit)};
  }

  rocksdb::Status Write(rocksdb::WriteBatch* batch) const {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return WithPatience([&] {
      const rocksdb::Status room = AwaitRoom(batch->GetDataSize());
      return room.ok() ? db_->Write(options, batch) : room;
    });
  }

  static rocksdb::Status Add(const RowWrite& row, rocksdb::WriteBatch* batch) {
    const Key key = EncodeKey(row.table, row.id);
    const Slice key_slice = key.view();
    if (row.deletes() && !row.recorded) return batch->Delete(key_slice);
    if (row.deletes()) {
      const Key deletion_key = EncodeDeletionKey(row.table, row.id);
      const DeletionRecord record = EncodeDeletion(row.step);
      const rocksdb::Status deleted = batch->Delete(key_slice);
      return deleted.ok() ? batch->Put(deletion_key.view(), Slice(record.data(), record.size())) : deleted;
    }
    const Slice value[] = {row.version(), Slice(row.payload, row.payload_size)};
    return batch->Put(rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(value, 2));
  }

  // Makes sure that every row written before this call is in a table file. RocksDB's word is not enough: until 8.11,
  // once it has recovered from an error, its Flush returns before the flush is done.
  rocksdb::Status Flush() {
    const uint64_t last_write = db_->GetLatestSequenceNumber();
    rocksdb::FlushOptions options;
    options.allow_write_stall = true;  // else it may wait for compactions first
    for (;;) {
      const rocksdb::Status flushed = db_->Flush(options);
      if (!flushed.ok() || last_write <= std::max(opened_at_, listener_->flushed_through())) return flushed;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  // For so many bytes. Holds writes back where RocksDB itself would, but not for longer than there is hope: while two
  // full write buffers wait to be flushed, and while writes are slowed down to a crawl for compactions that cannot
  // catch up.
  rocksdb::Status AwaitRoom(size_t bytes) const {
    using Properties = rocksdb::DB::Properties;
    if (listener_->compactions_lack_space() && IntProperty(Properties::kActualDelayedWriteRate) > 0) {
      const std::string what = "compactions find none, for " + std::to_string(bytes) + " more bytes";
      return rocksdb::Status::NoSpace(what, db_->GetName());
    }
    rocksdb::Status error;
    while (error.ok() && IntProperty(Properties::kNumImmutableMemTable) >= 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      error = listener_->error();
    }
    return error;
  }

  // Paths of those that the database consists of now.
  std::set<std::string> TableFiles() const {
    std::vector<rocksdb::LiveFileMetaData> files;
    db_->GetLiveFilesMetaData(&files);
    std::set<std::string> paths;
    for (const auto& file : files) paths.insert(file.directory + "/" + file.relative_filename);
    return paths;
  }

  // Waits until those of the files that are no longer the database's are removed, which RocksDB does some moments after
  // a compaction. False if something reads one for longer.
  bool AwaitRemoval(std::set<std::string> files) const {
    for (const std::string& file : TableFiles()) files.erase(file);
    const auto deadline = std::chrono::steady_clock::now() + kRemovalPatience;
    for (;;) {
      std::error_code ignored;
      std::erase_if(files, [&](const std::string& file) { return !std::filesystem::exists(file, ignored); });
      if (files.empty() || std::chrono::steady_clock::now() > deadline) return files.empty();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  uint64_t IntProperty(const std::string& name) const {
    uint64_t value = 0;
    db_->GetIntProperty(name, &value);
    return value;
  }

  // Tells of a full disk at once, but waits for RocksDB to find out that it is not full any more. Until it has, it is
  // not asked again: it recovers once no other flush is waiting to be refused, which takes each of them a second.
  template <typename Attempt>
  rocksdb::Status WithPatience(Attempt attempt) const {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point deadline = Clock::now() + kPatience;
    for (;;) {
      const rocksdb::Status status = attempt();
      if (!status.IsNoSpace() || !ThereIsSpace() || Clock::now() > deadline) return status;
      do {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      } while (!listener_->error().ok() && Clock::now() <= deadline);
    }
  }

  // For all that is yet to be flushed.
  bool ThereIsSpace() const {
    const MutexLock lock(&probe_mutex_);
    return HasSpace(db_->GetName() + "/probe", IntProperty(rocksdb::DB::Properties::kSizeAllMemTables));
  }

  std::shared_ptr<rocksdb::DB> db_;  // shared with iterators
  const std::shared_ptr<Listener> listener_;
  const Reclaiming reclaiming_;
  RocksDbReclaimer reclaimer_;
  RocksDbJournal journal_;
  const size_t readahead_;
  const bool overlaps_reads_;
  const uint64_t rows_per_release_;
  std::atomic<uint64_t> rows_since_release_ = 0;
  mutable Mutex probe_mutex_;  // for the file that shows whether there is space
  const uint64_t opened_at_ = db_->GetLatestSequenceNumber();
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
  Reclaiming reclaiming;
  db_options.compaction_filter_factory = ReclaimingFilterFactory(reclaiming.reclaimable, reclaiming.counts);
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> db;
#else
  rocksdb::DB* db = nullptr;
#endif
  try {
    const bool is_database = !options.create && std::filesystem::exists(options.path + "/CURRENT");
    const auto check = is_database ? CheckRead : Check;
    check(options.read_only ? rocksdb::DB::OpenForReadOnly(db_options, options.path, &db)
                            : rocksdb::DB::Open(db_options, options.path, &db),
          "cannot open " + options.path);
  } catch (const std::filesystem::filesystem_error& error) {
    throw Error(ErrorCode::kIo, "cannot open " + options.path + ": " + error.what());
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::kIo, "cannot open " + options.path + ": cannot start a thread: " + error.what());
  }
  const std::shared_ptr<rocksdb::DB> shared(std::move(db));
  if (const uint64_t latest = shared->GetLatestSequenceNumber(); latest > rocksdb_log::kMostSequence) {
    throw Error(ErrorCode::kCorruption, options.path + ": the number of the last change is " + std::to_string(latest) +
                                            ", expected at most " + std::to_string(rocksdb_log::kMostSequence));
  }
  return std::make_unique<RocksDbStore>(shared, std::move(listener), std::move(reclaiming), options);
}

}  // namespace damo
