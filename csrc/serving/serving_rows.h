// Writes tables' rows for serving: all tables of one dim as one row group, whose files a runtime maps into memory.
//
//   PREFIX.keys      int64 by row: the id whose row it is
//   PREFIX.buckets   int64 by bucket (perfect_hash.h)
//   PREFIX.rows.N    the weights, row by row; a new file begins every `shard_rows` rows
//   PREFIX.scales    if the dtype has scales, float32 by row: what to multiply by
//
// Row 0 is zeros, and means none; part 0 and bucket 0 lead to it alone, and so does a table without rows. Then come the
// slots of the tables' parts. One that is no id's has zeros, and for its key that of another row of the table, so that
// no id finds it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "row/row_lifetime.h"
#include "serving/perfect_hash.h"
#include "serving/row_dtype.h"
#include "serving/serving_files.h"
#include "serving/serving_parts.h"
#include "storage/row_snapshot.h"

namespace damo {

struct ServingOptions {
  std::string directory;
  std::string prefix;
  int dim = 0;
  RowDtype dtype = RowDtype::kFloat32;
  size_t shard_rows = 0;
  size_t memory_bytes = 0;  // at least kLeastServingMemory; what a snapshot's scans take is not in it
  int num_threads = 1;
};
constexpr size_t kLeastServingMemory = size_t{32} << 20;

// Where a table is in its row group.
struct ServingTable {
  HashTable hash;
  int64_t rows;        // of ids
  int64_t faint_rows;  // of these, those whose weights are so small that the dtype keeps less of them than of others
};

// Not thread-safe.
class ServingRows {
 public:
  // Called now and then with the number of rows that have been taken; what it throws ends the call.
  using Progress = std::function<void(uint64_t)>;

  // REQUIRES: none of the files exists. Throws kInvalidArgument, kOutOfSpace or kIo.
  explicit ServingRows(const ServingOptions& options);

  // Adds the snapshot's table at `position`. Reads it once, or with a filter twice. What does not fit into memory goes
  // to files PREFIX.spill.N until the call ends. What is written depends neither on memory nor on threads.
  //
  // Throws kInvalidArgument for a table of another dim, and for weights that the dtype cannot hold; kOutOfSpace, kIo
  // or kClosed. After an error nothing can be added, and no file is open.
  ServingTable Add(const RowSnapshot& snapshot, size_t position, const RowFilter& filter, const Progress& progress);
  // Waits until all is on the device, and closes the files.
  void Finish();

  const std::vector<HashPart>& parts() const { return parts_; }
  // Once it is finished.
  int64_t num_rows() const { return num_rows_; }
  int64_t num_buckets() const { return num_buckets_; }
  int64_t num_shards() const { return num_shards_; }

 private:
  struct Source;

  ServingTable AddTable(Source* rows, const RowFilter& filter);
  void WriteParts(const Source& rows, const ServingParts& parts);
  void WritePart(const Source& rows, const Records& records, const PlacedPart& part);
  void AppendZeros(int64_t key);
  void CheckOpen() const;

  const ServingOptions options_;
  const size_t row_bytes_;
  const size_t keys_per_part_;
  ThreadPool threads_;
  std::unique_ptr<ServingFiles> files_;  // null once they are closed
  std::vector<HashPart> parts_;
  int64_t num_rows_ = 0;
  int64_t num_buckets_ = 0;
  int64_t num_shards_ = 0;
};

}  // namespace damo
