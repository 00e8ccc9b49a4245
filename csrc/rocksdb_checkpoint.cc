#include "rocksdb_checkpoint.h"

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>

#include <filesystem>
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

// RocksDB's own Checkpoint always links on the same device, and fails where links are refused.
bool WriteRocksDbCheckpoint(rocksdb::DB* db, const std::string& path, bool link) {
  bool linked = link;
  BuildDirectory(path, [&] {
    KeepFiles keep(db);
    rocksdb::LiveFilesStorageInfoOptions options;
    options.wal_size_for_flush = 0;  // flush always: without a log, nothing else makes rows durable
    std::vector<rocksdb::LiveFileStorageInfo> files;
    auto dump=[&](const char* w){ uint64_t a=0,b=0,c=0,d=0; db->GetIntProperty("rocksdb.num-entries-active-mem-table",&a); db->GetIntProperty("rocksdb.num-entries-imm-mem-tables",&b); db->GetIntProperty("rocksdb.background-errors",&c); db->GetIntProperty("rocksdb.mem-table-flush-pending",&d); std::string l; db->GetProperty("rocksdb.levelstats",&l); fprintf(stderr,"%s active %lu imm %lu errs %lu pend %lu\n%s\n",w,a,b,c,d,l.c_str());};
    dump("before");
    auto st = db->GetLiveFilesStorageInfo(options, &files);
    dump("after"); for (auto&f:files) fprintf(stderr,"%s %lu\n", f.relative_filename.c_str(), f.size); fprintf(stderr,"%s\n", st.ToString().c_str());
    Check(st, "checkpoint into " + path);
    for (const auto& file : files) {
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
    std::error_code error;
    for (const fs::directory_entry& file : fs::directory_iterator(from, error)) {
      const std::string target = to + "/" + file.path().filename().string();
      const fs::path extension = file.path().extension();
      if (extension == ".sst" || extension == ".blob") {
        LinkOrCopyFile(file.path().string(), target, file.file_size());
      } else {
        CopyFile(file.path().string(), target, file.file_size());
      }
    }
    if (error) throw Error(ErrorCode::kIo, "cannot list " + from + ": " + error.message());
  });
}

}  // namespace damo
