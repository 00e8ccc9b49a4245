// A batch with many ids as small ones, one after the other: what is kept for each id while a call finds its row is then
// kept for few of them at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/batch.h"

namespace damo {

// A run of one feature's bags, or a part of one bag.
struct Window {
  Lookup* lookup;    // of these bags alone, in one column; `part` is set for a part of a bag
  size_t feature;    // of the whole
  size_t first_bag;  // of the feature
  size_t first_id;   // of the whole batch
};

// Calls f(window) for windows of at most `most_ids` ids and bags, in their order, until one returns false. Returns
// whether none has. REQUIRES: most_ids > 0.
template <class F>
bool ForEachWindow(const Lookup& whole, size_t feature, size_t most_ids, F f) DAMO_REQUIRES(store_mutex) {
  const Feature& of = whole.features[feature];
  const int64_t* offsets = whole.bag_offsets(of);
  const size_t bags = whole.bags(of);
  const Feature alone{of.table, of.pooling, of.unseen, 0, 0, of.use, of.mean};
  const auto call = [&](size_t bag, const int64_t* lengths, size_t n, size_t first_id, size_t ids,
                        BagPart* part) DAMO_REQUIRES(store_mutex) {
    const float* weights = whole.batch.weights;
    const std::unique_ptr<Lookup> lookup = MakeLookup(
        {alone}, {whole.batch.ids + first_id, lengths, weights == nullptr ? nullptr : weights + first_id, ids, 1, n});
    lookup->part = part;
    return f(Window{lookup.get(), feature, bag, first_id});
  };
  for (size_t bag = 0; bag < bags;) {
    const size_t first_id = static_cast<size_t>(offsets[bag]);
    const int64_t* limit = offsets + std::min(bags, bag + most_ids);
    const int64_t most = offsets[bag] + static_cast<int64_t>(most_ids);
    const size_t end = static_cast<size_t>(std::upper_bound(offsets + bag + 1, limit + 1, most) - offsets) - 1;
    if (end > bag) {
      const size_t ids = static_cast<size_t>(offsets[end] - offsets[bag]);
      if (!call(bag, whole.batch.lengths + whole.first_bag[of.key] + bag, end - bag, first_id, ids, nullptr)) {
        return false;
      }
      bag = end;
      continue;
    }
    BagPart part;
    const size_t last_id = static_cast<size_t>(offsets[bag + 1]);
    for (size_t id = first_id; id < last_id; id += most_ids) {
      const int64_t ids = static_cast<int64_t>(std::min(most_ids, last_id - id));
      part.first = id == first_id;
      part.last = id + most_ids >= last_id;
      if (!call(bag, &ids, 1, id, static_cast<size_t>(ids), &part)) return false;
    }
    ++bag;
  }
  return true;
}

}  // namespace damo
