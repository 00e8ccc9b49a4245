// The files of a row group (serving_rows.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/files.h"

namespace damo {

// Throws kOutOfSpace or kIo.
class ServingFiles {
 public:
  // REQUIRES: none of the files exists.
  ServingFiles(const std::string& prefix, size_t row_bytes, size_t shard_rows, bool scaled);

  // `scale` is of no meaning unless rows are scaled.
  void AppendRow(int64_t key, const char* row, float scale);
  void AppendBuckets(std::span<const int64_t> buckets);
  // Waits until all is on the device.
  void Finish();

  int64_t num_rows() const { return num_rows_; }
  int64_t num_buckets() const { return num_buckets_; }
  int64_t num_shards() const { return num_shards_; }

 private:
  const std::string prefix_;
  const size_t row_bytes_;
  const int64_t shard_rows_;
  FileWriter keys_;
  FileWriter buckets_;
  std::optional<FileWriter> scales_;
  std::optional<FileWriter> shard_;  // the last one
  int64_t num_rows_ = 0;
  int64_t num_buckets_ = 0;
  int64_t num_shards_ = 0;
};

}  // namespace damo
