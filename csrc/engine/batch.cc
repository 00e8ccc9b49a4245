#include "engine/batch.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/status.h"

namespace damo {
namespace {

constexpr size_t kIdsPerUnit = 256;
constexpr size_t kBagsPerUnit = 4096;
constexpr size_t kMostBags = size_t{1} << 40;

}  // namespace

std::unique_ptr<Lookup> MakeLookup(std::vector<Feature> features, const JaggedBatch& batch) {
  auto lookup = std::make_unique<Lookup>();
  lookup->features = std::move(features);
  lookup->batch = batch;
  lookup->first_bag.assign(1, 0);
  for (size_t key = 0; key < batch.keys; ++key) {
    if (batch.bags != nullptr && batch.bags[key] < 0) {
      throw Error(ErrorCode::kInvalidArgument, "key " + std::to_string(key) + " has " +
                                                   std::to_string(batch.bags[key]) + " bags: it must not be negative");
    }
    if (batch.bags_of(key) > kMostBags - lookup->first_bag.back()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "one call takes at most " + std::to_string(kMostBags) + " bags over all keys");
    }
    lookup->first_bag.push_back(lookup->first_bag.back() + batch.bags_of(key));
  }
  const size_t bags = lookup->first_bag.back();
  lookup->offsets.resize(bags + 1);
  uint64_t total = 0;
  for (size_t i = 0; i < bags; ++i) {
    lookup->offsets[i] = static_cast<int64_t>(total);
    if (batch.lengths[i] < 0 || static_cast<uint64_t>(batch.lengths[i]) > batch.num_ids - total) {
      throw Error(ErrorCode::kInvalidArgument,
                  batch.lengths[i] < 0 ? "lengths must not be negative, got " + std::to_string(batch.lengths[i]) +
                                             " at position " + std::to_string(i)
                                       : "lengths must sum to the number of values, " + std::to_string(batch.num_ids) +
                                             ", but exceed it at position " + std::to_string(i));
    }
    total += static_cast<uint64_t>(batch.lengths[i]);
  }
  lookup->offsets.back() = static_cast<int64_t>(total);
  if (total != batch.num_ids) {
    throw Error(ErrorCode::kInvalidArgument, "lengths must sum to the number of values, " +
                                                 std::to_string(batch.num_ids) + ", got " + std::to_string(total));
  }
  for (const Feature& feature : lookup->features) {
    lookup->first_slot.push_back(lookup->num_slots);
    lookup->num_slots += lookup->ids_of(feature);
  }
  if (lookup->num_slots > UINT32_MAX) {
    throw Error(ErrorCode::kInvalidArgument,
                "one call takes at most 4294967295 ids over all features, got " + std::to_string(lookup->num_slots));
  }
  return lookup;
}

std::vector<Unit> MakeUnits(Lookup* lookup) {
  std::vector<Unit> units;
  for (const Feature& feature : lookup->features) {
    const int64_t* offsets = lookup->bag_offsets(feature);
    const size_t bags = lookup->bags(feature);
    for (size_t begin = 0; begin < bags;) {
      const int64_t* limit = offsets + std::min(bags, begin + kBagsPerUnit);
      const int64_t* end = std::upper_bound(offsets + begin + 1, limit, offsets[begin] + int64_t{kIdsPerUnit});
      const size_t next = static_cast<size_t>(end - offsets);
      units.push_back({lookup, &feature, begin, next, 0});
      begin = next;
    }
  }
  return units;
}

PoolArgs BagsOf(const Unit& unit, const CachedTables& rows) {
  const Lookup& lookup = *unit.lookup;
  const RowLayout& layout = rows.tables[unit.feature->table].layout;
  const int64_t* offsets = unit.offsets() + unit.bag_begin;
  return {rows.cache.arena(),
          unit.slots(),
          offsets,
          lookup.batch.weights == nullptr ? nullptr : lookup.batch.weights + offsets[0],
          unit.bag_end - unit.bag_begin,
          layout.dim,
          unit.feature->pooling,
          nullptr,
          0,
          layout.weight_type,
          lookup.part,
          unit.feature->unseen,
          unit.feature->mean == nullptr ? nullptr : unit.feature->mean->data()};
}

std::vector<Place> PlacesOf(const Lookup& lookup, const Tables& tables, size_t stride) {
  std::vector<Place> places;
  size_t end = 0;
  for (const Feature& feature : lookup.features) {
    const size_t dim = static_cast<size_t>(tables[feature.table].layout.dim);
    const size_t bags = lookup.bags(feature);
    // Without bags there may be no memory to be at a place of.
    places.push_back(bags == 0                      ? Place{0, dim}
                     : lookup.batch.bags == nullptr ? Place{feature.column, stride}
                                                    : Place{end, dim});
    end += bags * dim;
  }
  return places;
}

}  // namespace damo
