#include "rocksdb_checkpoint.h"

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>

#include <filesystem>
#include <limits>
#include <vector>

#include "files.h"
#include "rocksdb_status.h"
#include "rocksdb_store.h"
#include "status.h"

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

}  // namespace

// RocksDB's own Checkpoint always links on the same device, fails where links are refused, and relies on Flush.
bool CopyRocksDb(rocksdb::DB* db, const std::string& path, bool link) {
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
  });
  return linked;
}

void LinkOrCopyRocksDb(const std::string& from, const std::string& to) {
  namespace fs = std::filesystem;
  BuildDirectory(to, [&] {
    try {
      for (const fs::directory_entry& file : fs::directory_iterator(from)) {
        const std::string source = file.path().string(), target = to + "/" + file.path().filename().string();
        const fs::path extension = file.path().extension();
        if (extension == ".sst" || extension == ".blob") {
          LinkOrCopyFile(source, target, file.file_size());
        } else {
          CopyFile(source, target, file.file_size());
        }
      }
    } catch (const fs::filesystem_error& error) {
      throw Error(ErrorCode::kIo, error.what());
    }
  });
}

}  // namespace damo
