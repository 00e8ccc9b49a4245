// Rows on their way into a row group (serving_rows.h): some parts of a table at a time are brought into the order of
// their slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "perfect_hash.h"

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

// Parts of a table and their records.
class ServingParts {
 public:
  // The `parts` parts from `first_part` on of the `num_parts` of the table. REQUIRES: fewer than 2^32 - 1 records, all
  // of these parts.
  ServingParts(Records records, int64_t first_part, size_t parts, int64_t num_parts);

  size_t size() const { return begin_.size() - 1; }
  const Records& records() const { return records_; }
  // Thread-safe. The result does not depend on the records' order. See BuildPart for what it throws.
  PlacedPart Place(size_t part) const;

 private:
  const Records records_;
  std::vector<uint32_t> begin_;  // by part, and one more
  std::vector<uint32_t> order_;  // records by part
};

}  // namespace damo
