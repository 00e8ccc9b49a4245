#include "serving_parts.h"

#include <numeric>

namespace damo {

ServingParts::ServingParts(Records records, int64_t first_part, size_t parts, int64_t num_parts)
    : records_(std::move(records)), begin_(parts + 1), order_(records_.size()) {
  const auto part_of = [&](size_t record) {
    return static_cast<size_t>(PartOf(MixId(records_.id(record)), 0, num_parts) - first_part);
  };
  for (size_t i = 0; i < records_.size(); ++i) ++begin_[part_of(i) + 1];
  std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
  std::vector<uint32_t> next(begin_.begin(), begin_.end() - 1);
  for (size_t i = 0; i < records_.size(); ++i) order_[next[part_of(i)]++] = static_cast<uint32_t>(i);
}

PlacedPart ServingParts::Place(size_t part) const {
  const std::span<const uint32_t> members(order_.data() + begin_[part], begin_[part + 1] - begin_[part]);
  std::vector<int64_t> ids(members.size());
  for (size_t i = 0; i < members.size(); ++i) ids[i] = records_.id(members[i]);
  PlacedPart placed{BuildPart(ids), {}};
  placed.records.assign(placed.hash.slots, PlacedPart::kNone);
  const HashPart alone{0, static_cast<int64_t>(placed.hash.pilots.size()), 0, placed.hash.slots};
  for (size_t i = 0; i < members.size(); ++i) {
    placed.records[static_cast<size_t>(PerfectHashRow(ids[i], 0, 1, &alone, placed.hash.pilots.data()))] = members[i];
  }
  return placed;
}

}  // namespace damo
