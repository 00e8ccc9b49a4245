#include "engine/lookup.h"

#include <algorithm>
#include <utility>

namespace damo {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kIdsPerCount = size_t{1} << 19;

// Tells rows of a table that are there from those that only seem to be.
class Census {
 public:
  explicit Census(const Table& table) : layout_(table.layout), ladder_(table.ladder()) {}

  bool IsDead(char* row) const {
    if (ladder_ == nullptr || RowFlags(row) & (kAbsent | kLoading)) return false;
    const RowHeader header = *HeaderOf(row, layout_);
    return header.last_step < ladder_->highest() && ladder_->IsDead(header, RowId(row));
  }

  // Of the rows that a unit has found.
  size_t CountDead(const RowCache& cache, const Unit& unit) const {
    size_t dead = 0;
    if (ladder_ == nullptr || ladder_->highest() == 0) return 0;
    for (size_t i = 0; i < unit.num_ids(); ++i) {
      const Slot slot = unit.slots()[i];
      dead += slot != kMissingSlot && IsDead(cache.Row(slot)) ? 1 : 0;
    }
    return dead;
  }

 private:
  const RowLayout& layout_;
  const Ladder* const ladder_;
};

void Count(const RowCache& cache, Slot slot, Unit* unit) {
  if (slot == kMissingSlot) {
    ++unit->missing;
  } else {
    unit->loading += RowFlags(cache.Row(slot)) & kLoading ? 1 : 0;
  }
}

}  // namespace

RowFinder::RowFinder(CachedTables* rows, const Compute& compute, Loader* loader, RoomMaker* room, Capture* capture,
                     size_t work_bytes)
    : rows_(rows),
      tables_(rows->tables),
      cache_(rows->cache),
      compute_(compute),
      loader_(loader),
      room_(room),
      capture_(capture),
      most_slots_(work_bytes / 4 / sizeof(Slot)),
      most_ids_per_window_(work_bytes / 128) {}

void RowFinder::Peek(std::span<Unit> units) {
  compute_.threads->ParallelFor(units.size(),
                                [&](size_t u, int) DAMO_REQUIRES(store_mutex) { Resolve</*kUse=*/false>(&units[u]); });
}

void RowFinder::Pool(Lookup* lookup, float* out, size_t stride) {
  lookup->epoch = 0;  // until it is over
  cache_.BeginOperation();
  if (KeepsSlots(*lookup)) {
    lookup->slots.resize(lookup->num_slots);
    PoolAtOnce(lookup, out, stride);
    lookup->epoch = cache_.epoch();
    return;
  }
  const std::vector<Place> places = PlacesOf(*lookup, tables_, stride);
  for (size_t f = 0; f < places.size(); ++f) {
    InWindows(*lookup, f, [&](const Window& window) DAMO_REQUIRES(store_mutex) {
      PoolAtOnce(window.lookup, out + places[f].offset + window.first_bag * places[f].stride, places[f].stride);
      return true;
    });
  }
}

void RowFinder::PoolAtOnce(Lookup* lookup, float* out, size_t stride) {
  // Room for what this batch will probably load is made before slots are handed out, while no row has to stay.
  room_->MakeSpareRoom(std::min(forecast_.expected(), cache_.row_capacity_bytes() / 4));
  std::vector<Unit> units = MakeUnits(lookup);
  const std::vector<Place> places = PlacesOf(*lookup, tables_, stride);
  const auto pool = [&](const Unit& unit) DAMO_REQUIRES(store_mutex) {
    const Place& place = places[static_cast<size_t>(unit.feature - lookup->features.data())];
    PoolArgs bags = BagsOf(unit, *rows_);
    bags.out = out + place.offset + unit.bag_begin * place.stride;
    bags.out_stride = place.stride;
    compute_.kernels->pool(bags);
  };
  compute_.threads->ParallelFor(units.size(), [&](size_t u, int) DAMO_REQUIRES(store_mutex) {
    Resolve<true>(&units[u]);
    if (units[u].complete()) pool(units[u]);
  });
  for (const Unit& unit : units) {
    Table& table = tables_[unit.feature->table];
    LookupCounts& counts = table.lookups[static_cast<size_t>(unit.feature->use)];
    counts.hits += unit.num_ids() - unit.missing - unit.awaited;
    counts.prefetched += unit.awaited;
    counts.late += unit.loading;
    counts.misses += unit.missing;
  }
  LoadWaiting(&units, pool);
}

void RowFinder::ResolveAll(std::span<Lookup* const> lookups) {
  std::vector<Unit> units;
  for (Lookup* lookup : lookups) {
    lookup->slots.resize(lookup->num_slots);
    for (const Unit& unit : MakeUnits(lookup)) units.push_back(unit);
  }
  compute_.threads->ParallelFor(units.size(), [&](size_t u, int) DAMO_REQUIRES(store_mutex) { Revalidate(&units[u]); });
  for (Lookup* lookup : lookups) lookup->epoch = 0;  // of use only if what follows succeeds
  LoadWaiting(&units, [](const Unit&) {});
  for (Lookup* lookup : lookups) lookup->epoch = cache_.epoch();
}

void RowFinder::PinAll(std::span<Lookup* const> lookups) {
  try {
    for (const Lookup* lookup : lookups) {
      for (size_t f = 0; f < lookup->features.size(); ++f) {
        InWindows(*lookup, f, [&](const Window& window) DAMO_REQUIRES(store_mutex) {
          ResolveAll({&window.lookup, 1});
          for (Slot slot : window.lookup->slots) cache_.PinRow(slot);
          return true;
        });
      }
    }
  } catch (const NoRoom&) {
    room_->Refuse(BytesOfRows(lookups));
  }
}

// What the distinct rows of `lookups` take in the cache, counted for some of them at a time.
size_t RowFinder::BytesOfRows(std::span<Lookup* const> lookups) const {
  size_t bytes = 0;
  for (uint16_t table = 0; table < tables_.size(); ++table) {
    size_t ids_of_table = 0;
    const auto for_each = [&](auto f) {
      for (const Lookup* lookup : lookups) {
        for (const Feature& feature : lookup->features) {
          if (feature.table == table) f(lookup->batch.ids + lookup->bag_offsets(feature)[0], lookup->ids_of(feature));
        }
      }
    };
    for_each([&](const int64_t*, size_t n) { ids_of_table += n; });
    const size_t counts = ids_of_table / kIdsPerCount + 1;
    for (size_t count = 0; count < counts; ++count) {
      std::vector<int64_t> distinct;
      size_t full = kIdsPerCount;
      const auto keep_distinct = [&] {
        std::sort(distinct.begin(), distinct.end());
        distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      };
      for_each([&](const int64_t* ids, size_t n) {
        for (size_t i = 0; i < n; ++i) {
          if (HashTag(table, ids[i]) % counts != count) continue;
          distinct.push_back(ids[i]);
          if (distinct.size() < full) continue;
          keep_distinct();
          full = std::max(full, 2 * distinct.size());
        }
      });
      keep_distinct();
      bytes += distinct.size() * cache_.stride(table);
    }
  }
  return bytes;
}

// Finds the slots of a unit's ids and counts those that are missing or on their way; with kUse, notes a use of each row
// and fetches it from memory. Works in blocks: all index entries of a block are on their way before the first is read,
// then all rows.
template <bool kUse>
void RowFinder::Resolve(Unit* unit) {
  constexpr size_t kBlock = 64;
  const RowCache& cache = cache_;
  const uint16_t table = unit->feature->table;
  const size_t fetched_bytes = kUse ? cache.layout(table).row_size() : 1;
  const size_t n = unit->num_ids();
  const int64_t* ids = unit->ids();
  Slot* slots = unit->slots();
  unit->missing = unit->loading = unit->awaited = unit->dead = 0;
  uint32_t tags[kBlock];
  for (size_t begin = 0; begin < n; begin += kBlock, ids += kBlock, slots += kBlock) {
    const size_t m = std::min(kBlock, n - begin);
    for (size_t i = 0; i < m; ++i) {
      tags[i] = HashTag(table, ids[i]);
      cache.PrefetchIndex(tags[i]);
    }
    for (size_t i = 0; i < m; ++i) {
      slots[i] = cache.Guess(tags[i]);
      if (slots[i] == kMissingSlot) continue;
      for (size_t offset = 0; offset < fetched_bytes; offset += kLine) __builtin_prefetch(cache.Row(slots[i]) + offset);
    }
    for (size_t i = 0; i < m; ++i) {
      if (slots[i] != kMissingSlot) {
        const char* row = cache.Row(slots[i]);
        if (RowId(row) != ids[i] || RowTable(row) != table) slots[i] = cache.Find(tags[i], table, ids[i]);
      }
      Count(cache, slots[i], unit);
      if (kUse && slots[i] != kMissingSlot) {
        const bool first_use = cache.Touch(slots[i]);
        unit->awaited += first_use || (RowFlags(cache.Row(slots[i])) & kLoading) ? 1 : 0;
      }
    }
  }
  // Whether a row lives stands at its end, which is on its way by now.
  if (kUse) unit->dead = Census(tables_[table]).CountDead(cache, *unit);
}

// Resolve for slots found earlier: looks up again only what may have moved since.
void RowFinder::Revalidate(Unit* unit) {
  const uint64_t epoch = unit->lookup->epoch;
  if (epoch == 0 || cache_.ErasedSince(epoch)) return Resolve<true>(unit);
  const uint16_t table = unit->feature->table;
  Slot* slots = unit->slots();
  for (size_t i = 0; i < unit->num_ids(); ++i) {
    if (slots[i] != kMissingSlot && cache_.StillThere(slots[i], epoch)) continue;
    slots[i] = cache_.Find(HashTag(table, unit->ids()[i]), table, unit->ids()[i]);
    Count(cache_, slots[i], unit);
  }
  unit->dead = Census(tables_[table]).CountDead(cache_, *unit);
}

// Makes rows that are dead absent where they are. What is dirty stays so: the RowStore may have an older version that
// the ladder lets live, since a row that is set begins its count anew.
void RowFinder::Bury(std::span<Unit* const> units) {
  std::vector<Slot> dead;
  for (const Unit* unit : units) {
    if (unit->dead == 0) continue;
    const Census census(tables_[unit->feature->table]);
    for (size_t i = 0; i < unit->num_ids(); ++i) {
      const Slot slot = unit->slots()[i];
      if (slot != kMissingSlot && census.IsDead(cache_.Row(slot))) dead.push_back(slot);
    }
  }
  if (dead.empty()) return;
  std::sort(dead.begin(), dead.end());
  dead.erase(std::unique(dead.begin(), dead.end()), dead.end());
  if (capture_->keeps()) {
    size_t bytes = 0;
    for (const Slot slot : dead) bytes += tables_[RowTable(cache_.Row(slot))].layout.payload_size() + sizeof(RowWrite);
    capture_->AwaitRoom(bytes);
    capture_->Keep(dead);
  }
  for (const Slot slot : dead) {
    char* row = cache_.Row(slot);
    const Table& table = tables_[RowTable(row)];
    table.DrawPayload(compute_.kernels->draw_row, RowId(row), InitialState(table.schema.optimizer), row);
    SetRowFlags(row, RowFlags(row) | kAbsent);
  }
}

// Finds the rows of a resolved unit that were missing or, had their load failed, are missing now.
void RowFinder::ResolveMissing(Unit* unit) {
  const RowCache& cache = cache_;
  const uint16_t table = unit->feature->table;
  const size_t n = unit->num_ids();
  const int64_t* ids = unit->ids();
  Slot* slots = unit->slots();
  const auto here = [&](Slot slot) DAMO_REQUIRES(store_mutex) {
    return slot != kMissingSlot && !(RowFlags(cache.Row(slot)) & kDead);
  };
  unit->missing = unit->loading = 0;
  for (size_t i = 0; i < n; ++i) {
    if (slots[i] == kMissingSlot) cache.PrefetchIndex(HashTag(table, ids[i]));
  }
  for (size_t i = 0; i < n; ++i) {
    if (here(slots[i])) continue;
    slots[i] = cache.Find(HashTag(table, ids[i]), table, ids[i]);
    Count(cache, slots[i], unit);
    if (slots[i] != kMissingSlot) cache.Touch(slots[i]);
  }
  unit->dead = Census(tables_[table]).CountDead(cache, *unit);
}

// Has what `units` miss loaded, and waits for what a prefetch is about to bring. Slots that `units` already have stay
// valid, unless that prefetch fails: then its rows are missing again.
void RowFinder::LoadMissing(std::span<const Unit> units) {
  std::vector<LoadRun> runs = loader_->Missing(units);
  const size_t bytes = loader_->BytesOf(runs);
  room_->MakeRoomAround(units, bytes);
  forecast_.Note(bytes);
  if (!runs.empty()) loader_->Load(std::move(runs));
  loader_->AwaitLoading(units);
}

// Loads what resolved units miss, buries what is dead, and calls use(unit) for each of these units. Slots of all units
// are valid at once when it returns.
template <class F>
void RowFinder::LoadWaiting(std::vector<Unit>* units, F use) {
  std::vector<Unit*> waiting;
  for (Unit& unit : *units) {
    if (!unit.complete()) waiting.push_back(&unit);
  }
  if (waiting.empty()) forecast_.Note(0);
  while (!waiting.empty()) {
    Bury(waiting);
    LoadMissing(*units);
    compute_.threads->ParallelFor(waiting.size(), [&](size_t u, int) DAMO_REQUIRES(store_mutex) {
      ResolveMissing(waiting[u]);
      if (waiting[u]->complete()) use(*waiting[u]);
    });
    std::erase_if(waiting, [](const Unit* unit) { return unit->complete(); });
  }
}

}  // namespace damo
