#include "profile/miniature_cache.h"

#include <algorithm>
#include <utility>

namespace damo {
namespace {

constexpr RowLayout kBare{};
// Of fewer rows in a segment, an eviction would tell too little of how frequent is enough.
constexpr size_t kRowsPerSegment = 16;
// Of fewer segments, probation's share would be none.
constexpr size_t kLeastSegments = 24;

// Twice as many as are full at a time: where rows are of different sizes, they may be half full.
size_t SegmentsFor(const CacheSplit& split, uint64_t scale) {
  const size_t full = std::max(split.rows / scale / kRowsPerSegment, kLeastSegments);
  return 2 * std::min(full, std::max(split.segments, kLeastSegments)) + 8;
}

void SetHeader(char* row, RowHeader header) { *reinterpret_cast<RowHeader*>(row + kPayloadOffset) = header; }

}  // namespace

MiniatureCache::MiniatureCache(const CacheSplit& split, uint64_t scale)
    : split_(split), scale_(scale), segments_(SegmentsFor(split, scale)), replacement_(segments_.size()) {
  segment_bytes_ = std::max<size_t>(2 * split.row_bytes() / scale / segments_.size(), 1);
  replacement_.SetGhosts(GhostFilter(split.rows / scale + 1));
  for (size_t i = segments_.size(); i-- > 0;) free_.push_back(static_cast<uint32_t>(i));
}

MiniatureCache::MiniatureCache(const CacheSplit& split, uint64_t scale, const MiniatureCache& other,
                               std::span<const uint32_t> keys, const std::vector<ProfiledTable>& tables)
    : MiniatureCache(split, scale) {
  replacement_.GoOnAs(other.replacement_);
  for (const uint32_t segment : other.replacement_.SegmentsInUse()) {
    for (Row row : other.segments_[segment].rows) {
      const uint16_t table = RowTable(row.data());
      const uint32_t key = keys[static_cast<size_t>(RowId(row.data()))];
      if (key == kNoKey) continue;
      SetRowKey(row.data(), table, key);
      if (used_ + tables[table].stride > Limit()) MakeRoom(tables[table].stride, tables);
      Append(other.replacement_.queue(segment), row, tables[table].stride);
    }
  }
}

// The real cache has segments in reserve, and two that are half full.
size_t MiniatureCache::Limit() const {
  const size_t spare = std::min(kReservedSegments + 1, split_.segments / 2);
  return (split_.segments - spare) * split_.segment_bytes / scale_;
}

size_t MiniatureCache::MissingBytes(std::span<const Reference> lookup, const std::vector<ProfiledTable>& tables) const {
  size_t bytes = 0;
  for (const Reference& reference : lookup) {
    if (!IsThere(reference.key)) bytes += tables[reference.table].stride;
  }
  return bytes;
}

bool MiniatureCache::NeedsEviction(std::span<const Reference> lookup, const std::vector<ProfiledTable>& tables) const {
  return used_ + MissingBytes(lookup, tables) > Limit();
}

Missed MiniatureCache::Look(std::span<const Reference> lookup, bool training,
                            const std::vector<ProfiledTable>& tables) {
  // Room is made before rows are used, as the engine does.
  MakeRoom(std::min(MissingBytes(lookup, tables), Limit() / 4), tables);
  replacement_.BeginOperation();
  Missed missed;
  for (const Reference& reference : lookup) {
    char* row;
    if (IsThere(reference.key)) {
      const Place place = places_[reference.key];
      row = segments_[place.segment].rows[place.row].data();
      replacement_.Touch(row);
    } else {
      missed += {reference.times, 1};
      Row added;
      added.tag = reference.tag;
      SetRowKey(added.data(), reference.table, reference.key);
      replacement_.NoteArrival(added.data(), false);
      if (used_ + tables[reference.table].stride > Limit()) MakeRoom(tables[reference.table].stride, tables);
      row = Append(replacement_.Admit(reference.tag), added, tables[reference.table].stride).data();
    }
    RowHeader header = reference.header;
    if (training) header = {tables[reference.table].iter + 1, header.count + (header.count < UINT32_MAX)};
    SetHeader(row, header);
    SetRowFlags(row, reference.absent && !training ? kAbsent : 0);
  }
  return missed;
}

MiniatureCache::Row& MiniatureCache::Append(Replacement::Queue queue, const Row& row, size_t stride) {
  uint32_t open = replacement_.open_segment(queue);
  if (open == Replacement::kNoSegment ||
      (segments_[open].bytes + stride > segment_bytes_ && segments_[open].bytes > 0)) {
    open = free_.back();
    free_.pop_back();
    replacement_.Open(queue, open);
  }
  Segment& segment = segments_[open];
  const auto key = static_cast<size_t>(RowId(row.data()));
  if (key >= places_.size()) places_.resize(key + 1);
  places_[key] = {open, static_cast<uint32_t>(segment.rows.size())};
  segment.rows.push_back(row);
  segment.bytes += stride;
  used_ += stride;
  return segment.rows.back();
}

void MiniatureCache::MakeRoom(size_t bytes, const std::vector<ProfiledTable>& tables) {
  // As RoomMaker: each round frees some, or raises the bar.
  for (size_t rounds = 6 * segments_.size(); rounds > 0 && used_ + bytes > Limit(); --rounds) {
    const std::vector<uint32_t> victims = replacement_.NextVictims(1);
    if (victims.empty()) return;
    Evict(victims[0], tables);
  }
}

void MiniatureCache::Evict(uint32_t segment, const std::vector<ProfiledTable>& tables) {
  Replacement::Eviction eviction = replacement_.Begin(segment);
  const Segment evicted = std::exchange(segments_[segment], {});
  used_ -= evicted.bytes;
  for (const Row& row : evicted.rows) {
    const ProfiledTable& table = tables[RowTable(row.data())];
    if (replacement_.Keeps(row.data(), kBare, table.iter, &eviction)) {
      replacement_.Moved(Append(Replacement::Queue::kMain, row, table.stride).data(), eviction);
    } else {
      replacement_.Dropped(row.data(), row.tag, eviction);
      places_[static_cast<size_t>(RowId(row.data()))] = {};
    }
  }
  replacement_.End(eviction);
  free_.push_back(segment);
}

}  // namespace damo
