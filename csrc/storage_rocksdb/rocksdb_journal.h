// Rows that checkpoints of a RocksDB hold beside what was written to it: see RowStore::AddToJournal. They are in files
// beside the database's own, one for each checkpoint, which lie in a checkpoint as its write-ahead logs.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "storage/row_store.h"
#include "storage_rocksdb/rocksdb_log.h"

namespace damo {

// Not thread-safe, but for the figures. Throws kOutOfSpace or kIo.
class RocksDbJournal {
 public:
  // Changes of the journal are newer than any that the database may hold when it lies beside them: a journal is begun
  // anew long before so many are written.
  static constexpr uint64_t kSequencesAhead = uint64_t{1} << 36;

  struct LogFile {
    std::string path;
    uint64_t size;
    uint64_t number;  // from 1; of no other file of the journal, nor of an earlier one
  };

  // Makes its files in `directory`.
  explicit RocksDbJournal(std::string directory) : directory_(std::move(directory)) {}
  ~RocksDbJournal() { Clear(); }
  RocksDbJournal(const RocksDbJournal&) = delete;
  RocksDbJournal& operator=(const RocksDbJournal&) = delete;

  // `latest_sequence`: of the database. REQUIRES: at least one row.
  void Add(std::span<const RowWrite> rows, uint64_t latest_sequence);
  // The files with all that was added, which are never written again, oldest first; synced.
  const std::vector<LogFile>& Finish();
  // Removes the files. Allocates nothing, so that it works where there is no memory.
  void Clear() noexcept;

  uint64_t bytes() const { return bytes_; }
  uint64_t bytes_written() const { return bytes_written_; }  // since it was made
  size_t files() const { return finished_.size(); }

 private:
  struct OpenFile {
    explicit OpenFile(LogFile f) : file(std::move(f)), writer(file.path) {}

    LogFile file;
    RocksDbLogWriter writer;
  };

  const std::string directory_;
  std::vector<LogFile> finished_;  // with room for the open one
  std::optional<OpenFile> open_;
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<uint64_t> bytes_written_ = 0;
  uint64_t sequence_ = 0;  // of the next change
  uint64_t number_ = 0;    // of the newest file
};

}  // namespace damo
