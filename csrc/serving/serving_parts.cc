#include "serving/serving_parts.h"

#include <numeric>

namespace damo {

ServingParts::ServingParts(Records records, const TableParts& table, size_t first, size_t n, int64_t number)
    : records_(std::move(records)), table_(table), number_(number), begin_(n + 1), order_(records_.size()) {
  const auto part_of = [&](size_t record) { return table.Of(records_.id(record)) - first; };
  for (size_t i = 0; i < records_.size(); ++i) ++begin_[part_of(i) + 1];
  std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
  std::vector<uint32_t> next(begin_.begin(), begin_.end() - 1);
  for (size_t i = 0; i < records_.size(); ++i) order_[next[part_of(i)]++] = static_cast<uint32_t>(i);
}

PlacedPart ServingParts::Place(size_t part) const {
  const std::span<const uint32_t> members(order_.data() + begin_[part], begin_[part + 1] - begin_[part]);
  std::vector<int64_t> ids(members.size());
  for (size_t i = 0; i < members.size(); ++i) ids[i] = records_.id(members[i]);
  PlacedPart placed{BuildPart(ids, number_ + static_cast<int64_t>(part), table_.buckets), {}};
  placed.records.assign(placed.hash.slots, PlacedPart::kNone);
  const HashPart slots = HashPart::At(0, placed.hash.slots);
  const HashTable buckets{0, static_cast<int64_t>(table_.buckets - 1)};
  for (size_t i = 0; i < members.size(); ++i) {
    const uint64_t h = MixId(ids[i]);
    const int64_t bucket = placed.hash.buckets[static_cast<size_t>(BucketOf(h, buckets))];
    placed.records[static_cast<size_t>(RowOf(h, bucket, slots))] = members[i];
  }
  return placed;
}

}  // namespace damo
