// What a call looks up: the ids of a batch, the features that pool them, and where their rows were found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/counted_memory.h"
#include "engine/cached_tables.h"
#include "kernels/kernels.h"
#include "row/row.h"

namespace damo {

// The jagged arrays of a batch: `keys` features with `batch` bags each, or with a number of their own. Borrowed;
// REQUIRES: unchanged while a Lookup over them is in use.
struct JaggedBatch {
  const int64_t* ids;      // [num_ids], by key, then bag
  const int64_t* lengths;  // by key, then bag
  const float* weights;    // [num_ids] or nullptr
  size_t num_ids;
  size_t keys;
  size_t batch;
  const int64_t* bags = nullptr;  // [keys], or nullptr: `batch` each

  size_t bags_of(size_t key) const { return bags == nullptr ? batch : static_cast<size_t>(bags[key]); }
};

// One output of a collection: the bags of key `key` of the batch, pooled from `table`. `unseen` is what ids without a
// row read as; for kMean, `mean` is that row, or null for the table's own at the time of the call. Where all keys have
// as many bags, outputs are columns [column, column + dim) of one matrix; otherwise each is a (bags, dim) matrix, one
// behind the other.
struct Feature {
  uint16_t table;
  Pooling pooling;
  UnseenRows unseen;
  size_t key;
  size_t column;
  LookupUse use = LookupUse::kTraining;
  MeanRow mean = nullptr;
};

// What a forward leaves for its backward.
struct Lookup {
  std::vector<Feature> features;
  JaggedBatch batch;
  std::vector<size_t> first_bag;   // [keys + 1]
  std::vector<int64_t> offsets;    // by bag, and one more
  std::vector<size_t> first_slot;  // by feature: where its ids' slots begin
  size_t num_slots = 0;            // one for each id of each feature
  std::vector<Slot> slots;         // hints, found in the cache's `epoch`; empty before the first, or if there are many
  uint64_t epoch = 0;              // 0 before the first
  BagPart* part = nullptr;         // where this is a part of a bag
  CountedMemory memory{};          // what the above takes, once it is some store's

  size_t memory_bytes() const { return offsets.size() * sizeof(offsets[0]) + slots.size() * sizeof(Slot); }
  size_t bags(const Feature& f) const { return first_bag[f.key + 1] - first_bag[f.key]; }
  const int64_t* bag_offsets(const Feature& f) const { return offsets.data() + first_bag[f.key]; }
  size_t ids_of(const Feature& f) const { return static_cast<size_t>(bag_offsets(f)[bags(f)] - bag_offsets(f)[0]); }
};

// Validates a batch and prepares its Lookup, without slots. Throws kInvalidArgument.
std::unique_ptr<Lookup> MakeLookup(std::vector<Feature> features, const JaggedBatch& batch);

// A run of one feature's bags, small enough that its rows stay in the processor's cache from lookup to pooling.
struct Unit {
  Lookup* lookup;
  const Feature* feature;
  size_t bag_begin;
  size_t bag_end;
  size_t missing = 0;  // ids whose row is not in the cache
  size_t loading = 0;  // and whose row is on its way there
  size_t awaited = 0;  // whose row is there, or on its way, for a prefetch
  size_t dead = 0;     // whose row is there, but no longer lives

  bool complete() const { return missing == 0 && loading == 0 && dead == 0; }
  const int64_t* ids() const { return lookup->batch.ids + offsets()[bag_begin]; }
  Slot* slots() const {
    const size_t first = lookup->first_slot[static_cast<size_t>(feature - lookup->features.data())];
    return lookup->slots.data() + first + (offsets()[bag_begin] - offsets()[0]);
  }
  size_t num_ids() const { return static_cast<size_t>(offsets()[bag_end] - offsets()[bag_begin]); }
  const int64_t* offsets() const { return lookup->bag_offsets(*feature); }
};
std::vector<Unit> MakeUnits(Lookup* lookup);

// The unit's bags as the kernels take them, without an output.
PoolArgs BagsOf(const Unit& unit, const CachedTables& rows) DAMO_REQUIRES(store_mutex);

// Where in an output or its gradient a feature's first bag is, in floats, and how far it is to the next.
struct Place {
  size_t offset;
  size_t stride;
};
// By feature. `stride`: floats from one sample to the next, where the output is one matrix.
std::vector<Place> PlacesOf(const Lookup& lookup, const Tables& tables, size_t stride);

}  // namespace damo
