// The engine: tables whose rows live in a RowStore and are looked up and updated in a RowCache.
//
// A training step is one Forward and one Backward, each over all features of a collection in one call. Everything
// that touches rows takes the store's mutex, so calls from several threads run one after the other; inside a call the
// work is spread over the store's own threads.
//
// A Store says what comes after what, and holds the locks; its parts do the work:
//   batch.h, lookup.h            what a call looks up, and finding it; windows.h, where it is much
//   loading.h, prefetch.h        bringing rows in, and ahead of time
//   gradients.h, update.h        changing them; summed_gradients.h, where ids are many
//   weight_gradient.h            the gradient of a batch's own weights
//   cache_profiling.h            what a cache of another size would have had to find
//   making_room.h, write_back.h  letting go of them, once they are written
//   capture.h, journal.h         checkpoints
//   journal_loading.h            what one holds beside the RowStore's files
//   store_rows.cc                its own calls for rows by their ids
//   store_lives.cc               and for how long they live
//   budget.h, open.h             how memory is divided, and how a store comes to be
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/buffer_pool.h"
#include "base/counted_memory.h"
#include "base/float_environment.h"
#include "base/mutex.h"
#include "base/thread_pool.h"
#include "engine/awaited_rows.h"
#include "engine/batch.h"
#include "engine/budget.h"
#include "engine/cache_profiling.h"
#include "engine/cached_tables.h"
#include "engine/capture.h"
#include "engine/compute.h"
#include "engine/disk_budget.h"
#include "engine/journal.h"
#include "engine/journal_loading.h"
#include "engine/loading.h"
#include "engine/lookup.h"
#include "engine/making_room.h"
#include "engine/options.h"
#include "engine/prefetch.h"
#include "engine/update.h"
#include "engine/write_back.h"
#include "life/table_life.h"
#include "storage/row_snapshot.h"
#include "storage/row_store.h"

namespace damo {

// LookupCounts at one moment.
struct LookupStats {
  uint64_t hits;
  uint64_t prefetched;
  uint64_t late;
  uint64_t misses;
};

struct TableStats {
  std::array<LookupStats, kLookupUses> lookups;  // by LookupUse
  uint64_t cached_rows;
};

// A TableLife at one moment.
struct LifeStats {
  uint64_t rows;
  uint64_t sighted;
  LifeCounts counts;
  Ladder ladder;
  size_t memory_bytes;
  double clock_gap;  // seconds by which the clock went ahead at the store's last update
};

// What has gone between the cache and the RowStore, in rows.
struct RowCounts {
  uint64_t read;  // asked for, whether they were there or not
  uint64_t written;
};

class Store {
 public:
  Store(std::unique_ptr<RowStore> store, const BudgetShares& shares, const StoreOptions& options);
  ~Store();

  // Calls what it is given for parts of a journal, the oldest changes first.
  using JournalReader = std::function<void(const std::function<void(std::span<const RowWrite>)>&)>;
  // Takes over the journal of the checkpoint whose other rows the RowStore has; `tables` are the checkpoint's. Throws
  // as JournalLoader::Load and `read` do; the rows are of no use then. REQUIRES: nothing was called before.
  void LoadJournal(std::span<const TableSchema> tables, const JournalReader& read);

  // Throws kInvalidArgument, as OpenTable would, if a row of such a table is too large.
  void CheckTable(const TableSchema& schema);
  // Registers a table for this session and returns its index. Throws kInvalidArgument if a row is too large.
  uint16_t OpenTable(const TableSchema& schema);
  // The same of a table that has a life, as TableLife::Serialize left it. Throws kCorruption.
  uint16_t OpenTable(const TableSchema& schema, const std::string& life, const LifeOptions& options);
  // Begins the life of a table's rows, for which it reads all that there are, or gives it other options. `clock` as in
  // Backward.
  void SetLife(uint16_t table, const LifeOptions& options, double clock);
  // Has the table's rows be dead by another store's ladder, which may be lower than the one before, and by nothing of
  // its own: its rows come by SetCopies, and its life, if it has one, is over.
  void Follow(uint16_t table, const Ladder& ladder);
  // Deletes the table with this number on disk: all of its rows, or none if it throws. If it is open, calls with its
  // index throw kInvalidArgument from then on.
  void DropTable(uint32_t number);
  // See RowStore. REQUIRES: DropTable.
  void ReclaimTable(uint32_t number);
  // Has records of the table's deletions at steps below go. REQUIRES: nobody asks for them, nor does the checkpoint
  // that is next, or is being written.
  void SetReclaimableDeletions(uint32_t number, uint64_t before);
  // Another name, for messages.
  void RenameTable(uint16_t table, const std::string& name);
  // REQUIRES: the same kind of optimizer. Holds from the next Backward.
  void SetOptimizer(uint16_t table, const OptimizerConfig& optimizer);
  uint32_t iter(uint16_t table);
  int64_t rows(uint16_t table);

  // Pools every feature into `out`; where that is one matrix, with `stride` floats between samples. Creates no rows.
  void Forward(Lookup* lookup, float* out, size_t stride);

  // Begins to read what a Forward of this batch will miss, and returns. Takes no more of the cache than a quarter: what
  // does not fit beside the prefetches before it is left to the forward. Results do not depend on it. Throws as Forward
  // does if room cannot be made; what a read finds wrong is left for the forward to find.
  void Prefetch(Lookup* lookup);

  // REQUIRES: the parts' features are for training; throws kInvalidArgument otherwise.
  // One update of all rows that the parts name, or none: gradients are summed over the parts in their order and divided
  // by `grad_scale`. Returns false if a gradient was not finite and was skipped. `clock`, in seconds, is what the lives
  // of tables measure time by. `shared`: tables whose rows other stores have as well, which make the same update; when
  // it throws after their lives have talked to each other, it may be applied in part, and the store must be closed.
  bool Backward(std::span<const GradientPart> parts, float grad_scale, NonFinite policy, double clock = 0,
                std::span<const SharedTable> shared = {});
  // What such an update is prepared by, of a table that has a life.
  LifeCensus CensusOf(uint16_t table, std::span<const GradientPart> parts);
  // Whether such an update, were it to begin now, may call an exchange: the same in all stores. See TableLife.
  bool MayExchange(std::span<const SharedTable> shared, double clock);
  // See TableLife::Digest.
  uint64_t LifeDigest(uint16_t table);
  // Gives a table the edges and the ladder that all of `lives` are to have, as TableLife::Serialize left them, of which
  // one is its own; reads all of its rows. See AlignedLife.
  void AlignLife(uint16_t table, const std::vector<std::string>& lives);
  // What would not be finite if a Backward applied these now, in words; empty if it can. Throws what that would throw.
  // For updates of several stores, of which all are applied or none.
  std::string FindFault(std::span<const GradientPart> parts, float grad_scale);

  // Gradient of the batch's weights, [num_ids]; ids that no feature uses get 0.
  void WeightGradient(Lookup* lookup, const float* grad, size_t stride, float* weight_grad);

  // ---- rows by id; ids are any int64, in any order, with duplicates

  // (n, dim). `mean` as of a Feature.
  void Get(uint16_t table, std::span<const int64_t> ids, UnseenRows unseen, float* weights, MeanRow mean = nullptr);
  // See RowSnapshot::Mean. Reads all rows, after a flush, unless none has changed since the last time; other calls go
  // on meanwhile.
  MeanRow Mean(uint16_t table);
  // The same if that costs nothing, else nullptr.
  MeanRow KnownMean(uint16_t table);
  // Sets weights (n, dim), and state (n, state_size) or, with nullptr, that of new rows. With nullptr for weights,
  // state alone. Of equal ids the last one wins.
  void Set(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state = nullptr);
  // Sets weights (n, dim) and headers of rows that another store has updated, with the state of new rows. Throws
  // kInvalidArgument for a table that has a life of its own.
  void SetCopies(uint16_t table, std::span<const int64_t> ids, const float* weights, const RowHeader* headers);
  // Sets the optimizer state (n, state_size) of rows and nothing else of them. Of equal ids the last one wins. Throws
  // kInvalidArgument at an id without a row.
  void SetState(uint16_t table, std::span<const int64_t> ids, const float* state);
  // Optimizer state (n, state_size), headers and whether the ids have rows; each may be nullptr. Without a row, as of a
  // new one, with the header of the id's sightings.
  void Describe(uint16_t table, std::span<const int64_t> ids, float* state, RowHeader* headers, uint8_t* contains);
  // Rows as they are before their first update, (n, dim), whether there are such rows or not.
  void InitialWeights(uint16_t table, std::span<const int64_t> ids, float* weights);
  // Adds rows to a table of which nobody has asked for any yet, past the cache: weights (n, dim), state (n, state_size)
  // and headers. If the table has a life, they are in it already. REQUIRES: `ids` ascending, and above those added
  // before.
  void AddRows(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state,
               const RowHeader* headers);
  // The same of what was seen of ids that have no row.
  void AddSightings(uint16_t table, std::span<const int64_t> ids, const RowHeader* headers);
  void Delete(uint16_t table, std::span<const int64_t> ids);
  // Deletes rows and has nothing left of them on disk, and begins the journal anew: the next checkpoint has nothing of
  // them, either. Returns those of which snapshots or iterators still need something. Takes as long as rewriting the
  // files that hold them.
  std::vector<int64_t> Erase(uint16_t table, std::span<const int64_t> ids);
  void Contains(uint16_t table, std::span<const int64_t> ids, uint8_t* contains);
  // The tables as they are now; flushes first.
  RowSnapshot TakeSnapshot(std::span<const uint16_t> tables);
  std::unique_ptr<RowIterator> Scan(uint16_t table) { return TakeSnapshot({&table, 1}).Scan(0); }
  std::unique_ptr<RowIterator> ScanSightings(uint16_t table) { return TakeSnapshot({&table, 1}).ScanSightings(0); }
  RowLayout layout(uint16_t table);

  // ---- durability

  void Flush();
  // Some of Flush's work ahead of it, for who wants to know how far it is: as WriteBack::WritePart.
  std::pair<size_t, size_t> FlushPart(size_t first);
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
  // Nothing for a table without a life.
  std::optional<LifeStats> life_stats(uint16_t table);
  // As TableLife::Serialize has it now, of a table that has a life.
  std::optional<std::string> life_bytes(uint16_t table);
  // How many rows these options would have removed by now: of this store's, or of those of all stores whose `lives`
  // they are. Throws kInvalidArgument for a table without a life, and for lives that do not go together.
  uint64_t PreviewLife(uint16_t table, const LifeOptions& options, const std::vector<std::string>& lives = {});
  // Begins to count lookups anew, in all tables.
  void ResetLookupStats();
  // Of StoreOptions::profile_cache; nothing without it.
  std::optional<CacheProfileReport> cache_profile();
  RowStoreStats row_store_stats();
  RowCounts row_counts();
  size_t cache_memory_bytes();
  // What calls have left for those to come: forwards for their backwards, and memory that will be used again.
  size_t work_memory_bytes();
  // Of StoreOptions::disk_budget. The former throws kOutOfSpace if it is used up, as calls that make new rows do.
  void RequireDisk();
  uint64_t disk_used() const { return disk_.used(); }
  const char* instruction_set() const { return kernels_.name; }

 private:
  // A call, from its beginning to its end. Where it waits it lets go of the store's mutex, never of `calls_mutex_`: no
  // other call sees what it has half done. Throws kClosed.
  class DAMO_SCOPED_CAPABILITY Call {
   public:
    explicit Call(Store* store) DAMO_ACQUIRE(store_mutex);
    ~Call() DAMO_RELEASE() {}
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    const MutexLock calls_;
    const MutexLock rows_;
    const DefaultFloatEnvironment environment_;
  };

  void CheckProcess() const;
  Mutex* CallsMutex();
  void RequireWritable(const char* what) const;
  uint16_t AddTable(const TableSchema& schema) DAMO_REQUIRES(store_mutex);
  // Throw kInvalidArgument for a table that was dropped.
  Table& TableAt(uint16_t table) DAMO_REQUIRES(store_mutex);
  // Throws kInvalidArgument if the table has none.
  TableLife& LifeAt(uint16_t table) DAMO_REQUIRES(store_mutex);
  void CheckTables(const Lookup& lookup) DAMO_REQUIRES(store_mutex);
  // Throw kOutOfSpace if one of the slots, or of the ids, has no row.
  void RequireRows(std::span<const Slot> slots) DAMO_REQUIRES(store_mutex);
  void RequireRows(std::span<const GradientPart> parts) DAMO_REQUIRES(store_mutex);
  void RequireUpdate(std::span<const GradientPart> parts) DAMO_REQUIRES(store_mutex);
  void CheckMean(uint16_t table, const MeanRow& mean) DAMO_REQUIRES(store_mutex);
  void FindMeans(Lookup* lookup);
  bool IsAbsent(Slot slot) const DAMO_REQUIRES(store_mutex) { return RowFlags(cache_.Row(slot)) & kAbsent; }
  void EndCheckpoint(bool complete) DAMO_REQUIRES(store_mutex);
  // Tells the RowStore what has died, once no checkpoint is being made that has it.
  void NoteDead() DAMO_REQUIRES(store_mutex);
  void CheckMostRows(uint16_t table, std::span<const int64_t> ids);
  void RecordReplaced(uint16_t table, std::span<const Slot> slots) DAMO_REQUIRES(store_mutex);
  void SetRows(uint16_t table, std::span<const int64_t> ids, const float* weights, const float* state,
               const RowHeader* headers);
  void SetRow(Slot slot, const float* weights, const float* state) DAMO_REQUIRES(store_mutex);
  template <class F>
  void InRuns(uint16_t table, std::span<const int64_t> ids, F f);

  const StoreOptions options_;
  const Kernels& kernels_;
  const pid_t process_;  // the one that opened the store: after a fork the child has no threads, and must not write
  Mutex calls_mutex_;    // taken before `store_mutex`: calls run one after the other
  std::atomic<bool> closed_ = false;        // written by one call
  std::atomic<std::thread::id> exchanges_;  // whose update may call others, by SharedTable::exchange
  const std::unique_ptr<RowStore> store_;
  DiskBudget disk_;
  Journal journal_;
  CachedTables rows_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex) = rows_.tables;
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex) = rows_.cache;
  ThreadPool threads_;
  const std::shared_ptr<BufferPool> outputs_;
  const MemoryCount lookups_bytes_ = std::make_shared<std::atomic<size_t>>(0);
  std::map<uint32_t, uint16_t> unopened_ DAMO_GUARDED_BY(store_mutex);  // tables that the journal brought, by number
  std::vector<std::weak_ptr<OpenSnapshot>> open_snapshots_ DAMO_GUARDED_BY(store_mutex);
  bool writes_checkpoint_ DAMO_GUARDED_BY(store_mutex) = false;

  // Each uses those before it, some from threads of their own.
  AwaitedRows awaited_;
  WriteBack write_back_;
  Capture capture_;
  RoomMaker room_;
  Loader loader_;
  RowFinder finder_;
  CacheProfiler profiler_;
  Prefetcher prefetcher_;
  Updater updater_;
};

}  // namespace damo
