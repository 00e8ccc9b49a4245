// The perfect hash of any ids: each has a slot of its own, or the ids are refused.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "base/status.h"
#include "fuzz_input.h"
#include "serving/perfect_hash.h"
#include "serving/serving_parts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using damo::fuzz::Require;
  damo::fuzz::Input input(data, size);
  const auto number = static_cast<int64_t>(input.Take<uint32_t>() & ((uint32_t{1} << damo::kPartBits) - 1));
  const size_t buckets = size_t{1} << input.UpTo(6);
  // Twice as many as a bucket gets at most, on average: still more take seconds.
  std::vector<int64_t> ids = input.Numbers(std::min(input.left(), 8 * buckets));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  try {
    const damo::BuiltPart part = damo::BuildPart(ids, number, buckets);
    const damo::HashTable table{0, static_cast<int64_t>(buckets - 1)};
    const damo::HashPart slots = damo::HashPart::At(0, part.slots);
    Require(part.buckets.size() == buckets);
    std::set<int64_t> taken;
    for (const int64_t id : ids) {
      const uint64_t h = damo::MixId(id);
      const int64_t bucket = part.buckets[static_cast<size_t>(damo::BucketOf(h, table))];
      Require(damo::PartOf(bucket) == number);
      const int64_t slot = damo::RowOf(h, bucket, slots);
      Require(slot >= 0 && slot < int64_t{part.slots} && taken.insert(slot).second);
    }
  } catch (const damo::Error& error) {
    Require(error.code() == damo::ErrorCode::kInvalidArgument);
  }
  return 0;
}
