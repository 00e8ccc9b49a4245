// A store's rows by their ids.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/row_copies.h"
#include "engine/store.h"

namespace damo {
namespace {

constexpr size_t kMostIdsPerRun = 16384;

// A lookup of single rows: a batch with one id in each bag. REQUIRES: `ids` outlives it.
class RowLookup {
 public:
  RowLookup(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen = UnseenRows::kInitial, MeanRow mean = {})
      : lengths_(ids.size(), 1),
        lookup_(MakeLookup({{table, Pooling::kSum, unseen, 0, 0, LookupUse::kById, std::move(mean)}},
                           {ids.data(), lengths_.data(), nullptr, ids.size(), 1, ids.size()})),
        pointer_(lookup_.get()) {}

  Lookup* get() const { return pointer_; }
  Lookup* operator->() const { return pointer_; }
  std::span<Lookup* const> all() const { return {&pointer_, 1}; }

 private:
  std::vector<int64_t> lengths_;
  std::unique_ptr<Lookup> lookup_;
  Lookup* pointer_;
};

std::vector<int64_t> DistinctOf(std::span<const int64_t> ids) {
  std::vector<int64_t> distinct(ids.begin(), ids.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  return distinct;
}

// Takes a row, or what was seen of its id, out of the life of its table. REQUIRES: it is not dead; the table has a
// life.
void ForgetRow(Table* table, char* row) {
  const RowHeader header = *HeaderOf(row, table->layout);
  if (!(RowFlags(row) & kAbsent)) {
    table->life->Remove(header, RowId(row));
  } else if (header.count > 0 && !table->life->ladder().IsDeadSighting(header)) {
    table->life->RemoveSighting(header);
  }
}

}  // namespace

// Calls f(first, ids) for runs of ids whose rows fit into a part of the cache. Between two the table may be dropped.
template <class F>
void Store::InRuns(uint16_t table, std::span<const int64_t> ids, F f) {
  size_t most;
  {
    const Call call(this);
    TableAt(table);
    most = std::clamp<size_t>(cache_.row_capacity_bytes() / 4 / cache_.stride(table), 1, kMostIdsPerRun);
  }
  for (size_t first = 0; first < ids.size(); first += most) {
    f(first, ids.subspan(first, std::min(most, ids.size() - first)));
  }
}

void Store::Get(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen, float* weights, MeanRow mean) {
  const size_t dim = static_cast<size_t>(layout(table).dim);
  if (unseen == UnseenRows::kMean && mean == nullptr) mean = Mean(table);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, unseen, mean);
    const Call call(this);
    CheckMean(table, mean);
    room_.RaiseTrimError();
    finder_.Pool(lookup.get(), weights + first * dim, dim);
    room_.Trim();
    write_back_.Wake();
  });
}

MeanRow Store::KnownMean(uint16_t table) {
  const Call call(this);
  const Table& t = TableAt(table);
  return t.mean_of == t.version() ? t.mean : nullptr;
}

MeanRow Store::Mean(uint16_t table) {
  if (MeanRow known = KnownMean(table)) return known;
  RowsVersion version;
  {
    const Call call(this);
    version = TableAt(table).version();
  }
  // Of what changes from here on, the mean may know or not: it counts as that of the rows before.
  const RowSnapshot snapshot = TakeSnapshot({&table, 1});
  auto mean = std::make_shared<const std::vector<float>>(snapshot.Mean(0));
  const Call call(this);
  Table& t = TableAt(table);
  t.mean = mean;
  t.mean_of = version;
  return mean;
}

// Of features that read a mean, and were given none.
void Store::FindMeans(Lookup* lookup) {
  for (Feature& feature : lookup->features) {
    if (feature.unseen == UnseenRows::kMean && feature.mean == nullptr) feature.mean = Mean(feature.table);
  }
}

void Store::Contains(uint16_t table, std::span<const int64_t> ids, uint8_t* contains) {
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run);
    const Call call(this);
    TableAt(table);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    for (size_t i = 0; i < run.size(); ++i) contains[first + i] = !IsAbsent(lookup->slots[i]);
    room_.Trim();
  });
}

// Throws kInvalidArgument if the ids, those without a row made rows, are more than the table may have.
void Store::CheckMostRows(uint16_t table, std::span<const int64_t> ids) {
  uint64_t most, rows;
  {
    const Call call(this);
    const Table& t = TableAt(table);
    if (t.life == nullptr) return;
    most = t.life->options().max_rows;
    rows = t.life->rows();
  }
  if (most == kNoLimit || rows + ids.size() <= most) return;
  const std::vector<int64_t> distinct = DistinctOf(ids);
  std::vector<uint8_t> contains(distinct.size());
  Contains(table, distinct, contains.data());
  const auto fresh = static_cast<uint64_t>(std::count(contains.begin(), contains.end(), 0));
  if (rows + fresh <= most) return;
  const Call call(this);
  throw Error(ErrorCode::kInvalidArgument, "table \"" + TableAt(table).schema.name + "\" has " + std::to_string(rows) +
                                               " rows and may have " + std::to_string(most) +
                                               " (max_rows): " + std::to_string(fresh) + " more were to be set");
}

// Whoever follows the table's changes may have rows of these ids that a ladder lets live for longer than what they are
// set to: updates count, and a row that is set begins anew. They are told of a deletion.
void Store::RecordReplaced(uint16_t table, std::span<const Slot> slots) {
  const Table& t = TableAt(table);
  std::vector<RowWrite> replaced;
  for (Slot slot : slots) {
    char* row = cache_.Row(slot);
    if (RowFlags(row) & kAbsent || HeaderOf(row, t.layout)->count == 0) continue;
    replaced.push_back({t.schema.number, RowId(row), nullptr, 0, t.schema.iter});
  }
  if (replaced.empty()) return;
  RowCopies::SortByKey(&replaced);
  const auto same = [](const RowWrite& a, const RowWrite& b) { return a.id == b.id; };
  replaced.erase(std::unique(replaced.begin(), replaced.end(), same), replaced.end());
  write_back_.WaitIdle();
  store_->Write(replaced);
  journal_.NoteWritten(replaced);
  // Whatever comes next, the rows are nowhere else now.
  for (const RowWrite& write : replaced) cache_.MarkDirty(cache_.Find(HashTag(table, write.id), table, write.id));
}

void Store::Set(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state) {
  CheckMostRows(table, ids);
  SetRows(table, ids, weights, state, nullptr);
}

void Store::SetCopies(uint16_t table, std::span<const int64_t> ids, const float* weights, const RowHeader* headers) {
  {
    const Call call(this);
    const Table& t = TableAt(table);
    if (t.life != nullptr) {
      throw Error(ErrorCode::kInvalidArgument, "table \"" + t.schema.name + "\" has a life of its own: it cannot get " +
                                                   "another store's rows before it follows that store's ladder");
    }
  }
  SetRows(table, ids, weights, nullptr, headers);
}

// With headers as given, or those of rows that were set now.
void Store::SetRows(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state,
                    const RowHeader* headers) {
  const size_t dim = static_cast<size_t>(layout(table).dim);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run);
    const Call call(this);
    capture_.AwaitEnd();
    RequireWritable("set");
    const RowLayout& layout = TableAt(table).layout;
    const size_t state_size = static_cast<size_t>(layout.state_size);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    if (disk_.IsFull()) RequireRows(lookup->slots);
    if (TableAt(table).life != nullptr) RecordReplaced(table, lookup->slots);
    ++tables_[table].writes;
    for (size_t i = 0; i < run.size(); ++i) {
      SetRow(lookup->slots[i], weights == nullptr ? nullptr : weights + (first + i) * dim,
             state == nullptr ? nullptr : state + (first + i) * state_size);
      if (headers != nullptr) *HeaderOf(cache_.Row(lookup->slots[i]), layout) = headers[first + i];
    }
    room_.Trim();
    write_back_.Wake();
  });
}

void Store::SetRow(Slot slot, const float* weights, const float* state) {
  char* row = cache_.Row(slot);
  Table& t = tables_[RowTable(row)];
  if (t.life == nullptr) {
    t.schema.rows += IsAbsent(slot) ? 1 : 0;
  } else {
    t.life->Add({t.schema.iter, 0}, RowId(row));  // which may throw: then nothing has changed
    t.life->CountCreated(IsAbsent(slot) ? 1 : 0);
    ForgetRow(&t, row);
    t.schema.rows = static_cast<int64_t>(t.life->rows());
  }
  if (weights != nullptr) EncodeWeights(t.layout.weight_type, t.layout.dim, weights, row + kPayloadOffset);
  const size_t state_size = static_cast<size_t>(t.layout.state_size);
  if (state != nullptr) {
    std::copy_n(state, state_size, RowState(row, t.layout));
  } else {
    std::fill_n(RowState(row, t.layout), state_size, InitialState(t.schema.optimizer));
  }
  *HeaderOf(row, t.layout) = {.last_step = t.schema.iter, .count = 0};
  t.bounds.Add(kernels_.row_bounds(t.layout, row + kPayloadOffset));
  SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~kAbsent));
  cache_.MarkDirty(slot);
}

void Store::SetState(uint16_t table, std::span<const int64_t> ids, const float* state) {
  const size_t state_size = static_cast<size_t>(layout(table).state_size);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run);
    const Call call(this);
    capture_.AwaitEnd();
    RequireWritable("set");
    Table& t = TableAt(table);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    const auto absent = std::find_if(lookup->slots.begin(), lookup->slots.end(),
                                     [&](Slot slot) DAMO_REQUIRES(store_mutex) { return IsAbsent(slot); });
    if (absent != lookup->slots.end()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "table \"" + t.schema.name + "\": id " +
                      std::to_string(run[static_cast<size_t>(absent - lookup->slots.begin())]) +
                      " has no row whose state could be set");
    }
    for (size_t i = 0; i < run.size(); ++i) {
      char* row = cache_.Row(lookup->slots[i]);
      std::copy_n(state + (first + i) * state_size, state_size, RowState(row, t.layout));
      t.bounds.Add(kernels_.row_bounds(t.layout, row + kPayloadOffset));
      cache_.MarkDirty(lookup->slots[i]);
    }
    room_.Trim();
    write_back_.Wake();
  });
}

void Store::Describe(uint16_t table, std::span<const int64_t> ids, float* state, RowHeader* headers,
                     uint8_t* contains) {
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run);
    const Call call(this);
    const Table& t = TableAt(table);
    const RowLayout& layout = t.layout;
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    const size_t state_size = static_cast<size_t>(layout.state_size);
    for (size_t i = 0; i < run.size(); ++i) {
      char* row = cache_.Row(lookup->slots[i]);
      if (state != nullptr) std::copy_n(RowState(row, layout), state_size, state + (first + i) * state_size);
      const bool is_row = !(RowFlags(row) & kAbsent);
      const RowHeader header = *HeaderOf(row, layout);
      const bool forgotten = !is_row && t.life != nullptr && t.life->ladder().IsDeadSighting(header);
      if (headers != nullptr) headers[first + i] = forgotten ? RowHeader{} : header;
      if (contains != nullptr) contains[first + i] = is_row;
    }
    room_.Trim();
  });
}

void Store::InitialWeights(uint16_t table, std::span<const int64_t> ids, float* weights) {
  const Call call(this);
  const Table& t = TableAt(table);
  for (size_t i = 0; i < ids.size(); ++i) {
    kernels_.draw_row(t.schema.initializer, ids[i], t.layout.dim, weights + i * static_cast<size_t>(t.layout.dim));
  }
}

void Store::AddRows(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state,
                    const RowHeader* headers) {
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("added");
  disk_.RequireRoom();
  Table& t = TableAt(table);
  const RowLayout& layout = t.layout;
  const size_t size = layout.payload_size(), dim = static_cast<size_t>(layout.dim);
  const size_t state_size = static_cast<size_t>(layout.state_size);
  std::vector<char> payloads(ids.size() * size);
  std::vector<RowWrite> writes;
  for (size_t i = 0; i < ids.size(); ++i) {
    char* payload = payloads.data() + i * size;
    EncodeWeights(layout.weight_type, layout.dim, weights + i * dim, payload);
    std::copy_n(reinterpret_cast<const char*>(state + i * state_size), sizeof(float) * state_size,
                payload + layout.weight_bytes());
    std::copy_n(reinterpret_cast<const char*>(headers + i), sizeof(RowHeader), payload + size - sizeof(RowHeader));
    writes.push_back({t.schema.number, ids[i], payload, size, 0});
  }
  journal_.Clear();
  store_->Write(writes);
  ++t.writes;
  if (t.life == nullptr) t.schema.rows += static_cast<int64_t>(ids.size());  // else they are in it already
}

void Store::AddSightings(uint16_t table, std::span<const int64_t> ids, const RowHeader* headers) {
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("added");
  disk_.RequireRoom();
  Table& t = TableAt(table);
  std::vector<RowWrite> writes;
  for (size_t i = 0; i < ids.size(); ++i) {
    writes.push_back({t.schema.number, ids[i], reinterpret_cast<const char*>(headers + i), sizeof(RowHeader), 0});
    writes.back().sighting = true;
  }
  journal_.Clear();
  store_->Write(writes);
  ++t.writes;
}

void Store::Delete(uint16_t table, std::span<const int64_t> ids) {
  InRuns(table, ids, [&](size_t, std::span<const int64_t> run) {
    const std::vector<int64_t> distinct = DistinctOf(run);
    const RowLookup lookup(table, distinct);
    const Call call(this);
    capture_.AwaitEnd();
    RequireWritable("deleted");
    Table& t = TableAt(table);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    // A write that is under way would bring the row back.
    write_back_.WaitIdle();
    std::vector<RowWrite> writes;
    int64_t rows = 0;
    for (Slot slot : lookup->slots) {
      char* row = cache_.Row(slot);
      const bool is_row = !(RowFlags(row) & kAbsent);
      if (!is_row && HeaderOf(row, t.layout)->count == 0) continue;
      writes.push_back({t.schema.number, RowId(row), nullptr, 0, t.schema.iter});
      writes.back().recorded = is_row;
      rows += is_row ? 1 : 0;
    }
    if (writes.empty()) return;
    store_->Write(writes);
    ++t.writes;
    journal_.NoteWritten(writes);
    for (const RowWrite& write : writes) {
      const uint32_t tag = HashTag(table, write.id);
      const Slot slot = cache_.Find(tag, table, write.id);
      if (t.life != nullptr) ForgetRow(&t, cache_.Row(slot));
      cache_.Erase(tag, slot);
    }
    t.schema.rows -= rows;
  });
}

std::vector<int64_t> Store::Erase(uint16_t table, std::span<const int64_t> ids) {
  Delete(table, ids);
  const std::vector<int64_t> distinct = DistinctOf(ids);
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("erased");
  const uint32_t number = TableAt(table).schema.number;
  write_back_.WaitIdle();
  journal_.Clear();
  return store_->EraseDeleted(number, distinct);
}

}  // namespace damo
