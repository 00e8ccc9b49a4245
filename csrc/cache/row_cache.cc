#include "cache/row_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "base/status.h"

namespace damo {
namespace {

constexpr size_t kLargestSegment = size_t{1} << 20;
constexpr size_t kSmallestSegment = size_t{1} << 18;
// Segments kept free beyond what was asked for: eviction copies survivors before it frees what they came from.
constexpr size_t kReservedSegments = 2;
// What an eviction from main should keep of a segment; more raises the bar for frequent rows, less lowers it.
constexpr double kKeptShare = 0.85;
// The bar does not sink below this, so that it rises above any row within a few evictions that free nothing.
constexpr double kLeastFrequent = 1e-6;
// No row is updated more than once in a step.
constexpr double kMostFrequent = 1.5;
// Probation's share of the segments in use.
constexpr double kProbationShare = 0.05;
constexpr size_t kRowsAhead = 16;

size_t ChooseSegmentBytes(size_t bytes) {
  return std::clamp(std::bit_floor(bytes / 256), kSmallestSegment, kLargestSegment);
}

uint16_t Fingerprint(uint32_t tag) { return static_cast<uint16_t>(tag | 1); }

}  // namespace

RowCache::RowCache(const RowCacheOptions& options) : options_(options) {
  segment_bytes_ = options.segment_bytes ? options.segment_bytes : ChooseSegmentBytes(options.bytes);
  const size_t segments = options.bytes / segment_bytes_;
  arena_.unit_shift = 3;
  while (segments * segment_bytes_ >> arena_.unit_shift > UINT32_MAX) ++arena_.unit_shift;
  slot_to_segment_shift_ = std::countr_zero(segment_bytes_) - arena_.unit_shift;
  pages_ = AllocatePages(segments * segment_bytes_);
  arena_.base = static_cast<char*>(pages_.get());
  segments_.resize(segments);
  for (size_t i = segments; i-- > 0;) free_.push_back(static_cast<uint32_t>(i));
  index_ = std::make_unique<HashIndex>(0);
  segment_limit_ = segments;
}

size_t RowCache::StrideOf(const RowLayout& layout) const {
  const size_t unit = size_t{1} << arena_.unit_shift;
  return (layout.row_size() + unit - 1) / unit * unit;
}

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
  if (min_stride_ == 0 || stride < min_stride_) Resize(stride);
  tables_.push_back({layout, stride, 0, 0});
  max_stride_ = std::max(max_stride_, stride);
  return static_cast<uint16_t>(tables_.size() - 1);
}

// Splits the budget between index, filter and segments so that the index has room for a cache full of the smallest
// rows.
void RowCache::Resize(size_t min_stride) {
  const size_t rows = options_.bytes / (min_stride + HashIndex::BytesFor(1000) / 1000 + sizeof(uint16_t));
  auto index = std::make_unique<HashIndex>(rows);
  index->InsertAll(*index_);
  index_ = std::move(index);
  ghosts_.assign(rows + 1, 0);
  min_stride_ = min_stride;
  const size_t overhead = HashIndex::BytesFor(rows) + rows * sizeof(uint16_t);
  segment_limit_ = std::min(segments_.size(), (options_.bytes - overhead) / segment_bytes_);
}

void RowCache::ReleaseFreeSegments() {
  for (uint32_t segment : free_) {
    madvise(arena_.base + segment * segment_bytes_, segment_bytes_, MADV_DONTNEED);
  }
}

size_t RowCache::Room(const Queue& queue, size_t stride) const {
  if (queue.empty()) return 0;
  return (segment_bytes_ - segments_[queue.back()].used) / stride * stride;
}

void RowCache::OpenSegment(Queue* queue) {
  const uint32_t segment = free_.back();
  free_.pop_back();
  segments_[segment].used = FirstOffset(segment);
  segments_[segment].in_main = queue == &main_;
  segments_[segment].arrival = ++arrivals_;
  queue->push_back(segment);
}

Slot RowCache::Append(Queue* queue, size_t stride) {
  if (Room(*queue, stride) == 0) OpenSegment(queue);
  const uint32_t segment = queue->back();
  const size_t offset = segment * segment_bytes_ + segments_[segment].used;
  segments_[segment].used += stride;
  return static_cast<Slot>(offset >> arena_.unit_shift);
}

Slot RowCache::Add(uint16_t table, int64_t id, uint32_t tag, bool awaited) {
  uint16_t& ghost = ghosts_[GhostOf(tag)];
  const bool came_back = ghost == Fingerprint(tag);
  if (came_back) ghost = 0;
  const Slot slot = Append(came_back ? &main_ : &probation_, tables_[table].stride);
  char* row = Row(slot);
  std::memcpy(row, &id, sizeof id);
  std::memcpy(row + kTableOffset, &table, sizeof table);
  SetRowFlags(row, kAbsent | kLoading);
  row[kTouchOffset] = static_cast<char>((awaited ? kAwaited : operation_) << 2);
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

bool RowCache::NeedsEviction(size_t bytes) const {
  const size_t in_use = segments_.size() - free_.size();
  // Each segment may end in a gap smaller than a row, and the two queues fill separately.
  const size_t needed = (bytes + segment_bytes_ - max_stride_ - 1) / (segment_bytes_ - max_stride_) + kReservedSegments;
  return in_use + needed > segment_limit_;
}

// Sealed ones in probation.
size_t RowCache::awaited_segments() const {
  const auto newer = [&](uint32_t segment) { return segments_[segment].arrival >= awaited_from_; };
  const size_t sealed = probation_.size() - (probation_.empty() ? 0 : 1);
  return static_cast<size_t>(
      std::count_if(probation_.begin(), probation_.begin() + static_cast<ptrdiff_t>(sealed), newer));
}

size_t RowCache::spare_segments() const {
  const size_t sealed_p = probation_.size() - (probation_.empty() ? 0 : 1);
  const size_t sealed_m = main_.size() - (main_.empty() ? 0 : 1);
  return sealed_m + sealed_p - awaited_segments();
}

std::vector<uint32_t> RowCache::NextVictims(size_t n) const {
  // The open segments stay, unless nothing else is left.
  std::vector<uint32_t> victims;
  size_t p = 0, m = 0;
  const size_t sealed_p = probation_.size() - (probation_.empty() ? 0 : 1);
  const size_t sealed_m = main_.size() - (main_.empty() ? 0 : 1);
  const double probation =
      std::max(kProbationShare * static_cast<double>(sealed_p + sealed_m), static_cast<double>(awaited_segments()));
  while (victims.size() < n && p + m < sealed_p + sealed_m) {
    const bool from_probation = m == sealed_m || (p<sealed_p&& static_cast<double>(sealed_p - p)> probation);
    victims.push_back(from_probation ? probation_[p++] : main_[m++]);
  }
  return victims;
}

// By its share of the table's updates so far, unless it has had none for four times as long as that lets expect.
bool RowCache::Frequent(const char* row) const {
  const Table& table = tables_[RowTable(row)];
  const auto [last_step, count] = PayloadCounters(row + kPayloadOffset, table.layout);
  const double rate = static_cast<double>(count) / std::max(table.iter, 1u);
  return rate >= frequent_ && rate * (static_cast<double>(table.iter) - last_step) < 4;
}

bool RowCache::Survives(const char* row, bool in_main) const {
  const int uses = row[kTouchOffset] & 3;
  return (RowFlags(row) & kPinned) || uses >= (in_main ? 2 : 1) || Frequent(row);
}

template <class F>
void RowCache::ForEachRow(uint32_t segment, F f) const {
  for (size_t offset = FirstOffset(segment); offset < segments_[segment].used;) {
    char* row = arena_.base + segment * segment_bytes_ + offset;
    const size_t stride = tables_[RowTable(row)].stride;
    if (!(RowFlags(row) & kDead)) f(row, static_cast<Slot>((segment * segment_bytes_ + offset) >> arena_.unit_shift));
    offset += stride;
  }
}

void RowCache::CollectDirty(uint32_t segment, bool evictable_only, std::vector<Slot>* slots) const {
  if (!segments_[segment].dirty) return;
  const bool in_main = segments_[segment].in_main;
  ForEachRow(segment, [&](char* row, Slot slot) {
    if ((RowFlags(row) & kDirty) && !(evictable_only && Survives(row, in_main))) slots->push_back(slot);
  });
}

void RowCache::EndSnapshot(uint32_t segment, uint8_t flag, std::vector<Slot>* slots) {
  segments_[segment].in_snapshot = segments_[segment].changed = false;
  ForEachRow(segment, [&](char* row, Slot slot) {
    const uint8_t flags = RowFlags(row);
    if (flags & kKept) {
      SetRowFlags(row, static_cast<uint8_t>(flags & ~kKept));
      segments_[segment].changed = true;
    } else if (flags & flag) {
      SetRowFlags(row, static_cast<uint8_t>(flags & ~kChanged));
      slots->push_back(slot);
    }
  });
}

void RowCache::Evict(uint32_t segment) {
  const bool in_main = segments_[segment].in_main;
  (in_main ? main_ : probation_).pop_front();
  size_t rows = 0, kept = 0;
  const auto evict = [&](char* row, Slot slot, uint32_t tag) {
    const uint16_t table = RowTable(row);
    const bool pinned = RowFlags(row) & kPinned;
    rows += pinned ? 0 : 1;
    if (Survives(row, in_main)) {
      kept += pinned ? 0 : 1;
      const Slot to = Append(&main_, tables_[table].stride);
      std::memcpy(Row(to), row, tables_[table].stride);
      uint8_t* touch = reinterpret_cast<uint8_t*>(Row(to) + kTouchOffset);
      *touch = static_cast<uint8_t>((*touch & ~3) | ((*touch & 3) > 0 && in_main ? (*touch & 3) - 1 : 0));
      if (RowFlags(row) & kDirty) {
        segments_[SegmentOf(to)].dirty = true;
        segments_[SegmentOf(to)].changed |= segments_[segment].changed;
        // What the snapshot needs of it was taken before, or its own segment would be in it.
        if (segments_[SegmentOf(to)].in_snapshot) SetRowFlags(Row(to), RowFlags(row) | kKept);
      }
      index_->Replace(tag, slot, to);
    } else {
      if (!in_main && !(RowFlags(row) & kAbsent)) {
        ghosts_[GhostOf(tag)] = Fingerprint(tag);
      }
      index_->Erase(tag, slot);
      --tables_[table].rows;
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
  if (in_main && rows > 0) {
    const double share = static_cast<double>(kept) / static_cast<double>(rows);
    const double factor = share == 1 ? 16 : share > kKeptShare ? 1.05 : 0.95;
    frequent_ = std::clamp(frequent_ * factor, kLeastFrequent, kMostFrequent);
  }
  segments_[segment].recycled_at = ++epoch_;
  segments_[segment].dirty = segments_[segment].changed = segments_[segment].cleaned = false;
  free_.push_back(segment);
}

void RowCache::Seal() {
  for (Queue* queue : {&probation_, &main_}) {
    if (queue->empty() || segments_[queue->back()].used == FirstOffset(queue->back()) || free_.empty()) continue;
    OpenSegment(queue);
  }
}

std::vector<uint32_t> RowCache::SegmentsInUse() const {
  std::vector<uint32_t> all(probation_.begin(), probation_.end());
  all.insert(all.end(), main_.begin(), main_.end());
  return all;
}

size_t RowCache::resident_bytes() const {
  size_t bytes = 0;
  for (uint32_t segment : SegmentsInUse()) bytes += segments_[segment].used - FirstOffset(segment);
  return bytes;
}

size_t RowCache::memory_bytes() const {
  return (segments_.size() - free_.size()) * segment_bytes_ + index_->capacity() * sizeof(uint64_t) +
         ghosts_.size() * sizeof(uint16_t);
}

}  // namespace damo
