#include "engine/store.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "base/status.h"
#include "engine/load.h"
#include "engine/scratch.h"

namespace damo {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kLeastRowStore = 24 * kMiB;
constexpr size_t kMostRowStore = 1024 * kMiB;
// Slots, groups, sorted ids and write-back copies of a batch, and the reserve of a snapshot.
constexpr size_t kLeastStaging = 16 * kMiB;
constexpr size_t kMostIdsPerRun = 16384;

// A lookup of single rows: a batch with one id in each bag. REQUIRES: `ids` outlives it.
class RowLookup {
 public:
  RowLookup(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen)
      : lengths_(ids.size(), 1),
        lookup_(Store::MakeLookup({{table, Pooling::kSum, unseen, 0, 0}},
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

BudgetShares DivideBudget(size_t memory_budget) {
  if (memory_budget < kLeastMemoryBudget) {
    throw Error(ErrorCode::kInvalidArgument, "memory_budget must be at least " + std::to_string(kLeastMemoryBudget) +
                                                 " bytes (\"" + std::to_string(kLeastMemoryBudget / kMiB) +
                                                 "MiB\"), got " + std::to_string(memory_budget));
  }
  const size_t row_store = std::min(kLeastRowStore + (memory_budget - kLeastMemoryBudget) / 8, kMostRowStore);
  const size_t outputs = memory_budget / 32;
  const size_t staging = kLeastStaging + (memory_budget - kLeastMemoryBudget) / 16;
  return {row_store, memory_budget - row_store - outputs - staging, outputs, staging / 4};
}

Store::Store(std::unique_ptr<RowStore> rows, const BudgetShares& shares, const StoreOptions& options)
    : options_(options),
      kernels_(SelectKernels(options.instruction_set)),
      process_(getpid()),
      rows_(std::move(rows)),
      journal_(rows_.get()),
      cache_({shares.cache, 0, options.cache_bytes}),
      threads_(options.num_threads, ThreadPool::Kind::kOpenMp),
      outputs_(std::make_shared<BufferPool>(shares.outputs)),
      reads_wait_(options.direct_io) {
  for (int i = 0; i < threads_.threads(); ++i) scratch_.push_back(std::make_unique<Scratch>());
  write_back_ = std::make_unique<WriteBack>(rows_.get(), &journal_, &cache_, &tables_, &mutex_, &progress_);
  snapshot_ = std::make_unique<Snapshot>(&journal_, &cache_, &tables_, &progress_, shares.reserve);
}

Store::~Store() { Close(); }

void Store::CheckProcess() const {
  if (getpid() == process_) return;
  throw Error(ErrorCode::kClosed, "the store belongs to process " + std::to_string(process_) +
                                      ", which opened it: a child process cannot use it after a fork");
}

Store::Lock Store::Acquire() {
  CheckProcess();
  std::unique_lock operation(operation_mutex_);
  if (closed_) throw Error(ErrorCode::kClosed, "the store is closed");
  return {std::move(operation), std::unique_lock(mutex_), {}};
}

void Store::CheckTable(const TableSchema& schema) {
  const Lock lock = Acquire();
  try {
    cache_.CheckRowSize(schema.layout());
  } catch (const Error& error) {
    throw Error(error.code(), "table \"" + schema.name + "\": " + error.what());
  }
}

uint16_t Store::OpenTable(const TableSchema& schema) {
  CheckTable(schema);
  Lock lock = Acquire();
  const uint16_t index = cache_.AddTable(schema.layout());
  cache_.SetIter(index, schema.iter);
  tables_.emplace_back(schema);
  MakeRoom(0, lock);
  cache_.ReleaseFreeSegments();
  return index;
}

void Store::SetOptimizer(uint16_t table, const OptimizerConfig& optimizer) {
  Lock lock = Acquire();
  tables_[table].schema.optimizer = optimizer;
}

uint32_t Store::iter(uint16_t table) {
  const Lock lock = Acquire();
  return tables_[table].schema.iter;
}

int64_t Store::rows(uint16_t table) {
  const Lock lock = Acquire();
  return tables_[table].schema.rows;
}

RowLayout Store::layout(uint16_t table) {
  const Lock lock = Acquire();
  return tables_[table].layout;
}

// Calls f(first, ids) for runs of ids whose rows fit into a part of the cache.
template <class F>
void Store::InRuns(uint16_t table, std::span<const int64_t> ids, F f) {
  size_t most;
  {
    const Lock lock = Acquire();
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
    Lock lock = Acquire();
    RaiseTrimError();
    Pool(lookup.get(), weights + first * dim, dim, lock);
    Trim(lock);
    write_back_->Wake();
  });
}

void Store::Contains(uint16_t table, std::span<const int64_t> ids, uint8_t* contains) {
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, UnseenRows::kZeros);
    Lock lock = Acquire();
    cache_.BeginOperation();
    ResolveAll(lookup.all(), lock);
    for (size_t i = 0; i < run.size(); ++i) contains[first + i] = lookup->slots[i] != kZeroSlot;
    Trim(lock);
  });
}

void Store::Set(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state) {
  const size_t dim = static_cast<size_t>(layout(table).dim);
  InRuns(table, ids, [&](size_t first, std::span<const int64_t> run) {
    const RowLookup lookup(table, run, UnseenRows::kInitial);
    Lock lock = Acquire();
    AwaitNoSnapshot(lock);
    if (options_.read_only)
      throw Error(ErrorCode::kInvalidArgument, "the store was opened read-only: rows cannot be set");
    cache_.BeginOperation();
    ResolveAll(lookup.all(), lock);
    Table& t = tables_[table];
    const float initial_state = InitialState(t.schema.optimizer);
    const size_t state_size = static_cast<size_t>(t.layout.state_size);
    for (size_t i = 0; i < run.size(); ++i) {
      char* row = cache_.Row(lookup->slots[i]);
      if (weights != nullptr) {
        EncodeWeights(t.layout.weight_type, t.layout.dim, weights + (first + i) * dim, row + kPayloadOffset);
      }
      if (state != nullptr) {
        std::copy_n(state + (first + i) * state_size, state_size, RowState(row, t.layout));
      } else {
        std::fill_n(RowState(row, t.layout), state_size, initial_state);
      }
      *CountersOf(row, t.layout) = {.last_step = t.schema.iter, .count = 0};
      t.schema.rows += RowFlags(row) & kAbsent ? 1 : 0;
      SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~kAbsent));
      cache_.MarkDirty(lookup->slots[i]);
    }
    Trim(lock);
    write_back_->Wake();
  });
}

void Store::Delete(uint16_t table, std::span<const int64_t> ids) {
  InRuns(table, ids, [&](size_t, std::span<const int64_t> run) {
    std::vector<int64_t> distinct(run.begin(), run.end());
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const RowLookup lookup(table, distinct, UnseenRows::kZeros);
    Lock lock = Acquire();
    AwaitNoSnapshot(lock);
    if (options_.read_only)
      throw Error(ErrorCode::kInvalidArgument, "the store was opened read-only: rows cannot be deleted");
    cache_.BeginOperation();
    ResolveAll(lookup.all(), lock);
    // A write that is under way would bring the row back.
    write_back_->WaitIdle(lock.data);
    Table& t = tables_[table];
    std::vector<RowWrite> writes;
    for (size_t i = 0; i < distinct.size(); ++i) {
      if (lookup->slots[i] != kZeroSlot) writes.push_back({t.schema.number, distinct[i], nullptr, 0, t.schema.iter});
    }
    if (writes.empty()) return;
    rows_->Write(writes);
    journal_.NoteWritten(writes);
    for (const RowWrite& write : writes) {
      const uint32_t tag = HashTag(table, write.id);
      cache_.Erase(tag, cache_.Find(tag, table, write.id));
    }
    t.schema.rows -= static_cast<int64_t>(writes.size());
  });
}

RowSnapshot Store::TakeSnapshot(std::span<const uint16_t> tables) {
  Lock lock = Acquire();
  AwaitNoSnapshot(lock);
  write_back_->WriteAll(lock.data);
  std::vector<RowSnapshot::Table> copies;
  std::vector<uint32_t> numbers;
  for (const uint16_t table : tables) {
    const TableSchema& schema = tables_[table].schema;
    copies.push_back({schema.name, schema.number, schema.layout(), {schema.iter, schema.rows}});
    numbers.push_back(schema.number);
  }
  auto open = std::make_shared<OpenSnapshot>(rows_->TakeSnapshot(numbers));
  std::erase_if(open_snapshots_, [](const std::weak_ptr<OpenSnapshot>& other) { return other.expired(); });
  open_snapshots_.push_back(open);
  return {std::move(copies), std::move(open)};
}

void Store::Flush() {
  Lock lock = Acquire();
  AwaitNoSnapshot(lock);
  write_back_->WriteAll(lock.data);
}

std::vector<TableState> Store::BeginCheckpoint() {
  Lock lock = Acquire();
  AwaitNoSnapshot(lock);
  write_back_->Hold(lock.data);
  snapshot_->Begin();
  std::vector<TableState> states;
  for (const Table& table : tables_) states.push_back({table.schema.iter, table.schema.rows});
  return states;
}

std::pair<std::vector<TableState>, bool> Store::Checkpoint(const std::string& path, bool link) {
  std::vector<TableState> states = BeginCheckpoint();
  const bool linked = WriteCheckpoint(path, link);
  return {std::move(states), linked};
}

bool Store::WriteCheckpoint(const std::string& path, bool link) {
  CheckProcess();
  std::unique_lock data(mutex_);
  if (closed_ && !snapshot_->active()) throw Error(ErrorCode::kClosed, "the store is closed");
  if (!snapshot_->active()) throw Error(ErrorCode::kInvalidArgument, "no checkpoint has begun");
  writes_checkpoint_ = true;
  const auto fail = [&] {
    if (!data.owns_lock()) data.lock();
    EndCheckpoint(false);
  };
  try {
    snapshot_->Write(data);
    data.unlock();
    const bool linked = rows_->Checkpoint(path, link);
    data.lock();
    EndCheckpoint(true);
    return linked;
  } catch (const Error& error) {
    fail();
    const std::string what = error.what();
    const bool named = what.find(path) != std::string::npos;
    throw named ? error : Error(error.code(), "checkpoint into " + path + ": " + what);
  } catch (...) {
    fail();
    throw;
  }
}

void Store::AbandonCheckpoint() {
  std::unique_lock data(mutex_);
  if (snapshot_->active() && !writes_checkpoint_) EndCheckpoint(false);
}

void Store::EndCheckpoint(bool complete) {
  writes_checkpoint_ = false;
  snapshot_->End(complete);
  write_back_->Release();
}

void Store::Close() {
  if (getpid() != process_) return;
  const std::lock_guard lock(operation_mutex_);
  if (closed_) return;
  closed_ = true;
  {
    std::unique_lock data(mutex_);
    progress_.wait(data, [&] { return !writes_checkpoint_; });
    if (snapshot_->active()) EndCheckpoint(false);
  }
  loader_.reset();
  write_back_.reset();
  for (const std::weak_ptr<OpenSnapshot>& open : open_snapshots_) {
    if (const std::shared_ptr<OpenSnapshot> snapshot = open.lock()) snapshot->Close();
  }
  rows_->Close();
}

TableStats Store::table_stats(uint16_t table) {
  Lock lock = Acquire();
  const Table& t = tables_[table];
  return {t.hits.load(), t.misses.load(), cache_.rows(table)};
}

RowStoreStats Store::row_store_stats() {
  Lock lock = Acquire();
  return rows_->Stats();
}

RowCounts Store::row_counts() {
  Lock lock = Acquire();
  return {rows_read_, write_back_->rows_written() + snapshot_->rows_written()};
}

size_t Store::cache_memory_bytes() {
  Lock lock = Acquire();
  return cache_.memory_bytes();
}

}  // namespace damo
