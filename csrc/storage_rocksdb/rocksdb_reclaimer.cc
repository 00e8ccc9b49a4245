#include "storage_rocksdb/rocksdb_reclaimer.h"

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/table_properties.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <limits>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/thread.h"
#include "storage_rocksdb/rocksdb_dead_records.h"

namespace damo {
namespace {

using Clock = std::chrono::steady_clock;

// To compact a file writes two bytes then for each that it frees, and live rows are two thirds of the files at least.
constexpr double kDeadEnough = 1.0 / 3;

// Between two looks at all files.
constexpr std::chrono::seconds kRest(1);

struct TableFile {
  std::string name;
  int level;
  uint64_t bytes;
  double dead;  // share of the bytes
};

// All table files of which that is known.
std::vector<TableFile> FilesOf(rocksdb::DB* db, const ReclaimableTables& reclaimable) {
  std::vector<rocksdb::LiveFileMetaData> live;
  db->GetLiveFilesMetaData(&live);
  rocksdb::TablePropertiesCollection properties;  // by path
  if (!db->GetPropertiesOfAllTables(&properties).ok()) return {};
  std::vector<TableFile> files;
  for (const rocksdb::LiveFileMetaData& file : live) {
    const auto found = properties.find(file.directory + "/" + file.relative_filename);
    if (found == properties.end()) continue;
    const std::optional<double> dead = DeadShare(*found->second, reclaimable);
    if (dead) files.push_back({file.relative_filename, file.level, file.size, *dead});
  }
  return files;
}

rocksdb::Status Compact(rocksdb::DB* db, const TableFile& file) {
  rocksdb::CompactionOptions options;
  options.compression = rocksdb::kNoCompression;
  options.max_subcompactions = 1;
  return db->CompactFiles(options, {file.name}, file.level);
}

}  // namespace

void RocksDbReclaimer::Wake() {
  const MutexLock lock(&mutex_);
  if (stop_) return;
  wanted_ = true;
  if (thread_.joinable()) {
    changed_.NotifyOne();
    return;
  }
  try {
    thread_ = StartThread([this] { Loop(); });
  } catch (const std::exception&) {  // no more threads: what is dead stays until the next call, as dead_bytes tell
  }
}

void RocksDbReclaimer::RequestStop() {
  const MutexLock lock(&mutex_);
  stop_ = true;
  changed_.NotifyAll();
}

void RocksDbReclaimer::Stop() {
  RequestStop();
  std::thread thread;
  {
    const MutexLock lock(&mutex_);
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

void RocksDbReclaimer::Loop() {
  for (;;) {
    {
      const MutexLock lock(&mutex_);
      changed_.Wait(&mutex_, [&]() DAMO_REQUIRES(mutex_) { return stop_ || wanted_; });
      if (stop_) return;
      wanted_ = false;
    }
    try {
      Reclaim([&](std::chrono::nanoseconds worked) { return Rest(worked); });
    } catch (const std::exception&) {  // no memory: what is dead stays until the next time
    }
    if (!Rest(kRest)) return;
  }
}

bool RocksDbReclaimer::Rest(std::chrono::nanoseconds time) {
  const MutexLock lock(&mutex_);
  return !changed_.WaitFor(&mutex_, time, [&]() DAMO_REQUIRES(mutex_) { return stop_; });
}

size_t RocksDbReclaimer::Run() {
  return Reclaim([](std::chrono::nanoseconds) { return true; });
}

size_t RocksDbReclaimer::Reclaim(const std::function<bool(std::chrono::nanoseconds)>& go_on) {
  const ReclaimableTables removable = reclaimable_->Removable();
  const auto look = [&] {
    std::vector<TableFile> files = FilesOf(db_, removable);
    double dead = 0;
    for (const TableFile& file : files) dead += file.dead * static_cast<double>(file.bytes);
    dead_bytes_ = static_cast<uint64_t>(dead);
    return files;
  };
  std::vector<TableFile> files = look();
  if (reclaimable_->held()) return 0;
  // Those of level 0 are merged soon.
  std::erase_if(files, [](const TableFile& file) { return file.level == 0 || file.dead < kDeadEnough; });
  std::sort(files.begin(), files.end(), [](const TableFile& a, const TableFile& b) { return a.dead > b.dead; });
  size_t compacted = 0;
  for (const TableFile& file : files) {
    lacks_space_ = !HasSpace(db_->GetName() + "/probe-reclaim", file.bytes);
    if (lacks_space_ || reclaimable_->held()) break;
    const Clock::time_point began = Clock::now();
    const rocksdb::Status status = Compact(db_, file);
    lacks_space_ = status.IsNoSpace();
    if (lacks_space_ || status.IsShutdownInProgress()) break;
    compacted += status.ok();  // else a compaction of RocksDB's own has, or had, the file
    if (!go_on(Clock::now() - began)) return compacted;
  }
  if (compacted > 0) look();
  return compacted;
}

}  // namespace damo
