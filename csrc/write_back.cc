#include "write_back.h"

#include <algorithm>
#include <cstring>

#include "status.h"

namespace damo {
namespace {

// Of rows in one write, which is exceeded by a segment at most: enough to be worth sorting, little enough that copying
// them does not hold up a training step.
constexpr size_t kBytesPerWrite = size_t{2} << 20;

void SortByKey(std::vector<RowWrite>* writes) {
  std::sort(writes->begin(), writes->end(),
            [](const RowWrite& a, const RowWrite& b) { return a.table != b.table ? a.table < b.table : a.id < b.id; });
}

}  // namespace

// What the background thread took out of the cache for one write.
struct WriteBack::Copies {
  std::vector<uint32_t> segments;  // pinned
  std::vector<Slot> slots;
  std::vector<RowWrite> writes;
  std::vector<char> payloads;
};

WriteBack::WriteBack(RowStore* rows, RowCache* cache, const Tables* tables, std::mutex* store_mutex,
                     std::condition_variable* progress)
    : rows_(rows), cache_(cache), tables_(tables), mutex_(store_mutex), progress_(progress), thread_([this] {
        Loop();
      }) {}

WriteBack::~WriteBack() {
  {
    std::lock_guard lock(*mutex_);
    stop_ = true;
  }
  work_.notify_all();
  thread_.join();
}

void WriteBack::Wake() {
  wanted_ = true;
  work_.notify_one();
}

void WriteBack::Write(const std::vector<uint32_t>& segments, bool evictable_only, std::unique_lock<std::mutex>& lock) {
  WaitIdle(lock);
  std::vector<Slot> slots;
  std::vector<RowWrite> writes;
  size_t bytes = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const size_t before = slots.size();
    cache_->CollectDirty(segments[i], evictable_only, &slots);
    bytes += PayloadBytes(slots, before);
    if (bytes < kBytesPerWrite && i + 1 < segments.size()) continue;
    if (slots.empty()) continue;
    writes.clear();
    for (Slot slot : slots) {
      const char* row = cache_->Row(slot);
      const Table& table = (*tables_)[RowTable(row)];
      writes.push_back({table.schema.number, RowId(row), row + kPayloadOffset, table.layout.payload_size(), 0});
    }
    SortByKey(&writes);
    rows_->Write(writes);
    rows_written_ += writes.size();
    for (Slot slot : slots) {
      char* row = cache_->Row(slot);
      SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~kDirty));
    }
    slots.clear();
    bytes = 0;
  }
  if (evictable_only) return;
  for (uint32_t segment : segments) cache_->MarkClean(segment);
}

// Of slots[first] and those behind it.
size_t WriteBack::PayloadBytes(const std::vector<Slot>& slots, size_t first) const {
  size_t bytes = 0;
  for (size_t i = first; i < slots.size(); ++i) {
    bytes += (*tables_)[RowTable(cache_->Row(slots[i]))].layout.payload_size();
  }
  return bytes;
}

// Takes the next victims' dirty rows. They count as clean from here on: an update that comes before the write is over
// makes them dirty again, and the segment stays pinned until then.
bool WriteBack::Gather(Copies* copies) {
  copies->segments.clear();
  copies->slots.clear();
  const size_t ahead = std::max<size_t>(8, cache_->row_capacity_bytes() / cache_->segment_bytes() / 16);
  size_t bytes = 0;
  for (uint32_t segment : cache_->NextVictims(ahead)) {
    if (!cache_->NeedsCleaning(segment)) continue;
    const size_t before = copies->slots.size();
    cache_->CollectDirty(segment, true, &copies->slots);
    bytes += PayloadBytes(copies->slots, before);
    cache_->MarkCleaned(segment);
    cache_->Pin(segment);
    copies->segments.push_back(segment);
    if (bytes >= kBytesPerWrite) break;
  }
  if (copies->slots.empty()) {
    for (uint32_t segment : copies->segments) cache_->Unpin(segment);
    return false;
  }
  copies->payloads.resize(bytes);
  copies->writes.clear();
  char* to = copies->payloads.data();
  for (Slot slot : copies->slots) {
    char* row = cache_->Row(slot);
    const Table& table = (*tables_)[RowTable(row)];
    const size_t size = table.layout.payload_size();
    std::memcpy(to, row + kPayloadOffset, size);
    SetRowFlags(row, static_cast<uint8_t>(RowFlags(row) & ~kDirty));
    copies->writes.push_back({table.schema.number, RowId(row), to, size, 0});
    to += size;
  }
  return true;
}

void WriteBack::Loop() {
  Copies copies;
  std::unique_lock lock(*mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || (wanted_ && waiting_ == 0); });
    if (stop_) return;
    if (!Gather(&copies)) {
      wanted_ = false;
      lock.unlock();
      rows_->ReleaseFreedMemory();
      lock.lock();
      continue;
    }
    busy_ = true;
    lock.unlock();
    bool written = true;
    SortByKey(&copies.writes);
    try {
      rows_->Write(copies.writes);
    } catch (...) {
      // The rows stay dirty in the cache. Whoever needs their room writes them again, and gets the error.
      written = false;
    }
    lock.lock();
    rows_written_ += written ? copies.writes.size() : 0;
    if (!written) {
      for (Slot slot : copies.slots) {
        if (!(RowFlags(cache_->Row(slot)) & kDead)) cache_->MarkDirty(slot);
      }
      wanted_ = false;
    }
    for (uint32_t segment : copies.segments) cache_->Unpin(segment);
    busy_ = false;
    progress_->notify_all();
  }
}

}  // namespace damo
