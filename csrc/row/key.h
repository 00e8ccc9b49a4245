// The key of a row: 12 bytes, the big-endian u32 table number, then the big-endian u64 of the id with its sign bit
// flipped. Bytewise order is then (table number, signed id): a table's rows are contiguous and its ids ascend from
// INT64_MIN to INT64_MAX.
//
// Table numbers are below 2^31. The upper half holds the deletion records: that of row (table, id) lies under
// (table | kDeletionBit, id), so that no scan of a table meets them.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "base/status.h"

namespace damo {

inline constexpr size_t kKeySize = 12;
inline constexpr uint32_t kDeletionBit = uint32_t{1} << 31;

struct Key {
  std::array<char, kKeySize> bytes;

  std::string_view view() const { return {bytes.data(), bytes.size()}; }
  friend bool operator==(const Key& a, const Key& b) { return a.view() == b.view(); }
  friend auto operator<=>(const Key& a, const Key& b) { return a.view() <=> b.view(); }  // bytewise, as RocksDB's
};

// Throws kInvalidArgument unless `table` may number a table of rows.
inline void CheckTableNumber(uint32_t table) {
  if (table >= kDeletionBit) {
    throw Error(ErrorCode::kInvalidArgument, "table numbers are below 2^31, got " + std::to_string(table));
  }
}

inline Key EncodeKey(uint32_t table, int64_t id) {
  const uint64_t ordered = static_cast<uint64_t>(id) ^ (uint64_t{1} << 63);
  Key key;
  for (size_t i = 0; i < 4; ++i) key.bytes[i] = static_cast<char>(table >> (24 - 8 * i));
  for (size_t i = 0; i < 8; ++i) key.bytes[4 + i] = static_cast<char>(ordered >> (56 - 8 * i));
  return key;
}

inline Key EncodeDeletionKey(uint32_t table, int64_t id) { return EncodeKey(table | kDeletionBit, id); }

// A table's keys are those from FirstKey(table) to LastKey(table); with kDeletionBit, those of its deletion records.
inline Key FirstKey(uint32_t table) { return EncodeKey(table, std::numeric_limits<int64_t>::min()); }
inline Key LastKey(uint32_t table) { return EncodeKey(table, std::numeric_limits<int64_t>::max()); }

// The key of these bytes. Throws kInvalidArgument unless there are as many as a key has.
inline Key KeyOfBytes(std::string_view bytes) {
  if (bytes.size() != kKeySize) {
    throw Error(ErrorCode::kInvalidArgument,
                "a key has " + std::to_string(kKeySize) + " bytes, got " + std::to_string(bytes.size()));
  }
  Key key;
  std::copy_n(bytes.begin(), kKeySize, key.bytes.begin());
  return key;
}

// A key's table number, with kDeletionBit if the key is a deletion record's. REQUIRES: key.size() == kKeySize.
inline uint32_t DecodeTable(std::string_view key) {
  uint32_t table = 0;
  for (size_t i = 0; i < 4; ++i) table = table << 8 | static_cast<unsigned char>(key[i]);
  return table;
}

// REQUIRES: key.size() == kKeySize.
inline int64_t DecodeId(std::string_view key) {
  uint64_t ordered = 0;
  for (size_t i = 4; i < kKeySize; ++i) ordered = ordered << 8 | static_cast<unsigned char>(key[i]);
  return static_cast<int64_t>(ordered ^ (uint64_t{1} << 63));
}

}  // namespace damo
