// The lookups of exported graphs: of pooled bags, and of the row of each id. damo_torchrec/onnx/lookup_functions.py has
// the same in standard operators.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "onnxruntime_ops/rows_of_ids.h"
#include "serving/row_dtype.h"

namespace damo {

// A request and the arrays of a graph that it is looked up in. Borrowed.
struct LookupArgs {
  const int64_t* values;   // [num_ids], by key, then bag
  const int64_t* lengths;  // [keys, batch], >= 0
  const float* weights;    // [num_ids], or nullptr: all ones
  const int64_t* tables;   // [keys]
  const bool* means;       // [keys], or nullptr: all sums
  size_t num_ids;
  size_t keys;
  size_t batch;

  RowGroupHash hash;
  RowDtype dtype;
  const void* rows;        // [num_rows, dim]
  const float* scales;     // [num_rows], if the dtype has them
  const float* mean_rows;  // [num_tables, dim], read by ids without a row, or nullptr: zeros
  size_t dim;
};

// How many there are in a row group's arrays.
struct RowGroupSizes {
  int64_t tables;
  int64_t buckets;
  int64_t rows;
};

// Whether every table, bucket and row that the request's keys and the hash can name is there. What buckets hold shows
// in lookups.
bool FitTogether(const LookupArgs& args, const RowGroupSizes& sizes);

// Consecutive bags, in the order of `lengths`, and where their ids begin.
struct BagRange {
  size_t key;
  size_t first_bag;  // of the key
  size_t bags;
  size_t first_id;
  size_t ids;
};

// A request, divided into parts that threads may do in any order: results are the same bits.
class PooledLookup {
 public:
  // Pools into `out`, [batch, keys * dim]. REQUIRES: lengths sum to num_ids.
  PooledLookup(const LookupArgs& args, float* out);

  size_t parts() const { return ranges_.size(); }
  void Do(size_t part) const;
  // Whether a bucket named a part that is not there.
  bool damaged() const { return damaged_; }

 private:
  const LookupArgs args_;
  float* const out_;
  std::vector<int64_t> key_end_;
  mutable std::atomic<bool> damaged_ = false;
  std::vector<BagRange> ranges_;
};

class RowLookup {
 public:
  // Writes to `out`, [num_ids, dim]. REQUIRES: lengths sum to num_ids.
  RowLookup(const LookupArgs& args, float* out);

  size_t parts() const { return (args_.num_ids + kIdsPerPart - 1) / kIdsPerPart; }
  void Do(size_t part) const;
  bool damaged() const { return damaged_; }

 private:
  static constexpr size_t kIdsPerPart = 1024;

  const LookupArgs args_;
  float* const out_;
  std::vector<int64_t> key_end_;
  mutable std::atomic<bool> damaged_ = false;
};

}  // namespace damo
