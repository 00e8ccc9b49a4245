// Bringing rows into the cache: for a call that waits for them, or ahead of one that will.

#include <sys/resource.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/status.h"
#include "engine/load.h"
#include "engine/store.h"

namespace damo {
namespace {

// What a read costs where it waits for no disk is processor time: as many at once as there are threads, and many rows
// in each. Where it waits, a disk is as fast as it can be only with many reads in flight: few calls, where each has
// many of them under way, or many calls.
constexpr size_t kRowsPerRead = 128;
struct WaitingReads {
  int calls;  // at a time
  size_t rows;
};
WaitingReads HowToWait(const RowStore& rows) {
  return rows.OverlapsReads() ? WaitingReads{.calls = 8, .rows = 96} : WaitingReads{.calls = 64, .rows = 16};
}
// From this share of rows on that came from the disk rather than from the page cache, reads are taken to wait.
constexpr double kWaitingShare = 0.05;
constexpr size_t kRowsAhead = 16;
// Of the cache, what rows may take that were prefetched and not used yet.
constexpr size_t kAwaitedShare = 4;
// A prefetch whose forward has not come within so many calls is forgotten.
constexpr uint64_t kMostCalls = 128;

// 4 KiB blocks that this thread has read from disks.
int64_t BlocksRead() {
#ifdef RUSAGE_THREAD
  rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_inblock / 8;
#else
  return 0;
#endif
}

}  // namespace

std::vector<Store::LoadRun> Store::Missing(std::span<const Unit> units) {
  std::vector<LoadRun> runs(tables_.size());
  for (const Unit& unit : units) {
    if (unit.missing == 0) continue;
    std::vector<int64_t>& of_table = runs[unit.feature->table].ids;
    for (size_t i = 0; i < unit.num_ids(); ++i) {
      if (unit.slots()[i] == kMissingSlot) of_table.push_back(unit.ids()[i]);
    }
  }
  threads_.ParallelFor(runs.size(), [&](size_t t, int) {
    std::vector<int64_t>& ids = runs[t].ids;
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    runs[t].index = static_cast<uint16_t>(t);
    runs[t].table = &tables_[t];
    runs[t].initial_state = InitialState(tables_[t].schema.optimizer);
  });
  std::erase_if(runs, [](const LoadRun& run) { return run.ids.empty(); });
  return runs;
}

size_t Store::BytesOf(std::span<const LoadRun> runs) const {
  size_t bytes = 0;
  for (const LoadRun& run : runs) bytes += run.ids.size() * cache_.stride(run.index);
  return bytes;
}

std::unique_ptr<Store::Load> Store::BeginLoad(std::vector<LoadRun> runs, bool awaited) {
  auto load = std::make_unique<Load>();
  load->runs = std::move(runs);
  size_t rows = 0;
  for (LoadRun& run : load->runs) {
    run.first = rows;
    rows += run.ids.size();
  }
  load->slots.reserve(rows);
  load->payloads.reserve(rows);
  load->segments.reserve(rows);
  load->found.resize(rows);
  load->waits = reads_wait_;
  load->awaited = awaited;
  if (load->waits && waiting_readers_ == nullptr) {
    waiting_readers_ = std::make_unique<ThreadPool>(HowToWait(*rows_).calls);
  }
  for (const LoadRun& run : load->runs) {
    for (size_t i = 0; i < run.ids.size(); ++i) {
      if (i + kRowsAhead < run.ids.size()) cache_.PrefetchForChange(HashTag(run.index, run.ids[i + kRowsAhead]));
      const Slot slot = cache_.Add(run.index, run.ids[i], HashTag(run.index, run.ids[i]), awaited);
      load->slots.push_back(slot);
      load->payloads.push_back(cache_.Row(slot) + kPayloadOffset);
      const uint32_t segment = cache_.SegmentOf(slot);
      if (!load->segments.empty() && load->segments.back() == segment) continue;
      load->segments.push_back(segment);
      cache_.Pin(segment);
    }
  }
  rows_read_ += rows;
  return load;
}

void Store::Read(Load* load) {
  struct Part {
    const LoadRun* run;
    size_t begin;
    size_t end;
  };
  const size_t rows_per_read = load->waits ? HowToWait(*rows_).rows : kRowsPerRead;
  std::vector<Part> parts;
  for (const LoadRun& run : load->runs) {
    for (size_t begin = 0; begin < run.ids.size(); begin += rows_per_read) {
      parts.push_back({&run, begin, std::min(begin + rows_per_read, run.ids.size())});
    }
  }
  std::atomic<int64_t> blocks = 0;
  auto read = [&](size_t p, int) {
    const auto& [run, begin, end] = parts[p];
    const Table& table = *run->table;
    const int64_t blocks_before = BlocksRead();
    try {
      rows_->MultiGet(table.schema.number, std::span(run->ids).subspan(begin, end - begin), table.layout.payload_size(),
                      load->payloads.data() + run->first + begin, load->found.data() + run->first + begin);
    } catch (const Error& error) {
      throw Error(error.code(), "table \"" + table.schema.name + "\": " + error.what());
    }
    blocks.fetch_add(BlocksRead() - blocks_before, std::memory_order_relaxed);
    for (size_t i = begin; i < end; ++i) {
      if (!load->found[run->first + i]) {
        table.DrawPayload(kernels_.draw_row, run->ids[i], run->initial_state, cache_.Row(load->slots[run->first + i]));
      }
    }
  };
  if (load->waits) {
    waiting_readers_->ParallelFor(parts.size(), read);
  } else if (!load->awaited) {
    threads_.ParallelFor(parts.size(), read);
  } else {
    // Without the others: they are the model's now.
    const DefaultFloatEnvironment environment;
    for (size_t p = 0; p < parts.size(); ++p) read(p, 0);
  }
  const double share = static_cast<double>(blocks) / static_cast<double>(load->slots.size());
  reads_wait_ = options_.direct_io || share > kWaitingShare;
}

void Store::EndLoad(const Load& load, bool complete) {
  for (size_t i = 0; i < load.slots.size(); ++i) {
    char* row = cache_.Row(load.slots[i]);
    if (complete) {
      SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~(load.found[i] ? kLoading | kAbsent : kLoading)));
    } else {
      cache_.Erase(HashTag(RowTable(row), RowId(row)), load.slots[i]);
    }
  }
  for (uint32_t segment : load.segments) cache_.Unpin(segment);
  progress_.notify_all();
}

// Brings the rows that `units` miss into the cache: from the RowStore, or with their initial values and flagged absent.
// Waits for those that a prefetch is about to bring. Slots that `units` already have stay valid, unless that prefetch
// fails: then its rows are missing again.
void Store::LoadMissing(std::span<const Unit> units, Lock& lock) {
  std::vector<LoadRun> runs = Missing(units);
  const size_t bytes = BytesOf(runs);
  MakeRoomAround(units, bytes, lock);
  forward_load_.Note(bytes);
  if (!runs.empty()) {
    const std::unique_ptr<Load> load = BeginLoad(std::move(runs), /*awaited=*/false);
    // No other call can begin, so nothing moves; the write-back thread goes on.
    lock.data.unlock();
    try {
      Read(load.get());
    } catch (...) {
      lock.data.lock();
      EndLoad(*load, false);
      throw;
    }
    lock.data.lock();
    EndLoad(*load, true);
  }
  for (const Unit& unit : units) {
    if (unit.loading == 0) continue;
    for (size_t i = 0; i < unit.num_ids(); ++i) {
      const Slot slot = unit.slots()[i];
      if (slot == kMissingSlot || slot == kZeroSlot) continue;
      progress_.wait(lock.data, [&] { return !(RowFlags(cache_.Row(slot)) & kLoading); });
    }
  }
}

void Store::Prefetch(Lookup* lookup) {
  Lock lock = Acquire();
  if (lookup->slots.empty()) return;
  lookup->epoch = 0;
  const size_t awaited = AwaitedBytes(), most = cache_.row_capacity_bytes() / kAwaitedShare;
  size_t room = most - std::min(most, awaited);
  // Room is made before rows are looked up: no row of this batch that is there should make way for those that are not.
  MakeSpareRoom(std::min(prefetch_load_.expected(), room), lock);
  std::vector<Unit> units = MakeUnits(lookup);
  threads_.ParallelFor(units.size(), [&](size_t u, int) { Resolve</*kUse=*/false>(&units[u]); });
  std::vector<LoadRun> runs = Missing(units);
  for (LoadRun& run : runs) {
    run.ids.resize(std::min(run.ids.size(), room / cache_.stride(run.index)));
    room -= run.ids.size() * cache_.stride(run.index);
  }
  size_t bytes = BytesOf(runs);
  prefetch_load_.Note(bytes);
  MakeSpareRoom(bytes, lock);
  if (cache_.NeedsEviction(bytes)) bytes = 0;
  if (bytes > 0 && loader_ == nullptr) loader_ = std::make_unique<Worker>();
  awaited_.push_back({lookup->features[0].table, bytes, cache_.arrival(), calls_});
  NoteAwaited();
  if (bytes > 0) {
    std::shared_ptr<Load> load = BeginLoad(std::move(runs), /*awaited=*/true);
    loader_->Post([this, load] {
      bool complete = true;
      try {
        Read(load.get());
      } catch (...) {
        complete = false;  // who needs the rows reads them again, and gets the error
      }
      const std::lock_guard data(mutex_);
      EndLoad(*load, complete);
    });
  }
  write_back_->Wake();
}

size_t Store::AwaitedBytes() const {
  size_t bytes = 0;
  for (const Awaited& prefetch : awaited_) bytes += prefetch.bytes;
  return bytes;
}

void Store::ForgetAwaited() {
  awaited_.clear();
  NoteAwaited();
}

// The forward that the oldest prefetch of this collection was for has come.
void Store::EndAwaiting(const Lookup& lookup) {
  if (lookup.features.empty()) return;
  const auto found = std::find_if(awaited_.begin(), awaited_.end(),
                                  [&](const Awaited& prefetch) { return prefetch.table == lookup.features[0].table; });
  if (found != awaited_.end()) awaited_.erase(found);
  NoteAwaited();
}

void Store::NoteAwaited() {
  ++calls_;
  std::erase_if(awaited_, [&](const Awaited& prefetch) { return prefetch.call + kMostCalls < calls_; });
  const auto oldest = std::find_if(awaited_.begin(), awaited_.end(), [](const Awaited& p) { return p.bytes > 0; });
  cache_.KeepArrivals(oldest == awaited_.end() ? RowCache::kNoArrival : oldest->arrival);
}

}  // namespace damo
