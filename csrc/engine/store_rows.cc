// A store's rows by their ids.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/store.h"

namespace damo {
namespace {

constexpr size_t kMostIdsPerRun = 16384;

// A lookup of single rows: a batch with one id in each bag. REQUIRES: `ids` outlives it.
class RowLookup {
 public:
  RowLookup(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen)
      : lengths_(ids.size(), 1),
        lookup_(MakeLookup({{table, Pooling::kSum, unseen, 0, 0, LookupUse::kById}},
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

void Store::Get(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen, float* weights) {
  const size_t dim = static_cast<size_t>(layout(table).dim);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, unseen);
    const Call call(this);
    TableAt(table);
    room_.RaiseTrimError();
    finder_.Pool(lookup.get(), weights + first * dim, dim);
    room_.Trim();
    write_back_.Wake();
  });
}

void Store::Contains(uint16_t table, std::span<const int64_t> ids, uint8_t* contains) {
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, UnseenRows::kZeros);
    const Call call(this);
    TableAt(table);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    for (size_t i = 0; i < run.size(); ++i) contains[first + i] = lookup->slots[i] != kZeroSlot;
    room_.Trim();
  });
}

void Store::Set(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state) {
  const size_t dim = static_cast<size_t>(layout(table).dim);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, UnseenRows::kInitial);
    const Call call(this);
    capture_.AwaitEnd();
    RequireWritable("set");
    const size_t state_size = static_cast<size_t>(TableAt(table).layout.state_size);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    for (size_t i = 0; i < run.size(); ++i) {
      SetRow(lookup->slots[i], weights == nullptr ? nullptr : weights + (first + i) * dim,
             state == nullptr ? nullptr : state + (first + i) * state_size);
    }
    room_.Trim();
    write_back_.Wake();
  });
}

void Store::SetRow(Slot slot, const float* weights, const float* state) {
  char* row = cache_.Row(slot);
  Table& t = tables_[RowTable(row)];
  if (weights != nullptr) EncodeWeights(t.layout.weight_type, t.layout.dim, weights, row + kPayloadOffset);
  const size_t state_size = static_cast<size_t>(t.layout.state_size);
  if (state != nullptr) {
    std::copy_n(state, state_size, RowState(row, t.layout));
  } else {
    std::fill_n(RowState(row, t.layout), state_size, InitialState(t.schema.optimizer));
  }
  *HeaderOf(row, t.layout) = {.last_step = t.schema.iter, .count = 0};
  t.bounds.Add(kernels_.row_bounds(t.layout, row + kPayloadOffset));
  t.schema.rows += RowFlags(row) & kAbsent ? 1 : 0;
  SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~kAbsent));
  cache_.MarkDirty(slot);
}

void Store::SetState(uint16_t table, std::span<const int64_t> ids, const float* state) {
  const size_t state_size = static_cast<size_t>(layout(table).state_size);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, UnseenRows::kZeros);
    const Call call(this);
    capture_.AwaitEnd();
    RequireWritable("set");
    Table& t = TableAt(table);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    const auto absent = std::find(lookup->slots.begin(), lookup->slots.end(), kZeroSlot);
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
    const RowLookup lookup(table, run, UnseenRows::kInitial);
    const Call call(this);
    const RowLayout& layout = TableAt(table).layout;
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    const size_t state_size = static_cast<size_t>(layout.state_size);
    for (size_t i = 0; i < run.size(); ++i) {
      char* row = cache_.Row(lookup->slots[i]);
      if (state != nullptr) std::copy_n(RowState(row, layout), state_size, state + (first + i) * state_size);
      if (headers != nullptr) headers[first + i] = *HeaderOf(row, layout);
      if (contains != nullptr) contains[first + i] = !(RowFlags(row) & kAbsent);
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
  t.schema.rows += static_cast<int64_t>(ids.size());
}

void Store::Delete(uint16_t table, std::span<const int64_t> ids) {
  InRuns(table, ids, [&](size_t, std::span<const int64_t> run) {
    std::vector<int64_t> distinct(run.begin(), run.end());
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const RowLookup lookup(table, distinct, UnseenRows::kZeros);
    const Call call(this);
    capture_.AwaitEnd();
    RequireWritable("deleted");
    Table& t = TableAt(table);
    cache_.BeginOperation();
    finder_.ResolveAll(lookup.all());
    // A write that is under way would bring the row back.
    write_back_.WaitIdle();
    std::vector<RowWrite> writes;
    for (size_t i = 0; i < distinct.size(); ++i) {
      if (lookup->slots[i] != kZeroSlot) writes.push_back({t.schema.number, distinct[i], nullptr, 0, t.schema.iter});
    }
    if (writes.empty()) return;
    store_->Write(writes);
    journal_.NoteWritten(writes);
    for (const RowWrite& write : writes) {
      const uint32_t tag = HashTag(table, write.id);
      cache_.Erase(tag, cache_.Find(tag, table, write.id));
    }
    t.schema.rows -= static_cast<int64_t>(writes.size());
  });
}

std::vector<int64_t> Store::Erase(uint16_t table, std::span<const int64_t> ids) {
  Delete(table, ids);
  std::vector<int64_t> distinct(ids.begin(), ids.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("erased");
  const uint32_t number = TableAt(table).schema.number;
  write_back_.WaitIdle();
  journal_.Clear();
  return store_->EraseDeleted(number, distinct);
}

}  // namespace damo
