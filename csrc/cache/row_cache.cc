#include "cache/row_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "base/status.h"
#include "cache/cache_split.h"

namespace damo {
namespace {

constexpr size_t kRowsAhead = 16;

}  // namespace

RowCache::RowCache(const RowCacheOptions& options)
    : options_(options),
      segment_bytes_(options.segment_bytes ? options.segment_bytes : ChooseSegmentBytes(options.bytes)),
      segments_(options.bytes / segment_bytes_),
      replacement_(segments_.size()) {
  const size_t segments = segments_.size();
  arena_.unit_shift = kLeastUnitShift;
  while (segments * segment_bytes_ >> arena_.unit_shift > UINT32_MAX) ++arena_.unit_shift;
  slot_to_segment_shift_ = std::countr_zero(segment_bytes_) - arena_.unit_shift;
  pages_ = AllocatePages(segments * segment_bytes_);
  arena_.base = static_cast<char*>(pages_.get());
  for (size_t i = segments; i-- > 0;) free_.push_back(static_cast<uint32_t>(i));
  index_ = std::make_unique<HashIndex>(0);
  segment_limit_ = segments;
}

size_t RowCache::StrideOf(const RowLayout& layout) const { return RowStride(layout.row_size(), arena_.unit_shift); }

void RowCache::CheckRowSize(const RowLayout& layout) const {
  const size_t stride = StrideOf(layout);
  if (stride <= segment_bytes_ / 4) return;
  throw Error(ErrorCode::kInvalidArgument, "a row of " + std::to_string(stride) +
                                               " bytes is too large for this memory budget: rows may have " +
                                               std::to_string(segment_bytes_ / 4) + " bytes");
}

uint16_t RowCache::AddTable(const RowLayout& layout) {
  CheckRowSize(layout);
  const size_t stride = StrideOf(layout);
  if (tables_.size() == UINT16_MAX) throw Error(ErrorCode::kInvalidArgument, "a store holds at most 65535 open tables");
  tables_.push_back({layout, stride, 0, 0});
  try {
    if (min_stride_ == 0 || stride < min_stride_) Resize(stride);
  } catch (...) {
    tables_.pop_back();
    throw;
  }
  max_stride_ = std::max(max_stride_, stride);
  return static_cast<uint16_t>(tables_.size() - 1);
}

// Splits the budget between index, filter and segments so that the index has room for a cache full of the smallest
// rows.
void RowCache::Resize(size_t min_stride) {
  const CacheSplit split = SplitCache(options_.bytes, segment_bytes_, min_stride);
  auto index = std::make_unique<HashIndex>(split.rows);
  GhostFilter ghosts(split.rows);
  index->InsertAll(*index_);
  index_ = std::move(index);
  replacement_.SetGhosts(std::move(ghosts));
  min_stride_ = min_stride;
  segment_limit_ = split.segments;
}

void RowCache::ReleaseFreeSegments() {
  for (uint32_t segment : free_) {
    madvise(arena_.base + segment * segment_bytes_, segment_bytes_, MADV_DONTNEED);
  }
}

void RowCache::ReleaseMemory() { madvise(arena_.base, first_untouched_ * segment_bytes_, MADV_DONTNEED); }

std::span<char> RowCache::Untouched(size_t bytes) const {
  const size_t begin = first_untouched_ * segment_bytes_, limit = segment_limit_ * segment_bytes_;
  return {arena_.base + begin, begin < limit ? std::min(bytes, limit - begin) : 0};
}

void RowCache::OpenSegment(Replacement::Queue queue) {
  const uint32_t segment = free_.back();
  free_.pop_back();
  first_untouched_ = std::max(first_untouched_, segment + 1);
  segments_[segment].used = FirstOffset(segment);
  replacement_.Open(queue, segment);
}

Slot RowCache::Append(Replacement::Queue queue, size_t stride) {
  const uint32_t open = replacement_.open_segment(queue);
  if (open == Replacement::kNoSegment || segment_bytes_ - segments_[open].used < stride) OpenSegment(queue);
  const uint32_t segment = replacement_.open_segment(queue);
  const size_t offset = segment * segment_bytes_ + segments_[segment].used;
  segments_[segment].used += stride;
  return static_cast<Slot>(offset >> arena_.unit_shift);
}

Slot RowCache::Add(uint16_t table, int64_t id, uint32_t tag, bool awaited) {
  const Slot slot = Append(replacement_.Admit(tag), tables_[table].stride);
  char* row = Row(slot);
  SetRowKey(row, table, id);
  SetRowFlags(row, kAbsent | kLoading);
  replacement_.NoteArrival(row, awaited);
  ++tables_[table].rows;
  index_->Insert(tag, slot);
  return slot;
}

void RowCache::Erase(uint32_t tag, Slot slot) {
  index_->Erase(tag, slot);
  SetRowFlags(Row(slot), kDead);
  --tables_[RowTable(Row(slot))].rows;
  erased_at_ = ++epoch_;
}

void RowCache::EraseAll(uint16_t table) {
  for (uint32_t segment = 0; segment < segments_.size(); ++segment) {
    ForEachRow(segment, [&](const char* row, Slot slot) {
      if (RowTable(row) == table) Erase(HashTag(table, RowId(row)), slot);
    });
  }
}

bool RowCache::AnyLoading(uint16_t table) const {
  bool any = false;
  for (uint32_t segment = 0; segment < segments_.size(); ++segment) {
    ForEachRow(segment, [&](const char* row, Slot) { any |= RowTable(row) == table && (RowFlags(row) & kLoading); });
  }
  return any;
}

bool RowCache::NeedsEviction(size_t bytes) const {
  const size_t in_use = segments_.size() - free_.size();
  // Each segment may end in a gap smaller than a row, and the two queues fill separately.
  const size_t needed = (bytes + segment_bytes_ - max_stride_ - 1) / (segment_bytes_ - max_stride_) + kReservedSegments;
  return in_use + needed > segment_limit_;
}

void RowCache::UnpinAll() {
  for (uint32_t segment = 0; segment < segments_.size(); ++segment) {
    ForEachRow(segment, [&](char*, Slot slot) { UnpinRow(slot); });
  }
}

void RowCache::CollectDirty(uint32_t segment, bool evictable_only, std::vector<Slot>* slots) const {
  if (!segments_[segment].dirty) return;
  const auto stays = [&](const char* row) {
    const Table& table = tables_[RowTable(row)];
    return (RowFlags(row) & kPinned) || replacement_.WouldKeep(row, table.layout, table.iter, segment);
  };
  ForEachRow(segment, [&](char* row, Slot slot) {
    if ((RowFlags(row) & kDirty) && !(evictable_only && stays(row))) slots->push_back(slot);
  });
}

void RowCache::CollectCaptured(uint32_t segment, uint8_t flag, std::vector<Slot>* slots) const {
  ForEachRow(segment, [&](char* row, Slot slot) {
    if ((RowFlags(row) & flag) && !(RowFlags(row) & kKept)) slots->push_back(slot);
  });
}

void RowCache::EndCapture(uint32_t segment, uint8_t flag) {
  segments_[segment].in_capture = segments_[segment].changed = false;
  ForEachRow(segment, [&](char* row, Slot) {
    const uint8_t flags = RowFlags(row);
    if (flags & kKept) {
      SetRowFlags(row, static_cast<uint8_t>(flags & ~kKept));
      segments_[segment].changed = true;
    } else if (flags & flag) {
      SetRowFlags(row, static_cast<uint8_t>(flags & ~kChanged));
    }
  });
}

Slot RowCache::MoveToMain(const char* row, uint32_t from) {
  const size_t stride = tables_[RowTable(row)].stride;
  const Slot to = Append(Replacement::Queue::kMain, stride);
  std::memcpy(Row(to), row, stride);
  if (RowFlags(row) & kDirty) {
    Segment& segment = segments_[SegmentOf(to)];
    segment.dirty = true;
    segment.changed |= segments_[from].changed;
    // What the capture needs of it was taken before, or its own segment would be in it.
    if (segment.in_capture) SetRowFlags(Row(to), RowFlags(row) | kKept);
  }
  return to;
}

void RowCache::Evict(uint32_t segment) {
  Replacement::Eviction eviction = replacement_.Begin(segment);
  const auto evict = [&](char* row, Slot slot, uint32_t tag) {
    Table& table = tables_[RowTable(row)];
    if ((RowFlags(row) & kPinned) || replacement_.Keeps(row, table.layout, table.iter, &eviction)) {
      const Slot to = MoveToMain(row, segment);
      replacement_.Moved(Row(to), eviction);
      index_->Replace(tag, slot, to);
    } else {
      replacement_.Dropped(row, tag, eviction);
      index_->Erase(tag, slot);
      --table.rows;
    }
  };
  // What a row needs of the index and the filter is fetched some rows ahead.
  struct Leaving {
    char* row;
    Slot slot;
    uint32_t tag;
  };
  std::array<Leaving, kRowsAhead> ahead;
  size_t n = 0;
  ForEachRow(segment, [&](char* row, Slot slot) {
    Leaving& next = ahead[n % kRowsAhead];
    if (n++ >= kRowsAhead) evict(next.row, next.slot, next.tag);
    next = {row, slot, HashTag(RowTable(row), RowId(row))};
    PrefetchForChange(next.tag);
  });
  for (size_t i = n < kRowsAhead ? 0 : n - kRowsAhead; i < n; ++i) {
    evict(ahead[i % kRowsAhead].row, ahead[i % kRowsAhead].slot, ahead[i % kRowsAhead].tag);
  }
  replacement_.End(eviction);
  segments_[segment].recycled_at = ++epoch_;
  segments_[segment].used = 0;
  segments_[segment].dirty = segments_[segment].changed = segments_[segment].cleaned = false;
  free_.push_back(segment);
}

void RowCache::Seal() {
  for (const auto queue : {Replacement::Queue::kProbation, Replacement::Queue::kMain}) {
    const uint32_t open = replacement_.open_segment(queue);
    if (open == Replacement::kNoSegment || segments_[open].used == FirstOffset(open) || free_.empty()) continue;
    OpenSegment(queue);
  }
}

size_t RowCache::resident_bytes() const {
  size_t bytes = 0;
  for (uint32_t segment : SegmentsInUse()) bytes += segments_[segment].used - FirstOffset(segment);
  return bytes;
}

size_t RowCache::memory_bytes() const {
  return (segments_.size() - free_.size()) * segment_bytes_ + index_->capacity() * sizeof(uint64_t) +
         replacement_.ghosts().memory_bytes();
}

}  // namespace damo
