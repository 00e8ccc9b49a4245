// A perfect hash: each id of a set has a slot of its own, found by arithmetic and one number from an array. Whether an
// id is in the set shows in the key that is kept beside the slot.
//
// The ids of a table are spread over its buckets, two to four to each on average, and a run of buckets is a part of it.
// A bucket holds the number of its part and a pilot, which brings all its ids to slots of the part that no other id has
// (after Pibiri, Trani: PTHash, SIGIR 2021). Parts are built without regard to each other.
//
// Exported graphs compute the same function, and each step of it is an operator: what is in this header is part of
// their format, and is as few steps as will do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace damo {

// The first two mix an id (Maiga, mx3, 2020), the third brings its bucket in.
constexpr uint64_t kPerfectHashConstants[3] = {0xBEA225F9EB34556Du, 0xBEA225F9EB34556Du, 0xD1B54A32D192ED03u};

// A bijection.
inline uint64_t MixId(int64_t id) {
  uint64_t h = static_cast<uint64_t>(id);
  h = (h ^ h >> 32) * kPerfectHashConstants[0];
  return (h ^ h >> 29) * kPerfectHashConstants[1];
}

// What a bucket holds: its pilot above the number of its part.
constexpr int kPartBits = 24;
inline int64_t MakeBucket(uint16_t pilot, int64_t part) { return int64_t{pilot} << kPartBits | part; }
inline int64_t PartOf(int64_t bucket) { return bucket & ((int64_t{1} << kPartBits) - 1); }

// Where a table's buckets are: the mask is their number, a power of two, less 1.
struct HashTable {
  int64_t first_bucket = 0;
  int64_t bucket_mask = 0;
};

// A part's slots are so many rows from `first_row` on, an odd number of them: then a factor brings 64 bits with a sign
// to one of them on either side of the one in the middle.
struct HashPart {
  int64_t middle_row = 0;
  double scale = 0x1p-64;

  static HashPart At(int64_t first_row, uint32_t rows) { return {first_row + rows / 2, rows * 0x1p-64}; }
};

// Of an id with this MixId: where its bucket is, and by what that holds the row that is the id's if any is: `keys` of
// the row group tells.
inline int64_t BucketOf(uint64_t h, const HashTable& table) {
  return table.first_bucket + static_cast<int64_t>(h & static_cast<uint64_t>(table.bucket_mask));
}
inline int64_t RowOf(uint64_t h, int64_t bucket, const HashPart& part) {
  const uint64_t place = (h ^ static_cast<uint64_t>(bucket)) * kPerfectHashConstants[2];
  return part.middle_row + static_cast<int64_t>(static_cast<double>(static_cast<int64_t>(place)) * part.scale);
}

// How many buckets a table of so many ids has.
size_t NumBuckets(size_t ids);

// A part that was built: its slots begin at row 0.
struct BuiltPart {
  uint32_t slots;
  std::vector<int64_t> buckets;
};

// Ids in a part, on average. Fewer take more time for each, more leave the processor's cache.
constexpr size_t kMostKeysPerPart = size_t{1} << 17;

// Builds the part of this number, with so many buckets, a power of two, that has these ids, distinct and in any order,
// on which the result does not depend. Throws kInvalidArgument for ids that no number of slots within reason keeps
// apart, which only those chosen for it are.
BuiltPart BuildPart(std::span<const int64_t> ids, int64_t number, size_t num_buckets);

}  // namespace damo
