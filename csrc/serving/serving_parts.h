// Rows on their way into a row group (serving_rows.h): some parts of a table at a time are brought into the order of
// their slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "serving/perfect_hash.h"

namespace damo {

// An id with its encoded row: int64 id, float32 scale, weights.
constexpr size_t kRecordHeader = sizeof(int64_t) + sizeof(float);

// One behind the other.
class Records {
 public:
  Records(std::vector<char> bytes, size_t record_bytes) : bytes_(std::move(bytes)), record_bytes_(record_bytes) {}

  size_t size() const { return bytes_.size() / record_bytes_; }
  int64_t id(size_t i) const { return Read<int64_t>(i, 0); }
  float scale(size_t i) const { return Read<float>(i, sizeof(int64_t)); }
  const char* weights(size_t i) const { return bytes_.data() + i * record_bytes_ + kRecordHeader; }

 private:
  template <class T>
  T Read(size_t i, size_t offset) const {
    T value;
    std::memcpy(&value, bytes_.data() + i * record_bytes_ + offset, sizeof value);
    return value;
  }

  std::vector<char> bytes_;
  size_t record_bytes_;
};

// A part, built, and whose record each of its slots has.
struct PlacedPart {
  static constexpr uint32_t kNone = 0xFFFFFFFF;

  BuiltPart hash;
  std::vector<uint32_t> records;  // by slot
};

// A table's parts: so many, of so many buckets each. Both are powers of two.
struct TableParts {
  size_t number;
  size_t buckets;

  // Which of them an id is in.
  size_t Of(int64_t id) const {
    return static_cast<size_t>(BucketOf(MixId(id), {0, static_cast<int64_t>(number * buckets - 1)})) / buckets;
  }
};

// Some parts of a table and their records.
class ServingParts {
 public:
  // The `n` parts from `first` on; `number` is what the first of them is in the row group. REQUIRES: fewer than
  // 2^32 - 1 records, all of these parts.
  ServingParts(Records records, const TableParts& table, size_t first, size_t n, int64_t number);

  size_t size() const { return begin_.size() - 1; }
  const Records& records() const { return records_; }
  // Thread-safe. The result does not depend on the records' order. See BuildPart for what it throws.
  PlacedPart Place(size_t part) const;

 private:
  const Records records_;
  const TableParts table_;
  const int64_t number_;
  std::vector<uint32_t> begin_;  // by part, and one more
  std::vector<uint32_t> order_;  // records by part
};

}  // namespace damo
