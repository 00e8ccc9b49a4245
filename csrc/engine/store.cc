#include "engine/store.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "base/status.h"
#include "base/thread.h"
#include "engine/weight_gradient.h"

namespace damo {

Store::Store(std::unique_ptr<RowStore> store, const BudgetShares& shares, const StoreOptions& options)
    : options_(options),
      kernels_(SelectKernels(options.instruction_set)),
      process_(getpid()),
      store_(std::move(store)),
      disk_(options.disk_budget, options.directory, store_.get()),
      journal_(store_.get(), &disk_),
      rows_({shares.cache, 0, options.cache_bytes}),
      threads_(options.num_threads, ThreadPool::Kind::kOpenMp),
      outputs_(std::make_shared<BufferPool>(shares.outputs)),
      awaited_(&rows_),
      write_back_(store_.get(), &journal_, &rows_),
      capture_(&journal_, &rows_, shares.reserve),
      room_(&rows_, &write_back_, &capture_, &awaited_, options.memory_budget),
      loader_(&rows_, store_.get(), {&kernels_, &threads_}, options.direct_io),
      finder_(&rows_, {&kernels_, &threads_}, &loader_, &room_, &capture_, shares.work),
      profiler_(options_, &rows_, &threads_),
      prefetcher_(&rows_, &finder_, &room_, &loader_, &awaited_),
      updater_(&rows_, {&kernels_, &threads_}, &finder_, &capture_, shares.work) {}

Store::~Store() { Close(); }

void Store::CheckProcess() const {
  if (getpid() == process_) return;
  throw Error(ErrorCode::kClosed, "the store belongs to process " + std::to_string(process_) +
                                      ", which opened it: a child process cannot use it after a fork");
}

// Throws in a child process, where nobody may be left to let go of it, and in the middle of an update of this thread,
// which would wait for itself.
Mutex* Store::CallsMutex() {
  CheckProcess();
  if (exchanges_ != std::this_thread::get_id()) return &calls_mutex_;
  throw Error(
      ErrorCode::kInvalidArgument,
      "the store was called in the middle of an update of this thread, by a signal handler or a finalizer: call "
      "it once the update has returned");
}

Store::Call::Call(Store* store) : calls_(store->CallsMutex()), rows_(store->rows_.mutex()) {
  PrepareToThrow();
  if (store->closed_) throw Error(ErrorCode::kClosed, "the store is closed");
}

void Store::RequireWritable(const char* what) const {
  if (!options_.read_only) return;
  throw Error(ErrorCode::kInvalidArgument, std::string("the store was opened read-only: rows cannot be ") + what);
}

void Store::CheckTable(const TableSchema& schema) {
  const Call call(this);
  try {
    cache_.CheckRowSize(schema.layout());
  } catch (const Error& error) {
    throw Error(error.code(), "table \"" + schema.name + "\": " + error.what());
  }
}

uint16_t Store::OpenTable(const TableSchema& schema) {
  CheckTable(schema);
  const Call call(this);
  const auto unopened = unopened_.find(schema.number);
  if (unopened == unopened_.end()) return AddTable(schema);
  const uint16_t index = unopened->second;
  if (schema.layout() != tables_[index].layout) {
    throw Error(ErrorCode::kSchemaMismatch,
                "table \"" + schema.name + "\": its rows are not as those of the table in the journal");
  }
  tables_[index].schema = schema;
  unopened_.erase(unopened);
  return index;
}

uint16_t Store::AddTable(const TableSchema& schema) {
  tables_.emplace_back(schema);
  uint16_t index;
  try {
    index = cache_.AddTable(schema.layout());
  } catch (...) {
    tables_.pop_back();
    throw;
  }
  try {
    cache_.SetIter(index, schema.iter);
    room_.MakeRoom(0);
  } catch (...) {
    cache_.RemoveLastTable();
    tables_.pop_back();
    throw;
  }
  cache_.ReleaseFreeSegments();
  return index;
}

void Store::LoadJournal(std::span<const TableSchema> tables, const JournalReader& read) {
  const auto table_of = [&](uint32_t number) DAMO_REQUIRES(store_mutex) -> std::optional<uint16_t> {
    const auto schema = std::find_if(tables.begin(), tables.end(), [&](const auto& t) { return t.number == number; });
    if (schema == tables.end()) return std::nullopt;
    try {
      return unopened_[number] = AddTable(*schema);
    } catch (const Error& error) {  // whoever opens the table is told that its rows are too large
      if (error.code() != ErrorCode::kInvalidArgument) throw;
      return std::nullopt;
    }
  };
  JournalLoader loader(table_of, &rows_, store_.get(), &room_, {&kernels_, &threads_});
  read([&](std::span<const RowWrite> rows) {
    const Call call(this);
    loader.Load(rows);
    room_.Trim();
    room_.RaiseTrimError();
  });
}

Table& Store::TableAt(uint16_t table) {
  if (table >= tables_.size()) {
    throw Error(ErrorCode::kInvalidArgument,
                "there are " + std::to_string(tables_.size()) + " tables, got number " + std::to_string(table));
  }
  Table& t = tables_[table];
  if (!t.dropped) return t;
  throw Error(ErrorCode::kInvalidArgument, "table \"" + t.schema.name + "\" was dropped, or converted, meanwhile");
}

void Store::CheckTables(const Lookup& lookup) {
  for (const Feature& feature : lookup.features) CheckMean(feature.table, feature.mean);
}

// Throws kInvalidArgument, as TableAt does.
void Store::CheckMean(uint16_t table, const MeanRow& mean) {
  const Table& t = TableAt(table);
  if (mean == nullptr || mean->size() == static_cast<size_t>(t.layout.dim)) return;
  throw Error(ErrorCode::kInvalidArgument, "table \"" + t.schema.name + "\": its mean must have " +
                                               std::to_string(t.layout.dim) + " weights, got " +
                                               std::to_string(mean->size()));
}

void Store::DropTable(uint32_t number) {
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("dropped");
  const auto found = std::find_if(tables_.begin(), tables_.end(),
                                  [&](const Table& t) { return t.schema.number == number && !t.dropped; });
  const auto index = static_cast<uint16_t>(found - tables_.begin());
  if (found != tables_.end()) {
    rows_.progress.Wait(rows_.mutex(), [&]() DAMO_REQUIRES(store_mutex) { return !cache_.AnyLoading(index); });
  }
  // A write that is under way would bring rows back, and so would the journal.
  write_back_.WaitIdle();
  journal_.Clear();
  store_->DeleteTable(number);
  unopened_.erase(number);
  if (found == tables_.end()) return;
  cache_.EraseAll(index);
  found->schema.rows = 0;
  found->dropped = true;
}

void Store::ReclaimTable(uint32_t number) {
  const Call call(this);
  store_->ReclaimTable(number);
}

void Store::SetReclaimableDeletions(uint32_t number, uint64_t before) {
  const Call call(this);
  capture_.AwaitEnd();
  store_->SetReclaimable(number, {{}, before});
}

void Store::RenameTable(uint16_t table, const std::string& name) {
  const Call call(this);
  TableAt(table).schema.name = name;
}

void Store::SetOptimizer(uint16_t table, const OptimizerConfig& optimizer) {
  const Call call(this);
  TableAt(table).schema.optimizer = optimizer;
}

uint32_t Store::iter(uint16_t table) {
  const Call call(this);
  return TableAt(table).schema.iter;
}

int64_t Store::rows(uint16_t table) {
  const Call call(this);
  return TableAt(table).schema.rows;
}

RowLayout Store::layout(uint16_t table) {
  const Call call(this);
  return TableAt(table).layout;
}

void Store::Forward(Lookup* lookup, float* out, size_t stride) {
  FindMeans(lookup);
  const Call call(this);
  CheckTables(*lookup);
  room_.RaiseTrimError();
  finder_.Pool(lookup, out, stride);
  if (profiler_.active()) profiler_.Note(*lookup);
  lookup->memory = CountedMemory(lookups_bytes_, lookup->memory_bytes());
  awaited_.End(*lookup);
  room_.Trim();
  write_back_.Wake();
}

void Store::Prefetch(Lookup* lookup) {
  const Call call(this);
  CheckTables(*lookup);
  prefetcher_.Prefetch(lookup);
  write_back_.Wake();
}

void Store::RequireUpdate(std::span<const GradientPart> parts) {
  for (const GradientPart& part : parts) CheckTables(*part.lookup);
  room_.RaiseTrimError();
  RequireWritable("updated");
  if (disk_.IsFull()) RequireRows(parts);
}

std::string Store::FindFault(std::span<const GradientPart> parts, float grad_scale) {
  const Call call(this);
  RequireUpdate(parts);
  std::string fault = updater_.FindFault(parts, grad_scale);
  room_.Trim();
  return fault;
}

bool Store::Backward(std::span<const GradientPart> parts, float grad_scale, NonFinite policy, double clock,
                     std::span<const SharedTable> shared) {
  const Call call(this);
  RequireUpdate(parts);
  for (const SharedTable& table : shared) LifeAt(table.table);
  if (!shared.empty()) exchanges_ = std::this_thread::get_id();
  const struct Ended {
    std::atomic<std::thread::id>* thread;
    ~Ended() { *thread = std::thread::id(); }
  } ended{&exchanges_};
  if (!updater_.Update(parts, grad_scale, policy, {clock, shared})) return false;
  NoteDead();
  room_.Trim();
  write_back_.Wake();
  return true;
}

void Store::RequireRows(std::span<const Slot> slots) {
  const auto absent = [&](Slot slot) DAMO_REQUIRES(store_mutex) { return IsAbsent(slot); };
  if (std::any_of(slots.begin(), slots.end(), absent)) disk_.Refuse();
}

void Store::RequireRows(std::span<const GradientPart> parts) {
  cache_.BeginOperation();
  for (const GradientPart& part : parts) {
    for (size_t f = 0; f < part.lookup->features.size(); ++f) {
      finder_.InWindows(*part.lookup, f, [&](const Window& window) DAMO_REQUIRES(store_mutex) {
        finder_.ResolveAll({&window.lookup, 1});
        RequireRows(window.lookup->slots);
        return true;
      });
    }
  }
}

void Store::WeightGradient(Lookup* lookup, const float* grad, size_t stride, float* weight_grad) {
  FindMeans(lookup);
  const Call call(this);
  CheckTables(*lookup);
  cache_.BeginOperation();
  FindWeightGradient(lookup, grad, stride, rows_, {&kernels_, &threads_}, &finder_, weight_grad);
}

RowSnapshot Store::TakeSnapshot(std::span<const uint16_t> tables) {
  const Call call(this);
  capture_.AwaitEnd();
  write_back_.WriteAll();
  std::vector<RowSnapshot::Table> copies;
  std::vector<uint32_t> numbers;
  for (const uint16_t table : tables) {
    const TableSchema& schema = TableAt(table).schema;
    copies.push_back({schema.name, schema.number, schema.layout(), {schema.iter, schema.rows}});
    if (const Ladder* ladder = tables_[table].ladder()) copies.back().ladder = *ladder;
    numbers.push_back(schema.number);
  }
  auto open = std::make_shared<OpenSnapshot>(store_->TakeSnapshot(numbers));
  std::erase_if(open_snapshots_, [](const std::weak_ptr<OpenSnapshot>& other) { return other.expired(); });
  open_snapshots_.push_back(open);
  return {std::move(copies), std::move(open)};
}

void Store::Flush() {
  const Call call(this);
  capture_.AwaitEnd();
  write_back_.WriteAll();
}

std::pair<size_t, size_t> Store::FlushPart(size_t first) {
  const Call call(this);
  capture_.AwaitEnd();
  return write_back_.WritePart(first);
}

std::vector<TableState> Store::BeginCheckpoint() {
  const Call call(this);
  capture_.AwaitEnd();
  std::vector<TableState> states;
  for (const Table& table : tables_) {
    states.push_back({table.schema.iter, table.schema.rows});
    if (table.life != nullptr) states.back().life = table.life->Serialize();
  }
  write_back_.Hold();
  try {
    capture_.Begin();
  } catch (...) {
    write_back_.Release();
    throw;
  }
  return states;
}

std::pair<std::vector<TableState>, bool> Store::Checkpoint(const std::string& path, bool link) {
  std::vector<TableState> states = BeginCheckpoint();
  const bool linked = WriteCheckpoint(path, link);
  return {std::move(states), linked};
}

bool Store::WriteCheckpoint(const std::string& path, bool link) {
  CheckProcess();
  const MutexLock lock(rows_.mutex());
  if (closed_ && !capture_.active()) throw Error(ErrorCode::kClosed, "the store is closed");
  if (!capture_.active()) throw Error(ErrorCode::kInvalidArgument, "no checkpoint has begun");
  writes_checkpoint_ = true;
  try {
    capture_.Write();
    bool linked;
    {
      const MutexUnlock unlocked(rows_.mutex());
      linked = store_->Checkpoint(path, link);
    }
    EndCheckpoint(true);
    return linked;
  } catch (const Error& error) {
    EndCheckpoint(false);
    const std::string what = error.what();
    const bool named = what.find(path) != std::string::npos;
    throw named ? error : Error(error.code(), "checkpoint into " + path + ": " + what);
  } catch (...) {
    EndCheckpoint(false);
    throw;
  }
}

void Store::AbandonCheckpoint() {
  const MutexLock lock(rows_.mutex());
  if (capture_.active() && !writes_checkpoint_) EndCheckpoint(false);
}

void Store::EndCheckpoint(bool complete) {
  writes_checkpoint_ = false;
  capture_.End(complete);
  write_back_.Release();
  NoteDead();
}

void Store::Close() {
  if (getpid() != process_) return;
  const MutexLock call(&calls_mutex_);
  if (closed_) return;
  closed_ = true;
  {
    const MutexLock lock(rows_.mutex());
    rows_.progress.Wait(rows_.mutex(), [&]() DAMO_REQUIRES(store_mutex) { return !writes_checkpoint_; });
    if (capture_.active()) EndCheckpoint(false);
  }
  loader_.Stop();
  write_back_.Stop();
  {
    const MutexLock lock(rows_.mutex());
    for (const std::weak_ptr<OpenSnapshot>& open : open_snapshots_) {
      if (const std::shared_ptr<OpenSnapshot> snapshot = open.lock()) snapshot->Close();
    }
  }
  store_->Close();
  // Another store may be opened, within the same budget, before this object is gone.
  const MutexLock lock(rows_.mutex());
  cache_.ReleaseMemory();
}

TableStats Store::table_stats(uint16_t table) {
  const Call call(this);
  TableStats stats{{}, cache_.rows(table)};
  for (size_t use = 0; use < kLookupUses; ++use) {
    const LookupCounts& counts = tables_[table].lookups[use];
    stats.lookups[use] = {counts.hits, counts.prefetched, counts.late, counts.misses};
  }
  return stats;
}

void Store::ResetLookupStats() {
  const Call call(this);
  for (Table& table : tables_) {
    for (LookupCounts& counts : table.lookups) counts.hits = counts.prefetched = counts.late = counts.misses = 0;
  }
}

std::optional<CacheProfileReport> Store::cache_profile() {
  const Call call(this);
  return profiler_.report();
}

RowStoreStats Store::row_store_stats() {
  const Call call(this);
  return store_->Stats();
}

RowCounts Store::row_counts() {
  const Call call(this);
  return {loader_.rows_read(), write_back_.rows_written() + capture_.rows_written()};
}

void Store::RequireDisk() {
  const Call call(this);
  disk_.RequireRoom();
}

size_t Store::cache_memory_bytes() {
  const Call call(this);
  return cache_.memory_bytes();
}

size_t Store::work_memory_bytes() {
  const Call call(this);
  return outputs_->kept_bytes() + *lookups_bytes_ + updater_.memory_bytes();
}

}  // namespace damo
