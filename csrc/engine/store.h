// The engine: tables whose rows live in a RowStore and are looked up and updated in a RowCache.
//
// A training step is one Forward and one Backward, each over all features of a collection in one call. Everything
// that touches rows takes the store's mutex, so calls from several threads run one after the other; inside a call the
// work is spread over the store's own threads.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/buffer_pool.h"
#include "base/float_environment.h"
#include "base/thread_pool.h"
#include "base/worker.h"
#include "cache/row_cache.h"
#include "engine/capture.h"
#include "engine/journal.h"
#include "engine/table.h"
#include "engine/write_back.h"
#include "kernels/kernels.h"
#include "storage/row_snapshot.h"
#include "storage/row_store.h"

namespace damo {

struct StoreOptions {
  size_t memory_budget = size_t{1} << 30;  // bytes, for everything the store keeps in memory
  int num_threads = 1;
  std::string instruction_set = "auto";
  bool direct_io = false;
  bool read_only = false;
  // For tests: a cache that never holds more than so many bytes of rows between operations; 0 for the budget's share.
  size_t cache_bytes = 0;
};

// What RocksDB, the working memory of a call and a cache that is worth having take at least.
constexpr size_t kLeastMemoryBudget = size_t{64} << 20;

// How a memory budget is divided.
struct BudgetShares {
  size_t row_store;
  size_t cache;
  size_t outputs;  // kept for the next step
  size_t reserve;  // for rows that are updated while a checkpoint is being written
};
// Throws kInvalidArgument below kLeastMemoryBudget.
BudgetShares DivideBudget(size_t memory_budget);

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

enum class UnseenRows : uint8_t { kInitial, kZeros };

// One output of a collection: the bags of key `key` of the batch, pooled from `table`. `unseen` is what ids without a
// row read as. Where all keys have as many bags, outputs are columns [column, column + dim) of one matrix; otherwise
// each is a (bags, dim) matrix, one behind the other.
struct Feature {
  uint16_t table;
  Pooling pooling;
  UnseenRows unseen;
  size_t key;
  size_t column;
};

// What a forward leaves for its backward.
struct Lookup {
  std::vector<Feature> features;
  JaggedBatch batch;
  std::vector<size_t> first_bag;   // [keys + 1]
  std::vector<int64_t> offsets;    // by bag, and one more
  std::vector<size_t> first_slot;  // by feature: where its ids' slots begin
  std::vector<Slot> slots;         // hints, found in the cache's `epoch`; 0 before the first
  uint64_t epoch = 0;

  size_t bags(const Feature& f) const { return first_bag[f.key + 1] - first_bag[f.key]; }
  const int64_t* bag_offsets(const Feature& f) const { return offsets.data() + first_bag[f.key]; }
  size_t ids_of(const Feature& f) const { return static_cast<size_t>(bag_offsets(f)[bags(f)] - bag_offsets(f)[0]); }
};

enum class NonFinite { kRaise, kSkip };

// A gradient that arrives in Backward: that of the output of `lookup`.
struct GradientPart {
  Lookup* lookup;
  const float* grad;
  size_t stride;  // floats from one sample to the next, where the output is one matrix
};

struct TableStats {
  uint64_t hits;
  uint64_t misses;
  uint64_t cached_rows;
};

// What has gone between the cache and the RowStore, in rows.
struct RowCounts {
  uint64_t read;  // asked for, whether they were there or not
  uint64_t written;
};

class Store {
 public:
  Store(std::unique_ptr<RowStore> rows, const BudgetShares& shares, const StoreOptions& options);
  ~Store();

  // Throws kInvalidArgument, as OpenTable would, if a row of such a table is too large.
  void CheckTable(const TableSchema& schema);
  // Registers a table for this session and returns its index. Throws kInvalidArgument if a row is too large.
  uint16_t OpenTable(const TableSchema& schema);
  // REQUIRES: the same kind of optimizer. Holds from the next Backward.
  void SetOptimizer(uint16_t table, const OptimizerConfig& optimizer);
  uint32_t iter(uint16_t table);
  int64_t rows(uint16_t table);

  // Validates a batch and prepares its Lookup. Throws kInvalidArgument.
  static std::unique_ptr<Lookup> MakeLookup(std::vector<Feature> features, const JaggedBatch& batch);

  // Pools every feature into `out`; where that is one matrix, with `stride` floats between samples. Creates no rows.
  void Forward(Lookup* lookup, float* out, size_t stride);

  // Begins to read what a Forward of this batch will miss, and returns. Takes no more of the cache than a quarter: what
  // does not fit beside the prefetches before it is left to the forward. Results do not depend on it. Throws as Forward
  // does if room cannot be made; what a read finds wrong is left for the forward to find.
  void Prefetch(Lookup* lookup);

  // REQUIRES: the parts' features read unseen rows as kInitial; throws kInvalidArgument otherwise.
  // One update of all rows that the parts name, or none: gradients are summed over the parts in their order and divided
  // by `grad_scale`. Returns false if a gradient was not finite and was skipped.
  bool Backward(std::span<const GradientPart> parts, float grad_scale, NonFinite policy);

  // Gradient of the batch's weights, [num_ids]; ids that no feature uses get 0.
  void WeightGradient(Lookup* lookup, const float* grad, size_t stride, float* weight_grad);

  // ---- rows by id; ids are any int64, in any order, with duplicates

  void Get(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen, float* weights);  // (n, dim)
  // Sets weights (n, dim), and state (n, state_size) or, with nullptr, that of new rows. With nullptr for weights,
  // state alone. Of equal ids the last one wins.
  void Set(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state = nullptr);
  void Delete(uint16_t table, std::span<const int64_t> ids);
  void Contains(uint16_t table, std::span<const int64_t> ids, uint8_t* contains);
  // The tables as they are now; flushes first.
  RowSnapshot TakeSnapshot(std::span<const uint16_t> tables);
  std::unique_ptr<RowIterator> Scan(uint16_t table) { return TakeSnapshot({&table, 1}).Scan(0); }
  RowLayout layout(uint16_t table);

  // ---- durability

  void Flush();
  // Writes a checkpoint of the rows as they are now into the new directory `path`; returns each table's state, and
  // whether files were linked rather than copied.
  std::pair<std::vector<TableState>, bool> Checkpoint(const std::string& path, bool link);

  // The same in two steps. Begins a checkpoint of the rows as they are now, once the one before has ended; returns each
  // table's state. Forward, Backward, Get, Contains and Prefetch go on while it is written; other calls that change or
  // write rows wait.
  std::vector<TableState> BeginCheckpoint();
  // Writes it into the new directory `path`, which ends it, whether it throws or not. Returns whether files were linked
  // rather than copied. REQUIRES: BeginCheckpoint. May run in a thread of its own.
  bool WriteCheckpoint(const std::string& path, bool link);
  // Ends it otherwise. Idempotent.
  void AbandonCheckpoint();
  // Without writing anything, but for a checkpoint that is being written. Idempotent.
  void Close();

  // Memory for outputs. It may outlive the store.
  const std::shared_ptr<BufferPool>& outputs() const { return outputs_; }

  // ---- figures

  TableStats table_stats(uint16_t table);
  RowStoreStats row_store_stats();
  RowCounts row_counts();
  size_t cache_memory_bytes();
  const char* instruction_set() const { return kernels_.name; }

 private:
  // Held by a call from its beginning to its end. Where it waits for the write-back thread it lets go of `data`, never
  // of `operation`: no other call sees what it has half done.
  struct Lock {
    std::unique_lock<std::mutex> operation;
    std::unique_lock<std::mutex> data;
    DefaultFloatEnvironment environment;
  };

  // A run of one feature's bags, small enough that its rows stay in the processor's cache from lookup to pooling.
  struct Unit {
    Lookup* lookup;
    const Feature* feature;
    size_t bag_begin;
    size_t bag_end;
    size_t missing = 0;
    size_t loading = 0;

    bool complete() const { return missing == 0 && loading == 0; }
    const int64_t* ids() const;
    Slot* slots() const;
    size_t num_ids() const;
  };
  // Where in an output or its gradient a feature's first bag is, in floats, and how far it is to the next.
  struct Place {
    size_t offset;
    size_t stride;
  };
  struct PlacedPart {
    const Lookup* lookup;
    const float* grad;
    std::vector<Place> places;
  };
  struct Scratch;
  struct LoadRun;
  struct Load;

  // A prefetch whose forward has not come.
  struct Awaited {
    uint16_t table;    // the first one of its features: two collections have no table in common
    size_t bytes;      // that its rows take
    uint64_t arrival;  // of the first of them in the cache
    uint64_t call;
  };
  // How many bytes of rows the next call of a kind will probably load, with some to spare.
  class Forecast {
   public:
    size_t expected() const { return bytes_; }
    void Note(size_t bytes) { bytes_ = std::max(bytes + bytes / 8, bytes_ - bytes_ / 8); }

   private:
    size_t bytes_ = 0;
  };

  Lock Acquire();
  void CheckProcess() const;
  void EndCheckpoint(bool complete);
  template <class F>
  void InRuns(uint16_t table, std::span<const int64_t> ids, F f);

  // lookup.cc
  static std::vector<Unit> MakeUnits(Lookup* lookup);
  template <bool kUse>
  void Resolve(Unit* unit);
  void Pool(Lookup* lookup, float* out, size_t stride, Lock& lock);
  void Revalidate(Unit* unit);
  void ResolveMissing(Unit* unit);
  void Count(Slot slot, Unit* unit) const;
  template <class F>
  void LoadWaiting(std::vector<Unit>* units, Lock& lock, F use);
  void ResolveAll(std::span<Lookup* const> lookups, Lock& lock);
  void ReadAbsentAsZeros(const Unit& unit);
  std::vector<Place> PlacesOf(const Lookup& lookup, size_t stride) const;  // by feature
  PoolArgs BagsOf(const Unit& unit) const;

  // loading.cc
  std::vector<LoadRun> Missing(std::span<const Unit> units);
  size_t BytesOf(std::span<const LoadRun> runs) const;
  std::unique_ptr<Load> BeginLoad(std::vector<LoadRun> runs, bool awaited);
  void Read(Load* load);  // needs no lock
  void EndLoad(const Load& load, bool complete);
  void LoadMissing(std::span<const Unit> units, Lock& lock);
  size_t AwaitedBytes() const;
  void EndAwaiting(const Lookup& lookup);
  void ForgetAwaited();
  void NoteAwaited();

  // eviction.cc
  void MakeRoom(size_t bytes, Lock& lock);
  void MakeSpareRoom(size_t bytes, Lock& lock);
  void MakeRoomAround(std::span<const Unit> units, size_t bytes, Lock& lock);
  void Trim(Lock& lock);
  void RaiseTrimError();
  void EvictFirst(const std::vector<uint32_t>& victims, Lock& lock);
  void AwaitNoSnapshot(Lock& lock);

  // update.cc
  void AwaitReserve(std::span<const size_t> ids_of_table, Lock& lock);
  float GradientBound(std::span<const GradientPart> parts, float grad_scale);
  void Gather(uint16_t table, size_t share, size_t shares, std::span<const PlacedPart> parts, float grad_scale,
              Scratch* scratch) const;
  std::string DescribeNonFinite(uint16_t table, const Scratch& scratch) const;

  const StoreOptions options_;
  const Kernels& kernels_;
  const pid_t process_;  // the one that opened the store: after a fork the child has no threads, and must not write
  std::mutex operation_mutex_;        // taken first: calls run one after the other
  std::mutex mutex_;                  // guards the cache against the write-back thread
  std::atomic<bool> closed_ = false;  // written under operation_mutex_
  std::unique_ptr<RowStore> rows_;
  Journal journal_;
  std::deque<Table> tables_;
  RowCache cache_;
  ThreadPool threads_;
  std::shared_ptr<BufferPool> outputs_;
  std::vector<std::unique_ptr<Scratch>> scratch_;  // by thread
  std::vector<std::weak_ptr<OpenSnapshot>> open_snapshots_;
  std::exception_ptr trim_error_;
  Forecast forward_load_;
  Forecast prefetch_load_;
  std::deque<Awaited> awaited_;   // oldest first
  uint64_t calls_ = 0;            // of Prefetch and Forward
  std::atomic<bool> reads_wait_;  // for a disk, as far as is known
  std::atomic<uint64_t> rows_read_ = 0;
  std::condition_variable progress_;             // with mutex_: a load has ended, or a write in the background
  std::unique_ptr<ThreadPool> waiting_readers_;  // from the first read on that waits
  // Last: their threads use the others.
  std::unique_ptr<WriteBack> write_back_;
  std::unique_ptr<Snapshot> snapshot_;
  bool writes_checkpoint_ = false;  // guarded by mutex_
  std::unique_ptr<Worker> loader_;  // from the first prefetch on
};

}  // namespace damo
