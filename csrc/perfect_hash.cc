#include "perfect_hash.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <string>

#include "status.h"

namespace damo {
namespace {

// With more of either, pilots take longer to find, until the last buckets have none.
constexpr double kLoad = 0.99;  // ids for each slot
constexpr double kIdsPerBucket = 4;
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
    const HashPart part{0, static_cast<int64_t>(n), 0, 1};
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
bool Take(std::span<const uint64_t> hashes, uint16_t pilot, const HashPart& part, Taken* taken) {
  for (const uint64_t h : hashes) {
    if ((*taken)[static_cast<size_t>(RowOf(h, pilot, part))]) return false;
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    const size_t slot = static_cast<size_t>(RowOf(hashes[i], pilot, part));
    if ((*taken)[slot]) {
      while (i-- > 0) taken->Flip(static_cast<size_t>(RowOf(hashes[i], pilot, part)));
      return false;
    }
    taken->Flip(slot);
  }
  return true;
}

std::optional<uint16_t> FindPilot(std::span<const uint64_t> hashes, const HashPart& part, Taken* taken) {
  // Of n ids in m slots none share one with a probability of about exp(-n^2 / 2m): with any of 2^16 pilots below 10^-6.
  const double n = static_cast<double>(hashes.size());
  if (n * n > 50.0 * static_cast<double>(part.rows)) return std::nullopt;
  for (uint32_t pilot = 0; pilot <= std::numeric_limits<uint16_t>::max(); ++pilot) {
    if (Take(hashes, static_cast<uint16_t>(pilot), part, taken)) return static_cast<uint16_t>(pilot);
  }
  return std::nullopt;
}

// By bucket; nothing if there is none for one of them.
std::optional<std::vector<uint16_t>> FindPilots(const Buckets& buckets, uint32_t slots) {
  const HashPart part{0, static_cast<int64_t>(buckets.number()), 0, slots};
  Taken taken(slots);
  std::vector<uint16_t> pilots(buckets.number());
  for (const uint32_t bucket : buckets.Order()) {
    const std::optional<uint16_t> pilot = FindPilot(buckets.of(bucket), part, &taken);
    if (!pilot) return std::nullopt;
    pilots[bucket] = *pilot;
  }
  return pilots;
}

}  // namespace

BuiltPart BuildPart(std::span<const int64_t> ids) {
  const double n = static_cast<double>(ids.size());
  const Buckets buckets(ids, std::max<size_t>(static_cast<size_t>(n / kIdsPerBucket + 1), 1));
  const double most = std::min(n * kMostSlotsPerId + 1, 4294967295.0);
  // Twice as much more at each attempt.
  for (double more = 0; n / kLoad * (1 + more) <= most; more = more == 0 ? 0.02 : 2 * more) {
    const uint32_t slots = std::max<uint32_t>(static_cast<uint32_t>(n / kLoad * (1 + more)), 1);
    if (std::optional<std::vector<uint16_t>> pilots = FindPilots(buckets, slots)) return {slots, std::move(*pilots)};
  }
  throw Error(ErrorCode::kInvalidArgument, "a perfect hash of " + std::to_string(ids.size()) + " ids takes more than " +
                                               std::to_string(static_cast<uint64_t>(most)) +
                                               " slots: too many of them are in one bucket");
}

}  // namespace damo
