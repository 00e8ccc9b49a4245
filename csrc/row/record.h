// The value stored under a key: one byte of format version, then the payload of a row or of a deletion record
// (docs/format.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace damo {

inline constexpr char kRecordVersion = 1;

// How messages name a row.
inline std::string RowName(uint32_t table, int64_t id) {
  return "table " + std::to_string(table) + ", id " + std::to_string(id);
}

// The payload within a row's value. Throws kCorruption, naming the row, unless `value` is one version byte that this
// release knows and exactly `payload_size` more.
inline const char* RowPayload(std::string_view value, size_t payload_size, uint32_t table, int64_t id) {
  if (value.empty() || value[0] != kRecordVersion) {
    const std::string got = value.empty() ? "none" : std::to_string(static_cast<unsigned char>(value[0]));
    throw Error(ErrorCode::kCorruption,
                RowName(table, id) + ": expected format version " + std::to_string(kRecordVersion) + ", found " + got);
  }
  if (value.size() - 1 != payload_size) {
    throw Error(ErrorCode::kCorruption, RowName(table, id) + ": expected a row of " + std::to_string(payload_size) +
                                            " bytes, found " + std::to_string(value.size() - 1));
  }
  return value.data() + 1;
}

// The value of a deletion record: the version byte, then the little-endian u64 step of the deletion.
using DeletionRecord = std::array<char, 9>;

inline DeletionRecord EncodeDeletion(uint64_t step) {
  DeletionRecord record;
  record[0] = kRecordVersion;
  for (size_t i = 0; i < 8; ++i) record[1 + i] = static_cast<char>(step >> (8 * i));
  return record;
}

}  // namespace damo
