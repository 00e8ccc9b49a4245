// The value stored under a key: one byte that says what it is, then the payload of a row, of sightings of an id that
// has no row yet, or of a deletion record (docs/format.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "row/key.h"
#include "row/row.h"

namespace damo {

inline constexpr char kRecordVersion = 1;
// What follows is a RowHeader alone: the step of the id's last sighting, and how many there were.
inline constexpr char kSightingVersion = 2;

// How messages name a row.
inline std::string RowName(uint32_t table, int64_t id) {
  return "table " + std::to_string(table) + ", id " + std::to_string(id);
}

inline bool IsSighting(std::string_view value) { return !value.empty() && value[0] == kSightingVersion; }

// The payload within the value of a row, or of sightings. Throws kCorruption, naming the row, unless `value` is one
// byte that this release knows and exactly as many more as go with it: `payload_size`, or a RowHeader.
inline const char* RowPayload(std::string_view value, size_t payload_size, uint32_t table, int64_t id) {
  if (value.empty() || (value[0] != kRecordVersion && value[0] != kSightingVersion)) {
    const std::string got = value.empty() ? "none" : std::to_string(static_cast<unsigned char>(value[0]));
    throw Error(ErrorCode::kCorruption,
                RowName(table, id) + ": expected format version " + std::to_string(kRecordVersion) + ", found " + got);
  }
  const size_t expected = IsSighting(value) ? sizeof(RowHeader) : payload_size;
  if (value.size() - 1 != expected) {
    throw Error(ErrorCode::kCorruption, RowName(table, id) + ": expected a row of " + std::to_string(expected) +
                                            " bytes, found " + std::to_string(value.size() - 1));
  }
  return value.data() + 1;
}

// The value of a deletion record: the version byte, then the little-endian u64 step of the deletion.
inline constexpr size_t kDeletionSize = sizeof(uint64_t);
using DeletionRecord = std::array<char, 1 + kDeletionSize>;

inline DeletionRecord EncodeDeletion(uint64_t step) {
  DeletionRecord record;
  record[0] = kRecordVersion;
  for (size_t i = 0; i < kDeletionSize; ++i) record[1 + i] = static_cast<char>(step >> (8 * i));
  return record;
}

// The step in the kDeletionSize bytes behind the version.
inline uint64_t DecodeDeletion(const char* payload) {
  uint64_t step = 0;
  for (size_t i = 0; i < kDeletionSize; ++i) step |= uint64_t{static_cast<unsigned char>(payload[i])} << (8 * i);
  return step;
}

// The step of a row's last update or of a deletion, whatever the layout of the table's rows; `table` is the number in
// the record's key. Nothing if `value` has the wrong size for one.
inline std::optional<uint64_t> RecordStep(uint32_t table, std::string_view value) {
  if (table & kDeletionBit) {
    return value.size() == sizeof(DeletionRecord) ? std::optional(DecodeDeletion(value.data() + 1)) : std::nullopt;
  }
  if (value.size() < 1 + sizeof(RowHeader)) return std::nullopt;
  return PayloadHeader(value.data(), value.size()).last_step;
}

}  // namespace damo
