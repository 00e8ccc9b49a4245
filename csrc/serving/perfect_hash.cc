#include "serving/perfect_hash.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <optional>
#include <string>

#include "base/status.h"

namespace damo {
namespace {

// With more of either, pilots take longer to find, until the last buckets have none.
constexpr double kLoad = 0.99;  // ids for each slot
constexpr size_t kMostIdsPerBucket = 4;
// A part is given up at so many slots for each id.
constexpr double kMostSlotsPerId = 64;

// The slots that are taken.
class Taken {
 public:
  explicit Taken(size_t slots) : words_(slots / 64 + 1) {}
  bool operator[](size_t slot) const { return words_[slot / 64] >> slot % 64 & 1; }
  void Flip(size_t slot) { words_[slot / 64] ^= uint64_t{1} << slot % 64; }

 private:
  std::vector<uint64_t> words_;
};

// The hashes of a part's ids, bucket by bucket.
struct Buckets {
  Buckets(std::span<const int64_t> ids, size_t n) : begin(n + 1), hashes(ids.size()) {
    const HashTable part{0, static_cast<int64_t>(n - 1)};
    for (const int64_t id : ids) ++begin[static_cast<size_t>(BucketOf(MixId(id), part)) + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<uint32_t> next(begin.begin(), begin.end() - 1);
    for (const int64_t id : ids) {
      const uint64_t h = MixId(id);
      hashes[next[static_cast<size_t>(BucketOf(h, part))]++] = h;
    }
  }

  size_t number() const { return begin.size() - 1; }
  size_t size(size_t bucket) const { return begin[bucket + 1] - begin[bucket]; }
  std::span<const uint64_t> of(size_t bucket) const { return {hashes.data() + begin[bucket], size(bucket)}; }

  // Largest first, then as they come.
  std::vector<uint32_t> Order() const {
    size_t largest = 0;
    for (size_t bucket = 0; bucket < number(); ++bucket) largest = std::max(largest, size(bucket));
    std::vector<uint32_t> next(largest + 2);
    for (size_t bucket = 0; bucket < number(); ++bucket) ++next[largest - size(bucket) + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    std::vector<uint32_t> order(number());
    for (size_t bucket = 0; bucket < number(); ++bucket) {
      order[next[largest - size(bucket)]++] = static_cast<uint32_t>(bucket);
    }
    return order;
  }

  std::vector<uint32_t> begin;
  std::vector<uint64_t> hashes;
};

// Takes a slot for each of the hashes, or none.
bool Take(std::span<const uint64_t> hashes, int64_t bucket, const HashPart& part, Taken* taken) {
  for (const uint64_t h : hashes) {
    if ((*taken)[static_cast<size_t>(RowOf(h, bucket, part))]) return false;
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    const size_t slot = static_cast<size_t>(RowOf(hashes[i], bucket, part));
    if ((*taken)[slot]) {
      while (i-- > 0) taken->Flip(static_cast<size_t>(RowOf(hashes[i], bucket, part)));
      return false;
    }
    taken->Flip(slot);
  }
  return true;
}

// The bucket of these hashes, with a pilot.
std::optional<int64_t> FindPilot(std::span<const uint64_t> hashes, int64_t number, const HashPart& part, Taken* taken) {
  // Of n ids in m slots none share one with a probability of about exp(-n^2 / 2m): with any of 2^16 pilots below 10^-6.
  const double n = static_cast<double>(hashes.size());
  if (n * n > 50 * 0x1p64 * part.scale) return std::nullopt;
  for (uint32_t pilot = 0; pilot <= std::numeric_limits<uint16_t>::max(); ++pilot) {
    const int64_t bucket = MakeBucket(static_cast<uint16_t>(pilot), number);
    if (Take(hashes, bucket, part, taken)) return bucket;
  }
  return std::nullopt;
}

// Nothing if one of them has no pilot.
std::optional<std::vector<int64_t>> FindPilots(const Buckets& buckets, int64_t number, uint32_t slots) {
  const HashPart part = HashPart::At(0, slots);
  Taken taken(slots);
  std::vector<int64_t> found(buckets.number());
  for (const uint32_t i : buckets.Order()) {
    const std::optional<int64_t> bucket = FindPilot(buckets.of(i), number, part, &taken);
    if (!bucket) return std::nullopt;
    found[i] = *bucket;
  }
  return found;
}

}  // namespace

size_t NumBuckets(size_t ids) { return std::bit_ceil((ids + kMostIdsPerBucket - 1) / kMostIdsPerBucket); }

BuiltPart BuildPart(std::span<const int64_t> ids, int64_t number, size_t num_buckets) {
  const double n = static_cast<double>(ids.size());
  const Buckets buckets(ids, num_buckets);
  const double most = std::min(n * kMostSlotsPerId + 1, 4294967295.0);
  // Twice as much more at each attempt.
  for (double more = 0; n / kLoad * (1 + more) <= most; more = more == 0 ? 0.02 : 2 * more) {
    const uint32_t slots = static_cast<uint32_t>(n / kLoad * (1 + more)) | 1;
    if (std::optional<std::vector<int64_t>> found = FindPilots(buckets, number, slots)) {
      return {slots, std::move(*found)};
    }
  }
  throw Error(ErrorCode::kInvalidArgument, "a perfect hash of " + std::to_string(ids.size()) + " ids takes more than " +
                                               std::to_string(static_cast<uint64_t>(most)) +
                                               " slots: too many of them are in one bucket");
}

}  // namespace damo
