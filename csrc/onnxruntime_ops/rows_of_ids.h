// Finds the rows of ids in a row group (serving_rows.h), with memory a few blocks of ids ahead.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "serving/perfect_hash.h"

namespace damo {

// A row group's arrays, as they are in an exported graph.
struct RowGroupHash {
  const int64_t* first_bucket;  // by table
  const int64_t* bucket_mask;
  const int64_t* middle_row;  // by part
  const double* row_scale;
  int64_t num_parts;
  const int64_t* buckets;
  const int64_t* keys;  // by row
};

// The ids of a request, those of a key behind one another.
struct RequestIds {
  const int64_t* ids;
  const int64_t* key_end;  // by key: where its ids end
  const int64_t* tables;   // by key
};

class RowsOfIds {
 public:
  static constexpr size_t kBlock = 32;

  // The ids of `request` in [begin, end); that at `begin` is of `key`, or of a later one. Rows begin at `rows`.
  RowsOfIds(const RowGroupHash& hash, const RequestIds& request, size_t begin, size_t end, size_t key, const char* rows,
            size_t row_bytes)
      : hash_(hash), request_(request), next_(begin), end_(end), key_(key), rows_(rows), row_bytes_(row_bytes) {
    Hash(&blocks_[0]);
    Place(&blocks_[0]);
    Hash(&blocks_[1]);
  }

  // The row of the next id: 0 if it has none. REQUIRES: there is one.
  size_t Next() {
    if (taken_ == kBlock) Advance();
    return static_cast<size_t>(found_[taken_++]);
  }

  // Whether a bucket named a part that is not there. Its ids have any row then.
  bool damaged() const { return damaged_; }

 private:
  static constexpr size_t kLine = 64;
  static constexpr size_t kBlocks = 3;

  struct Block {
    size_t n = 0;
    int64_t ids[kBlock];
    uint64_t hashes[kBlock];
    int64_t buckets[kBlock];  // where they are
    int64_t rows[kBlock];
  };

  // Brings a block's buckets on their way.
  void Hash(Block* block) {
    block->n = std::min(kBlock, end_ - next_);
    for (size_t i = 0; i < block->n; ++i, ++next_) {
      while (static_cast<int64_t>(next_) >= request_.key_end[key_]) ++key_;
      const int64_t table = request_.tables[key_];
      block->ids[i] = request_.ids[next_];
      block->hashes[i] = MixId(request_.ids[next_]);
      block->buckets[i] = BucketOf(block->hashes[i], {hash_.first_bucket[table], hash_.bucket_mask[table]});
      __builtin_prefetch(hash_.buckets + block->buckets[i]);
    }
  }

  // And then its keys and rows.
  void Place(Block* block) {
    for (size_t i = 0; i < block->n; ++i) {
      const int64_t bucket = hash_.buckets[block->buckets[i]];
      int64_t part = PartOf(bucket);
      if (part >= hash_.num_parts) {
        damaged_ = true;
        part = 0;
      }
      const int64_t row = RowOf(block->hashes[i], bucket, {hash_.middle_row[part], hash_.row_scale[part]});
      block->rows[i] = row;
      __builtin_prefetch(hash_.keys + row);
      const char* weights = rows_ + static_cast<size_t>(row) * row_bytes_;
      for (size_t offset = 0; offset < row_bytes_; offset += kLine) __builtin_prefetch(weights + offset);
    }
  }

  void Advance() {
    const Block& block = blocks_[current_];
    Place(&blocks_[(current_ + 1) % kBlocks]);
    Hash(&blocks_[(current_ + 2) % kBlocks]);
    for (size_t i = 0; i < block.n; ++i) found_[i] = hash_.keys[block.rows[i]] == block.ids[i] ? block.rows[i] : 0;
    current_ = (current_ + 1) % kBlocks;
    taken_ = 0;
  }

  const RowGroupHash hash_;
  const RequestIds request_;
  size_t next_;
  const size_t end_;
  size_t key_;
  const char* const rows_;
  const size_t row_bytes_;
  Block blocks_[kBlocks];
  size_t current_ = 0;
  size_t taken_ = kBlock;
  bool damaged_ = false;
  int64_t found_[kBlock];
};

}  // namespace damo
