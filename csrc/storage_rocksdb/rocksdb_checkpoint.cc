#include "storage_rocksdb/rocksdb_checkpoint.h"

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <vector>

#include "base/files.h"
#include "base/status.h"
#include "storage_rocksdb/rocksdb_status.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {
namespace {

bool LinkOrCopyFile(const std::string& from, const std::string& to, uint64_t size) {
  if (LinkFile(from, to)) return true;
  CopyFile(from, to, size);
  return false;
}

// Files that RocksDB would delete stay while this lives.
class KeepFiles {
 public:
  explicit KeepFiles(rocksdb::DB* db) : db_(db) { Check(db_->DisableFileDeletions(), "checkpoint"); }
  ~KeepFiles() {
#if ROCKSDB_MAJOR >= 9
    db_->EnableFileDeletions().PermitUncheckedError();
#else
    db_->EnableFileDeletions(/*force=*/false).PermitUncheckedError();
#endif
  }
  KeepFiles(const KeepFiles&) = delete;
  KeepFiles& operator=(const KeepFiles&) = delete;

 private:
  rocksdb::DB* const db_;
};

// RocksDB numbers its files in sequence.
constexpr uint64_t kMostFiles = uint64_t{1} << 60;

// Above those of all files in a database's directory. RocksDB applies a log unless its number is below the one that the
// manifest says, which that of some log has been.
uint64_t NextFileNumber(const std::string& directory) {
  uint64_t next = 1;
  try {
    for (const auto& file : std::filesystem::directory_iterator(directory)) {
      const std::string name = file.path().filename();
      const size_t digits = std::min(name.find_first_of("0123456789"), name.size());
      const uint64_t number = std::strtoull(name.c_str() + digits, nullptr, 10);
      if (number >= kMostFiles) throw Error(ErrorCode::kCorruption, file.path().string() + " is no file of a database");
      next = std::max(next, number + 1);
    }
  } catch (const std::filesystem::filesystem_error& error) {
    throw Error(ErrorCode::kIo, error.what());
  }
  return next;
}

std::string LogFileName(uint64_t number) {
  const std::string digits = std::to_string(number);
  return std::string(6 - std::min<size_t>(digits.size(), 6), '0') + digits + ".log";
}

}  // namespace

// RocksDB's own Checkpoint always links on the same device, fails where links are refused, and relies on Flush.
bool CopyRocksDb(rocksdb::DB* db, const std::string& path, bool link, std::span<const RocksDbJournal::LogFile> logs) {
  bool linked = link;
  BuildDirectory(path, [&] {
    KeepFiles keep(db);
    rocksdb::LiveFilesStorageInfoOptions options;
    options.wal_size_for_flush = std::numeric_limits<uint64_t>::max();  // no flush
    std::vector<rocksdb::LiveFileStorageInfo> files;
    Check(db->GetLiveFilesStorageInfo(options, &files), "checkpoint into " + path);
    for (const auto& file : files) {
      if (file.file_type == rocksdb::kWalFile) continue;  // always empty
      const std::string from = file.directory + "/" + file.relative_filename;
      const std::string to = path + "/" + file.relative_filename;
      const bool immutable = file.file_type == rocksdb::kTableFile || file.file_type == rocksdb::kBlobFile;
      if (!file.replacement_contents.empty()) {
        WriteFile(to, file.replacement_contents);
      } else if (link && immutable) {
        linked &= LinkOrCopyFile(from, to, file.size);
      } else {
        CopyFile(from, to, file.size);
      }
    }
    // Above the numbers of all logs that RocksDB has applied.
    const uint64_t number = NextFileNumber(db->GetName());
    for (const RocksDbJournal::LogFile& log : logs) {
      const std::string to = path + "/" + LogFileName(number + log.number);
      if (link) {
        linked &= LinkOrCopyFile(log.path, to, log.size);
      } else {
        CopyFile(log.path, to, log.size);
      }
    }
  });
  return linked;
}

void LinkOrCopyRocksDb(const std::string& from, const std::string& to, bool logs) {
  namespace fs = std::filesystem;
  BuildDirectory(to, [&] {
    try {
      for (const fs::directory_entry& file : fs::directory_iterator(from)) {
        const std::string source = file.path().string(), target = to + "/" + file.path().filename().string();
        const fs::path extension = file.path().extension();
        CheckRegular(source);
        if (extension == ".log" && !logs) continue;
        if (extension == ".sst" || extension == ".blob" || extension == ".log") {
          LinkOrCopyFile(source, target, file.file_size());
        } else {
          CopyFile(source, target, file.file_size());
        }
      }
      // RocksDB cuts the last log to its size when it opens the database, which would touch one that is shared.
      if (logs) WriteFile(to + "/" + LogFileName(NextFileNumber(to)), "");
    } catch (const fs::filesystem_error& error) {
      throw Error(ErrorCode::kIo, error.what());
    }
  });
}

}  // namespace damo
