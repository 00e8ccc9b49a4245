// The rows in memory, of all tables, within one budget: an index and an arena.
//
// The arena is cut into segments of equal size, and rows of any size are appended to the open segment of one of two
// queues: eviction takes the oldest segment of a queue, copies some of its rows to an open one, and drops the rest. So
// memory comes back in whole segments whatever the sizes of the rows, and a row stays where it is for as long as its
// segment lives. Which segments and which rows is the policy's to say: replacement.h.
//
// What is not said to throw, or to fill a vector, allocates nothing: once there is room, nothing fails half-way.
//
// Not thread-safe, but for Find, Prefetch and Touch, which may run concurrently with each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/huge_pages.h"
#include "cache/hash_index.h"
#include "cache/replacement.h"
#include "row/row.h"

namespace damo {

struct RowCacheOptions {
  size_t bytes = 0;           // index, filter and arena together
  size_t segment_bytes = 0;   // a power of two; 0 chooses by `bytes`
  size_t resident_bytes = 0;  // what Trim leaves in the arena; 0 for no limit. For tests.
};

class RowCache {
 public:
  explicit RowCache(const RowCacheOptions& options);

  // Makes room in the index for rows of this layout; returns the table's number in the cache. The cache may then hold
  // more segments than it should: evict while NeedsEviction(0), then call ReleaseFreeSegments. Throws kInvalidArgument
  // if a row does not fit a segment, or std::bad_alloc, and then has changed nothing.
  uint16_t AddTable(const RowLayout& layout);
  // Takes back the last AddTable. REQUIRES: the table has no rows here.
  void RemoveLastTable() { tables_.pop_back(); }

  // Throws kInvalidArgument if a row of this layout does not fit a segment.
  void CheckRowSize(const RowLayout& layout) const;

  // Tells how many updates the table has had: what the counts in its rows are measured against.
  void SetIter(uint16_t table, uint32_t iter) { tables_[table].iter = iter; }

  const Arena& arena() const { return arena_; }
  const RowLayout& layout(uint16_t table) const { return tables_[table].layout; }
  char* Row(Slot slot) const { return RowAt(arena_, slot); }

  // ---- one operation (a lookup or an update of a batch)

  // Until the next call, several touches of a row are one use.
  void BeginOperation() { replacement_.BeginOperation(); }

  void PrefetchIndex(uint32_t tag) const { index_->Prefetch(tag); }
  // What Add and Evict need of index and filter.
  void PrefetchForChange(uint32_t tag) const {
    index_->Prefetch(tag);
    replacement_.ghosts().Prefetch(tag);
  }
  Slot Find(uint32_t tag, uint16_t table, int64_t id) const {
    return index_->Find(tag, [&](Slot slot) {
      const char* row = Row(slot);
      return RowId(row) == id && RowTable(row) == table;
    });
  }
  // The slot that `tag` probably stands for, for prefetching, without reading any row.
  Slot Guess(uint32_t tag) const {
    return index_->Find(tag, [](Slot) { return true; });
  }

  // Notes a use. Returns whether it is the first of a row that was awaited.
  bool Touch(Slot slot) const { return replacement_.Touch(Row(slot)); }

  // Rises whenever a slot may have become invalid.
  uint64_t epoch() const { return epoch_; }
  // Whether a slot found when epoch() was `epoch` still is the same row, unless ErasedSince(epoch).
  bool StillThere(Slot slot, uint64_t epoch) const { return segments_[SegmentOf(slot)].recycled_at <= epoch; }
  // Whether rows have been erased other than by eviction, or InvalidateSlots was called.
  bool ErasedSince(uint64_t epoch) const { return erased_at_ > epoch; }
  // No slot that was found before is to be trusted.
  void InvalidateSlots() { erased_at_ = ++epoch_; }

  // ---- adding and removing rows

  // Bytes of the arena that a row of `table` takes.
  size_t stride(uint16_t table) const { return tables_[table].stride; }

  // Adds a row with this key, flagged kAbsent and kLoading; its payload is the caller's to fill. The operation under
  // way uses it, or, with `awaited`, one to come. REQUIRES: the key is not there; NeedsEviction(all bytes added since)
  // was false.
  Slot Add(uint16_t table, int64_t id, uint32_t tag, bool awaited);

  // Removes a row.
  void Erase(uint32_t tag, Slot slot);
  // Removes all rows of a table. REQUIRES: none is kLoading, pinned, or in a capture.
  void EraseAll(uint16_t table);

  // A pinned row survives evictions, at another slot. Nothing but an operation under way pins rows, and unpins them.
  void PinRow(Slot slot) { SetRowFlags(Row(slot), RowFlags(Row(slot)) | kPinned); }
  void UnpinRow(Slot slot) { SetRowFlags(Row(slot), static_cast<uint8_t>(RowFlags(Row(slot)) & ~kPinned)); }

  void UnpinAll();
  // Whether a row of the table is on its way here.
  bool AnyLoading(uint16_t table) const;
  // Calls f(table, id) for each pinned row.
  template <class F>
  void ForEachPinned(F f) const {
    for (uint32_t segment = 0; segment < segments_.size(); ++segment) {
      ForEachRow(segment, [&](const char* row, Slot) {
        if (RowFlags(row) & kPinned) f(RowTable(row), RowId(row));
      });
    }
  }

  // Sets kDirty and kChanged in the row and in its segment.
  void MarkDirty(Slot slot) {
    char* row = Row(slot);
    SetRowFlags(row, RowFlags(row) | kDirty | kChanged);
    MarkSegmentDirty(slot);
  }
  // A write has taken these rows, or has failed to; those that were removed meanwhile are passed over.
  void MarkRowsClean(const std::vector<Slot>& slots) {
    for (Slot slot : slots) SetRowFlags(Row(slot), static_cast<uint8_t>(RowFlags(Row(slot)) & ~(kDirty | kChanged)));
  }
  void MarkRowsDirty(const std::vector<Slot>& slots) {
    for (Slot slot : slots) {
      if (!(RowFlags(Row(slot)) & kDead)) MarkDirty(slot);
    }
  }
  // For kernels that set the flags in rows themselves. Safe from several threads.
  void MarkSegmentDirty(Slot slot) {
    Segment& segment = segments_[SegmentOf(slot)];
    std::atomic_ref<bool>(segment.dirty).store(true, std::memory_order_relaxed);
    std::atomic_ref<bool>(segment.changed).store(true, std::memory_order_relaxed);
  }

  // ---- eviction

  // See Replacement.
  static constexpr uint64_t kNoArrival = Replacement::kNoArrival;
  uint64_t arrival() const { return replacement_.arrival(); }
  void KeepArrivals(uint64_t from) { replacement_.KeepArrivals(from); }
  std::vector<uint32_t> NextVictims(size_t n) const { return replacement_.NextVictims(n); }
  size_t spare_segments() const { return replacement_.spare_segments(); }

  // Whether segments have to be evicted before `bytes` of rows can be added.
  bool NeedsEviction(size_t bytes) const;
  // Appends the slots of rows that are dirty; with `evictable_only`, of those that an eviction now would drop.
  void CollectDirty(uint32_t segment, bool evictable_only, std::vector<Slot>* slots) const;
  // Evicts `segment`. REQUIRES: it is NextVictims(1)[0], not pinned, in no capture, and CollectDirty(segment, true)
  // finds nothing.
  void Evict(uint32_t segment);
  // Gives the memory of segments that are not in use back to the system.
  void ReleaseFreeSegments();
  // Gives back that of all rows, which are lost.
  void ReleaseMemory();
  // Memory that rows will come to and that none has been in, at most `bytes`: the first of it comes first.
  std::span<char> Untouched(size_t bytes) const;
  // Closes the open segments, so that NextVictims can name every segment that holds rows.
  void Seal();

  // A pinned segment is not evicted: its rows are being read or written.
  void Pin(uint32_t segment) { ++segments_[segment].pins; }
  void Unpin(uint32_t segment) { --segments_[segment].pins; }
  bool Pinned(uint32_t segment) const { return segments_[segment].pins > 0; }
  // No row of `segment` is dirty.
  void MarkClean(uint32_t segment) { segments_[segment].dirty = segments_[segment].changed = false; }
  // Its evictable rows need no second look ahead of eviction: few rows become dirty from now on and do not survive.
  void MarkCleaned(uint32_t segment) { segments_[segment].cleaned = true; }
  bool NeedsCleaning(uint32_t segment) const { return segments_[segment].dirty && !segments_[segment].cleaned; }

  // ---- a capture (engine/capture.h)

  // From now on `segment` is in the capture, if it may hold rows with `flag`, kDirty or kChanged; returns whether it
  // does.
  bool BeginCapture(uint32_t segment, uint8_t flag) {
    Segment& s = segments_[segment];
    return s.in_capture = flag == kChanged ? s.changed : s.dirty;
  }
  bool InCapture(uint32_t segment) const { return segments_[segment].in_capture; }
  // Appends the slots of its rows with `flag` that are not kKept.
  void CollectCaptured(uint32_t segment, uint8_t flag, std::vector<Slot>* slots) const;
  // Ends that: the rows that CollectCaptured has found are no longer kChanged.
  void EndCapture(uint32_t segment, uint8_t flag);

  uint32_t SegmentOf(Slot slot) const { return slot >> slot_to_segment_shift_; }
  std::vector<uint32_t> SegmentsInUse() const { return replacement_.SegmentsInUse(); }

  // ---- figures

  size_t rows() const { return index_->size(); }
  size_t rows(uint16_t table) const { return tables_[table].rows; }
  size_t segment_bytes() const { return segment_bytes_; }
  size_t resident_bytes() const;  // of the arena, in segments in use
  size_t memory_bytes() const;    // arena in use, index and filter
  size_t resident_limit() const { return options_.resident_bytes; }
  size_t row_capacity_bytes() const { return segment_limit_ * segment_bytes_; }

 private:
  struct Table {
    RowLayout layout;
    size_t stride;
    size_t rows;
    uint32_t iter;
  };
  struct Segment {
    size_t used = 0;
    uint64_t recycled_at = 0;
    uint32_t pins = 0;
    bool dirty = false;
    bool changed = false;  // since it was last in a capture
    bool cleaned = false;  // its evictable rows were written since it became a victim
    bool in_capture = false;
  };

  size_t StrideOf(const RowLayout& layout) const;
  size_t FirstOffset(uint32_t segment) const { return segment == 0 ? size_t{1} << arena_.unit_shift : 0; }
  Slot Append(Replacement::Queue queue, size_t stride);
  void OpenSegment(Replacement::Queue queue);
  // Copies a row of the segment `from`.
  Slot MoveToMain(const char* row, uint32_t from);
  template <class F>
  void ForEachRow(uint32_t segment, F f) const;
  void Resize(size_t min_stride);

  RowCacheOptions options_;
  Pages pages_;
  Arena arena_;
  size_t segment_bytes_;
  std::vector<Segment> segments_;
  Replacement replacement_;
  int slot_to_segment_shift_;
  size_t segment_limit_ = 0;
  size_t max_stride_ = 0;
  size_t min_stride_ = 0;
  uint64_t epoch_ = 1;
  uint64_t erased_at_ = 0;
  std::vector<Table> tables_;
  std::vector<uint32_t> free_;    // the next one last; those that were never in use first
  uint32_t first_untouched_ = 0;  // segment: those from here on were never in use
  std::unique_ptr<HashIndex> index_;
};

template <class F>
void RowCache::ForEachRow(uint32_t segment, F f) const {
  for (size_t offset = FirstOffset(segment); offset < segments_[segment].used;) {
    char* row = arena_.base + segment * segment_bytes_ + offset;
    const size_t stride = tables_[RowTable(row)].stride;
    if (!(RowFlags(row) & kDead)) f(row, static_cast<Slot>((segment * segment_bytes_ + offset) >> arena_.unit_shift));
    offset += stride;
  }
}

}  // namespace damo
