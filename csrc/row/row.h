// How a row lies in memory.
//
//   byte  0   int64   id
//         8   uint16  table (index of the table in this store while it is open)
//        10   uint8   flags
//        11   uint8   touch: what the cache knows of its use (cache/replacement.h)
//        12   payload: weights[dim], float32 state[state_size], RowHeader
//
// Weights are float32 or, padded to a whole float32, of 16 bits. The payload is what a RowStore keeps: a change of it
// is one of the format (kRecordVersion).
//
// This header is compiled for several instruction sets: nothing in it may become an out-of-line function.
#pragma once

#include <cstddef>
#include <cstdint>

#include "row/row_header.h"
#include "row/weight_type.h"

namespace damo {

constexpr size_t kTableOffset = 8;
constexpr size_t kFlagsOffset = 10;
constexpr size_t kTouchOffset = 11;
constexpr size_t kPayloadOffset = 12;

// There is no such row: it holds its initial value until the first update makes it real, and the header of its
// sightings or zeros. With kDirty, the RowStore may have one, or other sightings.
constexpr uint8_t kAbsent = 1;
// The row has changes that the RowStore does not have.
constexpr uint8_t kDirty = 2;
// The row was deleted or moved; its bytes wait for their segment to be reclaimed.
constexpr uint8_t kDead = 4;
// An operation under way needs the row where evictions go on: it moves, but stays.
constexpr uint8_t kPinned = 8;
// The row's payload is being read from the RowStore: nobody may look at it.
constexpr uint8_t kLoading = 16;
// In a segment that a capture has yet to take (engine/capture.h): what the row was when it began is kept elsewhere.
constexpr uint8_t kKept = 32;
// The row has changed since it was last in a checkpoint. REQUIRES: kDirty.
constexpr uint8_t kChanged = 64;

// What sizes of rows are computed for without overflow, whatever the optimizer: far more than a cache has room for.
constexpr int kMostDim = 1 << 24;

struct RowLayout {
  int dim = 0;
  int state_size = 0;
  WeightType weight_type = WeightType::kFloat32;

  size_t weight_bytes() const { return WeightBytes(weight_type, dim); }
  size_t payload_size() const { return weight_bytes() + sizeof(float) * state_size + sizeof(RowHeader); }
  size_t row_size() const { return kPayloadOffset + payload_size(); }
  bool operator==(const RowLayout&) const = default;
};

DAMO_INLINE int64_t RowId(const char* row) { return *reinterpret_cast<const int64_t*>(row); }
DAMO_INLINE uint16_t RowTable(const char* row) { return *reinterpret_cast<const uint16_t*>(row + kTableOffset); }
DAMO_INLINE void SetRowKey(char* row, uint16_t table, int64_t id) {
  *reinterpret_cast<int64_t*>(row) = id;
  *reinterpret_cast<uint16_t*>(row + kTableOffset) = table;
}
DAMO_INLINE uint8_t RowFlags(const char* row) { return *reinterpret_cast<const uint8_t*>(row + kFlagsOffset); }
DAMO_INLINE void SetRowFlags(char* row, uint8_t flags) { *reinterpret_cast<uint8_t*>(row + kFlagsOffset) = flags; }
DAMO_INLINE uint8_t* RowTouch(char* row) { return reinterpret_cast<uint8_t*>(row + kTouchOffset); }
DAMO_INLINE uint8_t RowTouch(const char* row) { return *reinterpret_cast<const uint8_t*>(row + kTouchOffset); }

// RowWeights is for rows whose weights are float32.
DAMO_INLINE float* RowWeights(char* row) { return reinterpret_cast<float*>(row + kPayloadOffset); }
DAMO_INLINE const float* RowWeights(const char* row) { return reinterpret_cast<const float*>(row + kPayloadOffset); }
DAMO_INLINE float* RowState(char* row, const RowLayout& layout) {
  return reinterpret_cast<float*>(row + kPayloadOffset + layout.weight_bytes());
}
DAMO_INLINE RowHeader* HeaderOf(char* row, const RowLayout& layout) {
  return reinterpret_cast<RowHeader*>(RowState(row, layout) + layout.state_size);
}

// The header of a payload that may lie anywhere. REQUIRES: it has room for one.
DAMO_INLINE RowHeader PayloadHeader(const char* payload, size_t payload_size) {
  RowHeader header;
  __builtin_memcpy(&header, payload + payload_size - sizeof header, sizeof header);
  return header;
}
DAMO_INLINE RowHeader PayloadHeader(const char* payload, const RowLayout& layout) {
  return PayloadHeader(payload, layout.payload_size());
}

// A row's place in the cache's arena, in units of 1 << unit_shift bytes. The first is never a place of a row.
using Slot = uint32_t;
constexpr Slot kMissingSlot = 0;  // not in the cache

struct Arena {
  char* base;
  int unit_shift;
};
DAMO_INLINE char* RowAt(const Arena& arena, Slot slot) { return arena.base + (size_t{slot} << arena.unit_shift); }

}  // namespace damo
