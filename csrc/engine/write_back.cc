#include "engine/write_back.h"

#include <algorithm>

#include "base/thread.h"
#include "engine/row_copies.h"

namespace damo {
namespace {

// How much of rows goes into one write, which is exceeded by a segment at most: enough to be worth sorting, little
// enough that copying them does not hold up a training step.
constexpr size_t kBytesPerWrite = size_t{2} << 20;

// How many segments a part has: a fraction of a second's work.
constexpr size_t kSegmentsPerPart = 16;

}  // namespace

WriteBack::WriteBack(RowStore* store, Journal* journal, CachedTables* rows)
    : store_(store), journal_(journal), rows_(rows), cache_(rows->cache), thread_(StartThread([this] { Loop(); })) {}

WriteBack::~WriteBack() { Stop(); }

void WriteBack::Stop() {
  {
    const MutexLock lock(rows_->mutex());
    stop_ = true;
  }
  work_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void WriteBack::Wake() {
  wanted_ = true;
  work_.NotifyOne();
}

void WriteBack::WriteEvictable(const std::vector<uint32_t>& segments) {
  WaitIdle();
  Write(segments, true, [&](std::span<const RowWrite> rows) { journal_->NoteWritten(rows); });
}

void WriteBack::WriteAll() {
  WaitIdle();
  journal_->Clear();
  const std::vector<uint32_t> segments = cache_.SegmentsInUse();
  Write(segments, false, [](std::span<const RowWrite>) {});
  for (uint32_t segment : segments) cache_.MarkClean(segment);
  journal_->Clear(/*all_written=*/true);
}

std::pair<size_t, size_t> WriteBack::WritePart(size_t first) {
  WaitIdle();
  journal_->Clear();  // which comes before what is written
  const std::vector<uint32_t> segments = cache_.SegmentsInUse();
  const size_t begin = std::min(first, segments.size());
  const size_t end = std::min(begin + kSegmentsPerPart, segments.size());
  const auto at = [&](size_t i) { return segments.begin() + static_cast<ptrdiff_t>(i); };
  Write({at(begin), at(end)}, false, [](std::span<const RowWrite>) {});
  return {end, segments.size()};
}

// Calls written(rows) for those of each write.
template <class F>
void WriteBack::Write(const std::vector<uint32_t>& segments, bool evictable_only, F written) {
  std::vector<Slot> slots;
  std::vector<RowWrite> writes;
  size_t bytes = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const size_t before = slots.size();
    cache_.CollectDirty(segments[i], evictable_only, &slots);
    bytes += PayloadBytes(slots, before);
    if (bytes < kBytesPerWrite && i + 1 < segments.size()) continue;
    if (slots.empty()) continue;
    writes.clear();
    for (Slot slot : slots) {
      writes.push_back(RowCopies::WriteOf(rows_->tables, cache_.Row(slot)));
    }
    RowCopies::SortByKey(&writes);
    store_->Write(writes);
    written(writes);
    rows_written_ += writes.size();
    cache_.MarkRowsClean(slots);
    slots.clear();
    bytes = 0;
  }
}

// How many bytes the payloads of slots[first] and those behind it have.
size_t WriteBack::PayloadBytes(const std::vector<Slot>& slots, size_t first) const {
  size_t bytes = 0;
  for (size_t i = first; i < slots.size(); ++i) {
    bytes += rows_->tables[RowTable(cache_.Row(slots[i]))].layout.payload_size();
  }
  return bytes;
}

// The next victims' dirty rows, none if there are none.
WriteBack::Taken WriteBack::Take() const {
  Taken taken;
  const size_t ahead = std::max<size_t>(8, cache_.row_capacity_bytes() / cache_.segment_bytes() / 16);
  size_t bytes = 0;
  for (uint32_t segment : cache_.NextVictims(ahead)) {
    if (!cache_.NeedsCleaning(segment)) continue;
    const size_t before = taken.slots.size();
    cache_.CollectDirty(segment, true, &taken.slots);
    bytes += PayloadBytes(taken.slots, before);
    taken.cleaned.push_back(segment);
    if (taken.slots.size() == before) continue;
    taken.segments.push_back(segment);
    if (bytes >= kBytesPerWrite) break;
  }
  return taken;
}

void WriteBack::Loop() {
  const MutexLock lock(rows_->mutex());
  while (true) {
    work_.Wait(rows_->mutex(), [&]() DAMO_REQUIRES(store_mutex) { return stop_ || (wanted_ && waiting_ == 0); });
    if (stop_) return;
    bool wrote = false;
    try {
      wrote = WriteAhead();
    } catch (...) {
      // The rows are dirty in the cache. Whoever needs their room writes them again, and gets the error.
    }
    if (wrote) continue;
    wanted_ = false;
    const MutexUnlock unlocked(rows_->mutex());
    store_->ReleaseFreedMemory();
  }
}

bool WriteBack::WriteAhead() {
  const Taken taken = Take();
  RowCopies copies(*rows_, taken.slots);
  for (uint32_t segment : taken.cleaned) cache_.MarkCleaned(segment);
  if (taken.slots.empty()) return false;
  // They count as clean from here on: an update that comes before the write is over makes them dirty again.
  cache_.MarkRowsClean(taken.slots);
  for (uint32_t segment : taken.segments) cache_.Pin(segment);
  busy_ = true;
  const auto end = [&]() DAMO_REQUIRES(store_mutex) {
    for (uint32_t segment : taken.segments) cache_.Unpin(segment);
    busy_ = false;
    rows_->progress.NotifyAll();
  };
  try {
    const MutexUnlock unlocked(rows_->mutex());
    store_->Write(copies.Sorted());
    journal_->NoteWritten(copies.all());
  } catch (...) {
    cache_.MarkRowsDirty(taken.slots);
    end();
    throw;
  }
  rows_written_ += copies.rows();
  end();
  return true;
}

}  // namespace damo
