#include "engine/loading.h"

#include <sys/resource.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/float_environment.h"
#include "base/status.h"

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

// The rows of one load, by run and then id.
struct Loader::Rows {
  std::vector<LoadRun> runs;
  std::vector<Slot> slots;
  std::vector<char*> payloads;
  std::vector<Found> found;        // what the RowStore had
  std::vector<uint32_t> segments;  // one pin for each
  bool awaited;                    // by a call to come
  bool waits;                      // whether reads wait for a disk
};

Loader::Loader(CachedTables* rows, RowStore* store, const Compute& compute, bool direct_io)
    : rows_(rows),
      store_(store),
      tables_(rows->tables),
      cache_(rows->cache),
      arena_(rows->cache.arena()),
      compute_(compute),
      direct_io_(direct_io),
      reads_wait_(direct_io) {}

std::vector<LoadRun> Loader::Missing(std::span<const Unit> units) {
  std::vector<LoadRun> runs(tables_.size());
  for (const Unit& unit : units) {
    if (unit.missing == 0) continue;
    std::vector<int64_t>& of_table = runs[unit.feature->table].ids;
    for (size_t i = 0; i < unit.num_ids(); ++i) {
      if (unit.slots()[i] == kMissingSlot) of_table.push_back(unit.ids()[i]);
    }
  }
  compute_.threads->ParallelFor(runs.size(), [&](size_t t, int) DAMO_REQUIRES(store_mutex) {
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

size_t Loader::BytesOf(std::span<const LoadRun> runs) const {
  size_t bytes = 0;
  for (const LoadRun& run : runs) bytes += run.ids.size() * cache_.stride(run.index);
  return bytes;
}

std::shared_ptr<Loader::Rows> Loader::Begin(std::vector<LoadRun> runs, bool awaited) {
  auto load = std::make_shared<Rows>();
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
    waiting_readers_ = std::make_unique<ThreadPool>(HowToWait(*store_).calls);
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

// Needs no lock: until End nobody else looks at the rows, they stay where they are, and what is read of their tables
// never changes.
void Loader::Read(Rows* load) {
  struct Part {
    const LoadRun* run;
    size_t begin;
    size_t end;
  };
  const size_t rows_per_read = load->waits ? HowToWait(*store_).rows : kRowsPerRead;
  std::vector<Part> parts;
  for (const LoadRun& run : load->runs) {
    for (size_t begin = 0; begin < run.ids.size(); begin += rows_per_read) {
      parts.push_back({&run, begin, std::min(begin + rows_per_read, run.ids.size())});
    }
  }
  std::atomic<int64_t> blocks = 0;
  auto read = [&](size_t p, int) {
    const auto& [run, begin, end] = parts[p];
    Table& table = *run->table;
    const int64_t blocks_before = BlocksRead();
    try {
      store_->MultiGet(table.schema.number, std::span(run->ids).subspan(begin, end - begin),
                       table.layout.payload_size(), load->payloads.data() + run->first + begin,
                       load->found.data() + run->first + begin);
    } catch (const Error& error) {
      throw Error(error.code(), "table \"" + table.schema.name + "\": " + error.what());
    }
    blocks.fetch_add(BlocksRead() - blocks_before, std::memory_order_relaxed);
    RowBounds bounds;
    for (size_t i = begin; i < end; ++i) {
      if (const Found found = load->found[run->first + i]; found != Found::kRow) {
        char* row = RowAt(arena_, load->slots[run->first + i]);
        const RowHeader header = *HeaderOf(row, table.layout);
        table.DrawPayload(compute_.kernels->draw_row, run->ids[i], run->initial_state, row);
        if (found == Found::kSighting) *HeaderOf(row, table.layout) = header;
      }
      bounds.Add(compute_.kernels->row_bounds(table.layout, load->payloads[run->first + i]));
    }
    table.bounds.Add(bounds);
  };
  if (load->waits) {
    waiting_readers_->ParallelFor(parts.size(), read);
  } else if (!load->awaited) {
    compute_.threads->ParallelFor(parts.size(), read);
  } else {
    // Without the others: they are the model's now.
    const DefaultFloatEnvironment environment;
    for (size_t p = 0; p < parts.size(); ++p) read(p, 0);
  }
  const double share = static_cast<double>(blocks) / static_cast<double>(load->slots.size());
  reads_wait_ = direct_io_ || share > kWaitingShare;
}

void Loader::End(const Rows& load, bool complete) {
  for (size_t i = 0; i < load.slots.size(); ++i) {
    char* row = cache_.Row(load.slots[i]);
    if (complete) {
      const bool is_row = load.found[i] == Found::kRow;
      SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~(is_row ? kLoading | kAbsent : kLoading)));
    } else {
      cache_.Erase(HashTag(RowTable(row), RowId(row)), load.slots[i]);
    }
  }
  for (uint32_t segment : load.segments) cache_.Unpin(segment);
  rows_->progress.NotifyAll();
}

void Loader::Load(std::vector<LoadRun> runs) {
  const std::shared_ptr<Rows> load = Begin(std::move(runs), /*awaited=*/false);
  try {
    const MutexUnlock unlocked(rows_->mutex());
    Read(load.get());
  } catch (...) {
    End(*load, false);
    throw;
  }
  End(*load, true);
}

void Loader::LoadInBackground(std::vector<LoadRun> runs) {
  if (background_ == nullptr) background_ = std::make_unique<Worker>();
  const std::shared_ptr<Rows> load = Begin(std::move(runs), /*awaited=*/true);
  try {
    background_->Post([this, load] {
      bool complete = true;
      try {
        Read(load.get());
      } catch (...) {
        complete = false;
      }
      const MutexLock lock(rows_->mutex());
      End(*load, complete);
    });
  } catch (...) {
    End(*load, false);
    throw;
  }
}

void Loader::AwaitLoading(std::span<const Unit> units) {
  for (const Unit& unit : units) {
    if (unit.loading == 0) continue;
    for (size_t i = 0; i < unit.num_ids(); ++i) {
      const Slot slot = unit.slots()[i];
      if (slot == kMissingSlot) continue;
      const char* row = RowAt(arena_, slot);
      rows_->progress.Wait(rows_->mutex(), [&] { return !(RowFlags(row) & kLoading); });
    }
  }
}

}  // namespace damo
