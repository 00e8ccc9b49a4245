// A cache to be driven row by row, and rows to fill it with.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cache/row_cache.h"
#include "testing/errors.h"
#include "testing/payload.h"

namespace damo::testing {

inline constexpr size_t kSegment = 4096;
// Rows of 24, 88 and 1000 bytes.
inline constexpr RowLayout kSmall = {1, 0}, kMiddle = {16, 1}, kLarge = {120, 122};

// A payload that no other (table, id, version) has, of a row that was updated `count` times, last in `last_step`.
inline std::string Payload(const RowLayout& layout, uint16_t table, int64_t id, uint64_t version = 0,
                           uint32_t last_step = 0, uint32_t count = 0) {
  std::string payload = Payload(layout.payload_size(), table, id, version);
  const RowHeader header = {last_step, count};
  std::memcpy(payload.data() + payload.size() - sizeof header, &header, sizeof header);
  return payload;
}

// A cache that is driven as a store drives it: what is dirty is "written" before it is evicted.
class CacheDriver {
 public:
  using Key = std::pair<uint16_t, int64_t>;

  explicit CacheDriver(size_t bytes, size_t segment_bytes = kSegment) : cache({bytes, segment_bytes, 0}) {}

  Slot Find(uint16_t table, int64_t id) const { return cache.Find(HashTag(table, id), table, id); }
  bool Has(uint16_t table, int64_t id) const { return Find(table, id) != kMissingSlot; }

  std::string PayloadAt(Slot slot) const {
    const char* row = cache.Row(slot);
    return std::string(row + kPayloadOffset, cache.layout(RowTable(row)).payload_size());
  }
  void SetPayload(Slot slot, const std::string& payload) {
    std::memcpy(cache.Row(slot) + kPayloadOffset, payload.data(), payload.size());
  }

  // Evicts the next victim.
  void EvictOne() {
    const std::vector<uint32_t> victims = cache.NextVictims(1);
    ASSERT_EQ(victims.size(), 1u);
    std::vector<Slot> dirty;
    cache.CollectDirty(victims[0], true, &dirty);
    for (const Slot slot : dirty) {
      written[{RowTable(cache.Row(slot)), RowId(cache.Row(slot))}] = PayloadAt(slot);
      SetRowFlags(cache.Row(slot), static_cast<uint8_t>(RowFlags(cache.Row(slot)) & ~kDirty));
    }
    cache.Evict(victims[0]);
  }
  void MakeRoom(size_t bytes) {
    for (int round = 0; cache.NeedsEviction(bytes); ++round) {
      ASSERT_LT(round, 10000) << "evictions free nothing";
      EvictOne();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  // The row as the store would have it after a read that found it.
  Slot Add(uint16_t table, int64_t id) { return Add(table, id, Payload(cache.layout(table), table, id)); }
  Slot Add(uint16_t table, int64_t id, const std::string& payload) {
    MakeRoom(cache.stride(table));
    const Slot slot = cache.Add(table, id, HashTag(table, id), /*awaited=*/false);
    SetPayload(slot, payload);
    SetRowFlags(cache.Row(slot), 0);
    return slot;
  }
  // New rows until `slot`'s segment has been evicted.
  void StreamUntilGone(Slot slot, uint16_t table) {
    const uint64_t epoch = cache.epoch();
    for (int i = 0; cache.StillThere(slot, epoch); ++i) {
      ASSERT_LT(i, 100000) << "the segment is never evicted";
      Add(table, next_streamed_++);
    }
  }

  RowCache cache;
  std::map<Key, std::string> written;

 private:
  int64_t next_streamed_ = 1000000;
};

inline std::vector<Slot> Dirty(const RowCache& cache, uint32_t segment, bool evictable_only) {
  std::vector<Slot> slots;
  cache.CollectDirty(segment, evictable_only, &slots);
  return slots;
}

}  // namespace damo::testing
