// Where a row stands in the order in which rows go: by its last step, and among those of one step by a hash of its id.
//
// One update may bring any number of rows. Their order among each other means nothing; it is there so that some of them
// can go and others stay.
#pragma once

#include <cstdint>

namespace damo {

constexpr uint64_t IdHash(int64_t id) {
  uint64_t hash = static_cast<uint64_t>(id);
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  return hash ^ (hash >> 31);
}

// One of 256 parts that ids fall into, each with about as many.
constexpr uint32_t kIdParts = 256;
constexpr uint32_t IdPart(int64_t id) { return static_cast<uint32_t>(IdHash(id) >> 56); }

using Position = uint64_t;
constexpr Position PositionOf(uint64_t step, uint32_t part = 0) { return step * kIdParts + part; }
constexpr uint32_t StepOf(Position position) { return static_cast<uint32_t>(position / kIdParts); }
constexpr uint32_t PartOf(Position position) { return static_cast<uint32_t>(position % kIdParts); }

// After all rows there can be.
constexpr Position kEndOfPositions = PositionOf(uint64_t{1} << 32);

}  // namespace damo
