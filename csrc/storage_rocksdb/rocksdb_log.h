// A file as RocksDB's write-ahead logs are: write batches in checksummed records, which RocksDB applies when it opens
// the database that the file lies in (github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/files.h"
#include "storage/row_store.h"

namespace damo {

// Not thread-safe. Throws kOutOfSpace or kIo.
class RocksDbLogWriter {
 public:
  // REQUIRES: `path` does not exist.
  explicit RocksDbLogWriter(const std::string& path);

  // Appends the rows as one batch, of which the first change has the number `sequence`; returns the number after the
  // last. REQUIRES: at least one row.
  uint64_t Append(std::span<const RowWrite> rows, uint64_t sequence);
  // Waits until all is on the device. Nothing may follow.
  void Finish() { file_.Finish(); }

  uint64_t bytes() const { return bytes_; }

 private:
  void AppendRecord(std::string_view record);

  FileWriter file_;
  std::string batch_;
  uint64_t bytes_ = 0;
};

}  // namespace damo
