// Finding rows: from the ids of a batch to slots in the cache, loading from the RowStore what is not there.

#include <algorithm>
#include <string>

#include "base/status.h"
#include "engine/store.h"

namespace damo {
namespace {

constexpr size_t kIdsPerUnit = 256;
constexpr size_t kBagsPerUnit = 4096;
constexpr size_t kLine = 64;

}  // namespace

const int64_t* Store::Unit::ids() const { return lookup->batch.ids + lookup->bag_offsets(*feature)[bag_begin]; }

size_t Store::Unit::num_ids() const {
  const int64_t* offsets = lookup->bag_offsets(*feature);
  return static_cast<size_t>(offsets[bag_end] - offsets[bag_begin]);
}

Slot* Store::Unit::slots() const {
  const int64_t* offsets = lookup->bag_offsets(*feature);
  const size_t first = lookup->first_slot[static_cast<size_t>(feature - lookup->features.data())];
  return lookup->slots.data() + first + (offsets[bag_begin] - offsets[0]);
}

std::unique_ptr<Lookup> Store::MakeLookup(std::vector<Feature> features, const JaggedBatch& batch) {
  auto lookup = std::make_unique<Lookup>();
  lookup->features = std::move(features);
  lookup->batch = batch;
  lookup->first_bag.assign(1, 0);
  for (size_t key = 0; key < batch.keys; ++key) {
    if (batch.bags != nullptr && batch.bags[key] < 0) {
      throw Error(ErrorCode::kInvalidArgument, "key " + std::to_string(key) + " has " +
                                                   std::to_string(batch.bags[key]) + " bags: it must not be negative");
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
  size_t slots = 0;
  for (const Feature& feature : lookup->features) {
    lookup->first_slot.push_back(slots);
    slots += lookup->ids_of(feature);
  }
  if (slots > UINT32_MAX) {
    throw Error(ErrorCode::kInvalidArgument,
                "one call takes at most 4294967295 ids over all features, got " + std::to_string(slots));
  }
  lookup->slots.resize(slots);
  return lookup;
}

std::vector<Store::Unit> Store::MakeUnits(Lookup* lookup) {
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

// Finds the slots of a unit's ids and counts those that are missing or on their way; with kUse, notes a use of each row
// and fetches it from memory. Works in blocks: all index entries of a block are on their way before the first is read,
// then all rows.
template <bool kUse>
void Store::Resolve(Unit* unit) {
  constexpr size_t kBlock = 64;
  const uint16_t table = unit->feature->table;
  const size_t fetched_bytes = kUse ? cache_.layout(table).row_size() : 1;
  const size_t n = unit->num_ids();
  const int64_t* ids = unit->ids();
  Slot* slots = unit->slots();
  unit->missing = unit->loading = 0;
  uint32_t tags[kBlock];
  for (size_t begin = 0; begin < n; begin += kBlock, ids += kBlock, slots += kBlock) {
    const size_t m = std::min(kBlock, n - begin);
    for (size_t i = 0; i < m; ++i) {
      tags[i] = HashTag(table, ids[i]);
      cache_.PrefetchIndex(tags[i]);
    }
    for (size_t i = 0; i < m; ++i) {
      slots[i] = cache_.Guess(tags[i]);
      if (slots[i] == kMissingSlot) continue;
      for (size_t offset = 0; offset < fetched_bytes; offset += kLine)
        __builtin_prefetch(cache_.Row(slots[i]) + offset);
    }
    for (size_t i = 0; i < m; ++i) {
      if (slots[i] != kMissingSlot) {
        const char* row = cache_.Row(slots[i]);
        if (RowId(row) != ids[i] || RowTable(row) != table) slots[i] = cache_.Find(tags[i], table, ids[i]);
      }
      Count(slots[i], unit);
      if (kUse && slots[i] != kMissingSlot) cache_.Touch(slots[i]);
    }
  }
}
template void Store::Resolve<false>(Unit*);

void Store::Count(Slot slot, Unit* unit) const {
  if (slot == kMissingSlot) {
    ++unit->missing;
  } else {
    unit->loading += RowFlags(cache_.Row(slot)) & kLoading ? 1 : 0;
  }
}

// Resolve for slots found earlier: looks up again only what may have moved since.
void Store::Revalidate(Unit* unit) {
  const uint64_t epoch = unit->lookup->epoch;
  if (epoch == 0 || cache_.ErasedSince(epoch)) return Resolve<true>(unit);
  const uint16_t table = unit->feature->table;
  Slot* slots = unit->slots();
  for (size_t i = 0; i < unit->num_ids(); ++i) {
    if (slots[i] != kMissingSlot && slots[i] != kZeroSlot && cache_.StillThere(slots[i], epoch)) continue;
    slots[i] = cache_.Find(HashTag(table, unit->ids()[i]), table, unit->ids()[i]);
    Count(slots[i], unit);
  }
}

// Where the feature wants zeros for unseen ids.
void Store::ReadAbsentAsZeros(const Unit& unit) {
  if (unit.feature->unseen != UnseenRows::kZeros) return;
  Slot* slots = unit.slots();
  for (size_t i = 0; i < unit.num_ids(); ++i) {
    if (slots[i] != kZeroSlot && (RowFlags(cache_.Row(slots[i])) & kAbsent)) slots[i] = kZeroSlot;
  }
}

std::vector<Store::Place> Store::PlacesOf(const Lookup& lookup, size_t stride) const {
  std::vector<Place> places;
  size_t end = 0;
  for (const Feature& feature : lookup.features) {
    const size_t dim = static_cast<size_t>(tables_[feature.table].layout.dim);
    places.push_back(lookup.batch.bags == nullptr ? Place{feature.column, stride} : Place{end, dim});
    end += lookup.bags(feature) * dim;
  }
  return places;
}

// Without an output.
PoolArgs Store::BagsOf(const Unit& unit) const {
  const Lookup& lookup = *unit.lookup;
  const int64_t* offsets = lookup.bag_offsets(*unit.feature) + unit.bag_begin;
  return {cache_.arena(),
          unit.slots(),
          offsets,
          lookup.batch.weights == nullptr ? nullptr : lookup.batch.weights + offsets[0],
          unit.bag_end - unit.bag_begin,
          tables_[unit.feature->table].layout.dim,
          unit.feature->pooling,
          nullptr,
          0,
          tables_[unit.feature->table].layout.weight_type};
}

// Finds the rows of a resolved unit that were missing or, had their load failed, are missing now.
// REQUIRES: none of its slots is kZeroSlot.
void Store::ResolveMissing(Unit* unit) {
  const uint16_t table = unit->feature->table;
  const size_t n = unit->num_ids();
  const int64_t* ids = unit->ids();
  Slot* slots = unit->slots();
  const auto here = [&](Slot slot) { return slot != kMissingSlot && !(RowFlags(cache_.Row(slot)) & kDead); };
  unit->missing = unit->loading = 0;
  for (size_t i = 0; i < n; ++i) {
    if (slots[i] == kMissingSlot) cache_.PrefetchIndex(HashTag(table, ids[i]));
  }
  for (size_t i = 0; i < n; ++i) {
    if (here(slots[i])) continue;
    slots[i] = cache_.Find(HashTag(table, ids[i]), table, ids[i]);
    Count(slots[i], unit);
    if (slots[i] != kMissingSlot) cache_.Touch(slots[i]);
  }
}

// Loads what resolved units miss and calls use(unit) for each of these units. Slots of all units are valid at once when
// it returns.
template <class F>
void Store::LoadWaiting(std::vector<Unit>* units, Lock& lock, F use) {
  std::vector<Unit*> waiting;
  for (Unit& unit : *units) {
    if (!unit.complete()) waiting.push_back(&unit);
  }
  if (waiting.empty()) forward_load_.Note(0);
  while (!waiting.empty()) {
    LoadMissing(*units, lock);
    threads_.ParallelFor(waiting.size(), [&](size_t u, int) {
      ResolveMissing(waiting[u]);
      if (waiting[u]->complete()) use(*waiting[u]);
    });
    std::erase_if(waiting, [](const Unit* unit) { return unit->complete(); });
  }
}

void Store::Forward(Lookup* lookup, float* out, size_t stride) {
  Lock lock = Acquire();
  RaiseTrimError();
  Pool(lookup, out, stride, lock);
  EndAwaiting(*lookup);
  Trim(lock);
  write_back_->Wake();
}

void Store::Pool(Lookup* lookup, float* out, size_t stride, Lock& lock) {
  lookup->epoch = 0;  // until it is over
  cache_.BeginOperation();
  // Room for what this batch will probably load is made before slots are handed out, while no row has to stay.
  MakeSpareRoom(std::min(forward_load_.expected(), cache_.row_capacity_bytes() / 4), lock);
  std::vector<Unit> units = MakeUnits(lookup);
  const std::vector<Place> places = PlacesOf(*lookup, stride);
  const auto pool = [&](const Unit& unit) {
    ReadAbsentAsZeros(unit);
    const Place& place = places[static_cast<size_t>(unit.feature - lookup->features.data())];
    PoolArgs bags = BagsOf(unit);
    bags.out = out + place.offset + unit.bag_begin * place.stride;
    bags.out_stride = place.stride;
    kernels_.pool(bags);
  };
  threads_.ParallelFor(units.size(), [&](size_t u, int) {
    Resolve<true>(&units[u]);
    if (units[u].complete()) pool(units[u]);
  });
  for (const Unit& unit : units) {
    Table& table = tables_[unit.feature->table];
    table.hits += unit.num_ids() - unit.missing;
    table.misses += unit.missing;
  }
  LoadWaiting(&units, lock, pool);
  lookup->epoch = cache_.epoch();
}

// Finds, and loads where needed, the rows of every id of `lookups`, so that all slots are valid at once.
void Store::ResolveAll(std::span<Lookup* const> lookups, Lock& lock) {
  std::vector<Unit> units;
  for (Lookup* lookup : lookups) {
    for (const Unit& unit : MakeUnits(lookup)) units.push_back(unit);
  }
  const auto use = [&](const Unit& unit) { ReadAbsentAsZeros(unit); };
  threads_.ParallelFor(units.size(), [&](size_t u, int) {
    Revalidate(&units[u]);
    if (units[u].complete()) use(units[u]);
  });
  for (Lookup* lookup : lookups) lookup->epoch = 0;  // of use only if what follows succeeds
  LoadWaiting(&units, lock, use);
  for (Lookup* lookup : lookups) lookup->epoch = cache_.epoch();
}

}  // namespace damo
