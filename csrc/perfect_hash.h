// A perfect hash: each id of a set has a slot of its own, found by arithmetic and one small number from an array.
// Whether an id is in the set shows in the key that is kept beside the slot.
//
// The ids of a table are spread over its parts, and those of a part over its buckets, some four to each. A bucket's
// pilot is a number that brings all its ids to slots that no other has (after Pibiri, Trani: PTHash, SIGIR 2021). Parts
// are built without regard to each other.
//
// Exported graphs compute the same function with operators that know no 128-bit products and no unsigned comparison:
// what is in this header is part of their format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace damo {

// The first two mix an id (Maiga, mx3, 2020); the others bring a pilot in.
constexpr uint64_t kPerfectHashConstants[4] = {0xBEA225F9EB34556Du, 0xBEA225F9EB34556Du, 0x9E3779B97F4A7C15u,
                                               0xD1B54A32D192ED03u};

// Where a part's pilots and rows are in the arrays of its row group.
struct HashPart {
  int64_t first_bucket = 0;
  int64_t buckets = 1;  // < 2^32
  int64_t first_row = 0;
  int64_t rows = 1;  // slots, < 2^32
};

// A bijection.
inline uint64_t MixId(int64_t id) {
  uint64_t h = static_cast<uint64_t>(id);
  h = (h ^ h >> 32) * kPerfectHashConstants[0];
  h = (h ^ h >> 29) * kPerfectHashConstants[1];
  return h ^ h >> 32;
}

// Brings 32 bits, the upper or the lower half of x, into [0, n). REQUIRES: n < 2^32.
inline int64_t UpperHalfIn(uint64_t x, int64_t n) {
  return static_cast<int64_t>((x >> 32) * static_cast<uint64_t>(n) >> 32);
}
inline int64_t LowerHalfIn(uint64_t x, int64_t n) {
  return static_cast<int64_t>((x & 0xFFFFFFFFu) * static_cast<uint64_t>(n) >> 32);
}

// Of an id with this MixId: its part, its bucket and, by its bucket's pilot, its row. REQUIRES: num_parts < 2^31.
inline int64_t PartOf(uint64_t h, int64_t first_part, int64_t num_parts) {
  return first_part + UpperHalfIn(h, num_parts);
}
inline int64_t BucketOf(uint64_t h, const HashPart& part) { return part.first_bucket + LowerHalfIn(h, part.buckets); }
inline int64_t RowOf(uint64_t h, uint16_t pilot, const HashPart& part) {
  return part.first_row + UpperHalfIn((h ^ pilot * kPerfectHashConstants[2]) * kPerfectHashConstants[3], part.rows);
}

// The row that is this id's if any is: `keys` of the row group tells. `parts` are those of the whole group.
inline int64_t PerfectHashRow(int64_t id, int64_t first_part, int64_t num_parts, const HashPart* parts,
                              const uint16_t* pilots) {
  const uint64_t h = MixId(id);
  const HashPart& part = parts[PartOf(h, first_part, num_parts)];
  return RowOf(h, pilots[BucketOf(h, part)], part);
}

// A part that was built, as if it were the only one: its pilots and slots begin at 0.
struct BuiltPart {
  uint32_t slots;
  std::vector<uint16_t> pilots;  // by bucket
};

// Ids in a part. Fewer take more time for each, more leave the processor's cache.
constexpr size_t kMostKeysPerPart = size_t{1} << 17;

// Builds the part that has these ids, distinct and in any order, on which the result does not depend. Throws
// kInvalidArgument for ids that no number of slots within reason keeps apart, which only those chosen for it are.
BuiltPart BuildPart(std::span<const int64_t> ids);

}  // namespace damo
