// Finding rows: from the ids of a batch to slots in the cache, loading from the RowStore what is not there.

#include <algorithm>
#include <string>

#include "status.h"
#include "store.h"

namespace damo {
namespace {

constexpr size_t kIdsPerUnit = 256;
constexpr size_t kBagsPerUnit = 4096;
constexpr size_t kIdsPerRead = 128;
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
  lookup->offsets.resize(batch.keys * batch.batch + 1);
  uint64_t total = 0;
  for (size_t i = 0; i < batch.keys * batch.batch; ++i) {
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
    const size_t bags = lookup->batch.batch;
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

// Finds the slots of a unit's ids and counts those that are missing. Works in blocks: all index entries of a block are
// on their way before the first is read, then all rows.
void Store::Resolve(Unit* unit) {
  constexpr size_t kBlock = 64;
  const uint16_t table = unit->feature->table;
  const size_t row_bytes = cache_.layout(table).row_size();
  const size_t n = unit->num_ids();
  const int64_t* ids = unit->ids();
  Slot* slots = unit->slots();
  unit->missing = 0;
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
      for (size_t offset = 0; offset < row_bytes; offset += kLine) __builtin_prefetch(cache_.Row(slots[i]) + offset);
    }
    for (size_t i = 0; i < m; ++i) {
      if (slots[i] != kMissingSlot) {
        const char* row = cache_.Row(slots[i]);
        if (RowId(row) != ids[i] || RowTable(row) != table) slots[i] = cache_.Find(tags[i], table, ids[i]);
      }
      if (slots[i] == kMissingSlot) {
        ++unit->missing;
      } else {
        cache_.Touch(slots[i]);
      }
    }
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

PoolArgs Store::BagsOf(const Unit& unit, float* out, size_t stride) const {
  const Lookup& lookup = *unit.lookup;
  const int64_t* offsets = lookup.bag_offsets(*unit.feature) + unit.bag_begin;
  return {cache_.arena(),
          unit.slots(),
          offsets,
          lookup.batch.weights == nullptr ? nullptr : lookup.batch.weights + offsets[0],
          unit.bag_end - unit.bag_begin,
          tables_[unit.feature->table].layout.dim,
          unit.feature->pooling,
          out == nullptr ? nullptr : out + unit.bag_begin * stride + unit.feature->column,
          stride};
}

void Store::Forward(Lookup* lookup, float* out, size_t stride) {
  Lock lock = Acquire();
  RaiseTrimError();
  cache_.BeginOperation();
  // Room for what this batch will probably load is made before slots are handed out, while no row has to stay.
  MakeRoom(std::min(expected_load_bytes_, cache_.row_capacity_bytes() / 4), lock);
  std::vector<Unit> units = MakeUnits(lookup);
  const auto pool = [&](const Unit& unit) {
    ReadAbsentAsZeros(unit);
    kernels_.pool(BagsOf(unit, out, stride));
  };
  threads_.ParallelFor(units.size(), [&](size_t u, int) {
    Resolve(&units[u]);
    if (units[u].missing == 0) pool(units[u]);
  });
  std::vector<Unit> waiting;
  for (const Unit& unit : units) {
    Table& table = tables_[unit.feature->table];
    table.hits += unit.num_ids() - unit.missing;
    table.misses += unit.missing;
    if (unit.missing > 0) waiting.push_back(unit);
  }
  if (waiting.empty()) {
    expected_load_bytes_ -= expected_load_bytes_ / 8;
  } else {
    LoadMissing(units, lock);
    threads_.ParallelFor(waiting.size(), [&](size_t u, int) {
      Resolve(&waiting[u]);
      pool(waiting[u]);
    });
  }
  lookup->epoch = cache_.epoch();
  Trim(lock);
  write_back_->Wake();
}

// Finds, and loads where needed, the rows of every id of `lookups`, so that all slots are valid at once.
void Store::ResolveAll(std::span<Lookup* const> lookups, Lock& lock) {
  std::vector<Unit> units;
  for (Lookup* lookup : lookups) {
    for (const Unit& unit : MakeUnits(lookup)) units.push_back(unit);
  }
  threads_.ParallelFor(units.size(), [&](size_t u, int) { Resolve(&units[u]); });
  if (std::any_of(units.begin(), units.end(), [](const Unit& unit) { return unit.missing > 0; })) {
    LoadMissing(units, lock);
    threads_.ParallelFor(units.size(), [&](size_t u, int) {
      if (units[u].missing > 0) Resolve(&units[u]);
    });
  }
  for (const Unit& unit : units) ReadAbsentAsZeros(unit);
  for (Lookup* lookup : lookups) lookup->epoch = cache_.epoch();
}

// Brings the rows that `units` miss into the cache: from the RowStore, or with their initial values and flagged absent.
// Slots that `units` already have stay valid. Nothing is in the index before all of it has been read.
void Store::LoadMissing(std::span<const Unit> units, Lock& lock) {
  std::vector<std::vector<int64_t>> ids_by_table(tables_.size());
  for (const Unit& unit : units) {
    if (unit.missing == 0) continue;
    const Slot* slots = unit.slots();
    const int64_t* ids = unit.ids();
    for (size_t i = 0; i < unit.num_ids(); ++i) {
      if (slots[i] == kMissingSlot) ids_by_table[unit.feature->table].push_back(ids[i]);
    }
  }
  threads_.ParallelFor(ids_by_table.size(), [&](size_t t, int) {
    std::vector<int64_t>& ids = ids_by_table[t];
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  });
  size_t bytes = 0;
  for (size_t t = 0; t < ids_by_table.size(); ++t) {
    bytes += ids_by_table[t].size() * cache_.stride(static_cast<uint16_t>(t));
  }
  MakeRoomAround(units, bytes, lock);
  expected_load_bytes_ = std::max(bytes + bytes / 8, expected_load_bytes_ - expected_load_bytes_ / 8);

  struct Read {
    uint16_t table;
    std::span<const int64_t> ids;
    size_t first;  // of `slots` and `payloads`
  };
  std::vector<Read> reads;
  std::vector<Slot> slots;
  std::vector<char*> payloads;
  size_t rows = 0;
  for (const std::vector<int64_t>& ids : ids_by_table) rows += ids.size();
  reads.reserve(rows / kIdsPerRead + ids_by_table.size());
  slots.reserve(rows);
  payloads.reserve(rows);
  for (size_t t = 0; t < ids_by_table.size(); ++t) {
    const uint16_t table = static_cast<uint16_t>(t);
    const std::span<const int64_t> ids = ids_by_table[t];
    for (size_t begin = 0; begin < ids.size(); begin += kIdsPerRead) {
      reads.push_back({table, ids.subspan(begin, std::min(kIdsPerRead, ids.size() - begin)), slots.size() + begin});
    }
    for (int64_t id : ids) {
      slots.push_back(cache_.Allocate(table, id, HashTag(table, id)));
      payloads.push_back(cache_.Row(slots.back()) + kPayloadOffset);
    }
  }
  try {
    threads_.ParallelFor(reads.size(), [&](size_t r, int) {
      const Read& read = reads[r];
      const Table& table = tables_[read.table];
      uint8_t found[kIdsPerRead];
      try {
        rows_->MultiGet(table.schema.number, read.ids, table.layout.payload_size(), payloads.data() + read.first,
                        found);
      } catch (const Error& error) {
        throw Error(error.code(), "table \"" + table.schema.name + "\": " + error.what());
      }
      for (size_t i = 0; i < read.ids.size(); ++i) {
        char* row = cache_.Row(slots[read.first + i]);
        if (found[i]) {
          SetRowFlags(row, 0);
        } else {
          table.DrawPayload(kernels_.draw_row, read.ids[i], row);
        }
      }
    });
  } catch (...) {
    for (Slot slot : slots) cache_.Discard(slot);
    throw;
  }
  for (Slot slot : slots) cache_.Insert(HashTag(RowTable(cache_.Row(slot)), RowId(cache_.Row(slot))), slot);
}

}  // namespace damo
