#include "cache/row_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "storage/row_store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;

constexpr size_t kSegment = 4096;
// Rows of 24, 88 and 1000 bytes.
constexpr RowLayout kSmall = {1, 0}, kMiddle = {16, 1}, kLarge = {120, 122};

// A payload that no other (table, id, version) has, of a row that was updated `count` times, last in `last_step`.
std::string Payload(const RowLayout& layout, uint16_t table, int64_t id, uint64_t version = 0, uint32_t last_step = 0,
                    uint32_t count = 0) {
  std::string payload = testing::Payload(layout.payload_size(), table, id, version);
  const uint32_t counters[] = {last_step, count};
  std::memcpy(payload.data() + payload.size() - sizeof counters, counters, sizeof counters);
  return payload;
}

// A cache that is driven as a store drives it: what is dirty is "written" before it is evicted.
class Driver {
 public:
  using Key = std::pair<uint16_t, int64_t>;

  explicit Driver(size_t bytes, size_t segment_bytes = kSegment) : cache({bytes, segment_bytes, 0}) {}

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

std::vector<Slot> Dirty(const RowCache& cache, uint32_t segment, bool evictable_only) {
  std::vector<Slot> slots;
  cache.CollectDirty(segment, evictable_only, &slots);
  return slots;
}

TEST(RowCacheTest, FindsRowsByTableAndId) {
  Driver d(64 * kSegment);
  for (uint16_t table = 0; table < 3; ++table) EXPECT_EQ(d.cache.AddTable(kMiddle), table);
  const std::vector<int64_t> ids = {INT64_MIN, -1, 0, 1, INT64_MAX};
  for (uint16_t table = 0; table < 2; ++table) {
    for (const int64_t id : ids) d.Add(table, id);
  }
  for (uint16_t table = 0; table < 2; ++table) {
    EXPECT_EQ(d.cache.rows(table), ids.size());
    for (const int64_t id : ids) {
      const Slot slot = d.Find(table, id);
      ASSERT_NE(slot, kMissingSlot);
      ASSERT_NE(slot, kZeroSlot);
      EXPECT_EQ(RowId(d.cache.Row(slot)), id);
      EXPECT_EQ(RowTable(d.cache.Row(slot)), table);
      EXPECT_EQ(d.PayloadAt(slot), Payload(kMiddle, table, id));
    }
    EXPECT_FALSE(d.Has(table, 2));
  }
  EXPECT_EQ(d.cache.rows(), 2 * ids.size());
  EXPECT_FALSE(d.Has(2, 0));
}

// Tables of different row sizes share a cache far too small for them, for long: whatever is found is right, and
// whatever is not found has been written.
class RowCacheRandomTest : public ::testing::TestWithParam<size_t> {};

INSTANTIATE_TEST_SUITE_P(Segments, RowCacheRandomTest, ::testing::Values(12, 17, 40));

TEST_P(RowCacheRandomTest, RandomOperationsLoseNothing) {
  const RowLayout layouts[] = {kSmall, kMiddle, kLarge};
  Driver d(GetParam() * kSegment);
  for (const RowLayout& layout : layouts) d.cache.AddTable(layout);
  std::mt19937_64 random(11);
  std::map<Driver::Key, std::string> rows;
  std::vector<Driver::Key> pinned;
  uint64_t version = 0;
  uint32_t iter = 0;
  const auto check = [&](Driver::Key key) {
    const auto expected = rows.find(key);
    const Slot slot = d.Find(key.first, key.second);
    if (slot != kMissingSlot) {
      ASSERT_NE(expected, rows.end()) << "a row that was erased is found";
      ASSERT_EQ(d.PayloadAt(slot), expected->second);
    } else if (expected != rows.end()) {
      ASSERT_EQ(d.written[key], expected->second) << "a change was lost";
    }
  };
  for (int i = 0; i < 40000; ++i) {
    if (i % 20 == 0) {
      d.cache.BeginOperation();
      for (uint16_t t = 0; t < 3; ++t) d.cache.SetIter(t, ++iter);
    }
    if (i % 500 == 0) {
      for (const auto& [table, id] : pinned) {
        ASSERT_TRUE(d.Has(table, id)) << "a pinned row was evicted";
        d.cache.UnpinRow(d.Find(table, id));
      }
      pinned.clear();
    }
    const uint16_t table = static_cast<uint16_t>(random() % 3);
    const Driver::Key key = {table, static_cast<int64_t>(random() % (random() % 2 ? 50 : 3000))};
    check(key);
    if (HasFatalFailure()) FAIL() << "after operation " << i;
    Slot slot = d.Find(table, key.second);
    if (slot == kMissingSlot) {
      if (!rows.contains(key)) rows[key] = d.written[key] = Payload(layouts[table], table, key.second);
      slot = d.Add(table, key.second, rows[key]);
      if (HasFatalFailure()) FAIL() << "after operation " << i;
    } else {
      d.cache.Touch(slot);
    }
    const uint64_t action = random() % 16;
    if (action < 6) {
      rows[key] = Payload(layouts[table], table, key.second, ++version, iter, 1 + random() % 4 * iter / 4);
      d.SetPayload(slot, rows[key]);
      d.cache.MarkDirty(slot);
    } else if (action == 6 && std::find(pinned.begin(), pinned.end(), key) == pinned.end()) {
      d.cache.Erase(HashTag(table, key.second), slot);
      rows.erase(key);
      d.written.erase(key);
    } else if (action == 7 && pinned.size() < 10) {
      d.cache.PinRow(slot);
      pinned.push_back(key);
    }
    ASSERT_LE(d.cache.memory_bytes(), GetParam() * kSegment);
  }
  EXPECT_EQ(d.cache.rows(), d.cache.rows(0) + d.cache.rows(1) + d.cache.rows(2));
  EXPECT_GT(rows.size(), 2 * d.cache.rows()) << "this test has not evicted enough";
  for (const auto& [key, payload] : rows) check(key);
}

TEST(RowCacheTest, RowsThatWereUsedAgainSurviveTheRest) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  std::vector<Slot> slots;
  for (int64_t id = 0; id < 20; ++id) slots.push_back(d.Add(0, id));
  for (const Slot slot : slots) d.cache.Touch(slot);  // in the operation that brought them: not again
  d.cache.BeginOperation();
  for (int64_t id = 0; id < 20; id += 2) d.cache.Touch(slots[static_cast<size_t>(id)]);
  d.StreamUntilGone(slots[0], 0);
  for (int64_t id = 0; id < 20; ++id) EXPECT_EQ(d.Has(0, id), id % 2 == 0) << id;
  for (int64_t id = 0; id < 20; id += 2) {
    EXPECT_EQ(d.PayloadAt(d.Find(0, id)), Payload(kMiddle, 0, id));
  }
}

TEST(RowCacheTest, RowsInConstantUseStayForEver) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  for (int64_t id = 0; id < 100; ++id) d.Add(0, id);
  for (int64_t i = 0; i < 10000; ++i) {
    if (i % 100 == 0) d.cache.BeginOperation();
    const Slot slot = d.Find(0, i % 100);
    ASSERT_NE(slot, kMissingSlot) << i;
    d.cache.Touch(slot);
    d.Add(0, 1000 + i);
  }
}

TEST(RowCacheTest, RowsNobodyUsesAnyMoreMakeRoom) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  for (int64_t id = 0; id < 100; ++id) d.Add(0, id);
  for (int use = 0; use < 10; ++use) {
    d.cache.BeginOperation();
    for (int64_t id = 0; id < 100; ++id) d.cache.Touch(d.Find(0, id));
  }
  // A second set, used as much, pushes them through the main queue.
  for (int64_t id = 1000; id < 21000; ++id) {
    d.cache.Touch(d.Add(0, id));
    d.cache.BeginOperation();
    for (int64_t other = std::max<int64_t>(1000, id - 50); other <= id; ++other) {
      if (d.Has(0, other)) d.cache.Touch(d.Find(0, other));
    }
  }
  for (int64_t id = 0; id < 100; ++id) EXPECT_FALSE(d.Has(0, id)) << id;
}

TEST(RowCacheTest, RowsThatAreUpdatedFrequentlySurviveTheRest) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  d.cache.SetIter(0, 100000);
  const Slot first = d.Add(0, 0, Payload(kMiddle, 0, 0, 0, 100000, 5000));
  d.Add(0, 1, Payload(kMiddle, 0, 1, 0, 100000, 1));      // once
  d.Add(0, 2, Payload(kMiddle, 0, 2, 0, 50000, 5000));    // long ago
  d.Add(0, 3, Payload(kMiddle, 0, 3, 0, 100000, 90000));  // always
  d.StreamUntilGone(first, 0);
  for (int64_t id = 0; id < 4; ++id) EXPECT_EQ(d.Has(0, id), id == 0 || id == 3) << id;
}

// As many rows as a store evicts before it gives up.
TEST(RowCacheTest, EvictionsFreeMemoryWhateverTheCountsOfTheRows) {
  Driver d(64 * kSegment);
  d.cache.AddTable(kLarge);
  int64_t next_id = 0;
  const auto fill = [&](int64_t rows, uint32_t iter, uint32_t count) {
    d.cache.SetIter(0, iter);
    for (const int64_t end = next_id + rows; next_id < end; ++next_id) {
      size_t rounds = 5 * (d.cache.SegmentsInUse().size() + 2);
      for (; d.cache.NeedsEviction(d.cache.stride(0)); --rounds) {
        ASSERT_GT(rounds, 0u) << "row " << next_id;
        d.EvictOne();
      }
      d.cache.Touch(d.Add(0, next_id, Payload(kLarge, 0, next_id, 0, iter, count)));
      d.cache.BeginOperation();
      d.cache.Touch(d.Find(0, next_id));  // used again: to main
    }
  };
  fill(1000, 1, 1);        // in a table's first step every row is frequent
  fill(1000, 1000000, 1);  // later, none
  fill(1000, 1000001, 1000001);
  fill(200000, 1000002, 0);  // much reading of rows that are not there
  fill(1000, 1000003, 1);
  fill(1000, 1000003, 1000003);
}

TEST(RowCacheTest, PinnedRowsSurviveUntilUnpinned) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  const Slot first = d.Add(0, 1);
  d.Add(0, 2);
  d.cache.PinRow(first);
  d.StreamUntilGone(first, 0);
  EXPECT_FALSE(d.Has(0, 2));
  const Slot second = d.Find(0, 1);
  ASSERT_NE(second, kMissingSlot);
  EXPECT_NE(second, first);
  EXPECT_EQ(d.PayloadAt(second), Payload(kMiddle, 0, 1));
  d.cache.UnpinRow(second);
  d.cache.Seal();
  while (d.cache.rows() > 0) d.EvictOne();
  EXPECT_FALSE(d.Has(0, 1));
}

TEST(RowCacheTest, ARowThatComesBackIsKeptApartFromNewOnes) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  const Slot first = d.Add(0, 1);
  d.StreamUntilGone(first, 0);
  ASSERT_FALSE(d.Has(0, 1));
  d.MakeRoom(10 * d.cache.stride(0));
  const uint32_t segment_of_new = d.cache.SegmentOf(d.Add(0, 3));
  EXPECT_NE(d.cache.SegmentOf(d.Add(0, 1)), segment_of_new);
  EXPECT_EQ(d.cache.SegmentOf(d.Add(0, 4)), segment_of_new);
}

TEST(RowCacheTest, ASlotHoldsUntilItsRowMovesOrGoes) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  const Slot moves = d.Add(0, 1), erased = d.Add(0, 2), evicted = d.Add(0, 3);
  d.cache.BeginOperation();
  d.cache.Touch(moves);
  const uint64_t epoch = d.cache.epoch();
  const auto there = [&](Slot slot) { return d.cache.StillThere(slot, epoch) && !d.cache.ErasedSince(epoch); };
  EXPECT_TRUE(there(moves) && there(erased) && there(evicted));
  const Slot newest = d.Add(0, 4);
  EXPECT_EQ(d.cache.epoch(), epoch) << "a new row invalidates nothing";
  d.cache.Erase(HashTag(0, 2), erased);
  EXPECT_GT(d.cache.epoch(), epoch);
  EXPECT_FALSE(there(erased));
  d.StreamUntilGone(evicted, 0);
  EXPECT_FALSE(d.cache.StillThere(moves, epoch));
  EXPECT_FALSE(d.cache.StillThere(newest, epoch));
  EXPECT_TRUE(d.cache.StillThere(d.Find(0, 1), d.cache.epoch()));
  EXPECT_FALSE(d.cache.ErasedSince(d.cache.epoch()));
}

TEST(RowCacheTest, DirtyRowsAreCollectedUntilClean) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  std::vector<Slot> slots;
  for (int64_t id = 0; id < 6; ++id) slots.push_back(d.Add(0, id));
  const uint32_t segment = d.cache.SegmentOf(slots[0]);
  EXPECT_TRUE(Dirty(d.cache, segment, false).empty());
  EXPECT_FALSE(d.cache.NeedsCleaning(segment));
  for (const size_t i : {1, 2, 3}) d.cache.MarkDirty(slots[i]);
  EXPECT_TRUE(d.cache.NeedsCleaning(segment));
  d.cache.BeginOperation();
  d.cache.Touch(slots[1]);
  d.cache.PinRow(slots[2]);
  EXPECT_EQ(Dirty(d.cache, segment, false), (std::vector<Slot>{slots[1], slots[2], slots[3]}));
  EXPECT_EQ(Dirty(d.cache, segment, true), (std::vector<Slot>{slots[3]}));
  d.cache.Erase(HashTag(0, 3), slots[3]);
  EXPECT_TRUE(Dirty(d.cache, segment, true).empty()) << "an erased row has nothing to write";
  d.cache.MarkCleaned(segment);
  EXPECT_FALSE(d.cache.NeedsCleaning(segment));
  EXPECT_EQ(Dirty(d.cache, segment, false).size(), 2u) << "cleaned is a hint for the evictable rows only";
}

TEST(RowCacheTest, ASegmentThatIsUsedAgainNeedsCleaningAgain) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  for (int64_t id = 0; id < 5000; ++id) {
    const Slot slot = d.Add(0, id);
    d.cache.MarkDirty(slot);
    ASSERT_TRUE(d.cache.NeedsCleaning(d.cache.SegmentOf(slot))) << id;
    for (const uint32_t victim : d.cache.NextVictims(100)) d.cache.MarkCleaned(victim);
  }
}

TEST(RowCacheTest, RowsThatAnEvictionMovesStayDirty) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  std::vector<Slot> slots;
  for (int64_t id = 0; id < 3; ++id) slots.push_back(d.Add(0, id));
  for (const size_t i : {1, 2}) d.cache.MarkDirty(slots[i]);
  d.cache.BeginOperation();
  d.cache.Touch(slots[1]);
  d.cache.PinRow(slots[2]);
  d.StreamUntilGone(slots[0], 0);
  const uint32_t other = d.cache.SegmentOf(d.Find(0, 1));
  EXPECT_EQ(Dirty(d.cache, other, false), (std::vector<Slot>{d.Find(0, 1), d.Find(0, 2)}));
  EXPECT_TRUE(d.written.empty());
}

// The first row has moved to main, whose segment is in the snapshot when the second one, dirty since, comes there.
TEST(RowCacheTest, ARowThatMovesIntoASnapshotIsNotInIt) {
  Driver d(64 * kSegment);
  d.cache.AddTable(kMiddle);
  for (const int64_t id : {1, 2}) {
    const Slot added = d.Add(0, id);
    d.cache.BeginOperation();
    d.cache.Touch(added);
    d.cache.MarkDirty(added);
    d.StreamUntilGone(added, 0);
    const Slot moved = d.Find(0, id);
    ASSERT_NE(moved, kMissingSlot);
    ASSERT_NE(moved, added);
    if (id == 1) {
      EXPECT_TRUE(d.cache.BeginSnapshot(d.cache.SegmentOf(moved), kChanged));
    }
  }
  const uint32_t segment = d.cache.SegmentOf(d.Find(0, 1));
  ASSERT_EQ(d.cache.SegmentOf(d.Find(0, 2)), segment);
  std::vector<Slot> slots;
  d.cache.EndSnapshot(segment, kChanged, &slots);
  EXPECT_EQ(slots, std::vector<Slot>{d.Find(0, 1)});
  EXPECT_FALSE(d.cache.InSnapshot(segment));
  EXPECT_EQ(Dirty(d.cache, segment, false), (std::vector<Slot>{d.Find(0, 1), d.Find(0, 2)}));
  // The next one has the other alone, and a new journal's both.
  for (const auto& [flag, expected] :
       {std::pair{kChanged, std::vector<Slot>{d.Find(0, 2)}}, {kChanged, {}}, {kDirty, {d.Find(0, 1), d.Find(0, 2)}}}) {
    slots.clear();
    EXPECT_EQ(d.cache.BeginSnapshot(segment, flag), !expected.empty());
    d.cache.EndSnapshot(segment, flag, &slots);
    EXPECT_EQ(slots, expected);
  }
}

TEST(RowCacheTest, ErasedRowsLeaveNoTrace) {
  Driver d(16 * kSegment);
  d.cache.AddTable(kMiddle);
  for (int round = 0; round < 1000; ++round) {
    d.MakeRoom(20 * d.cache.stride(0));
    if (HasFatalFailure()) return;
    std::vector<Slot> slots;
    for (int64_t id = 0; id < 20; ++id) slots.push_back(d.cache.Add(0, id, HashTag(0, id), round % 2 == 0));
    EXPECT_EQ(RowFlags(d.cache.Row(slots[0])), kAbsent | kLoading);
    for (int64_t id = 0; id < 20; ++id) d.cache.Erase(HashTag(0, id), slots[static_cast<size_t>(id)]);
    EXPECT_FALSE(d.Has(0, 0));
    EXPECT_EQ(d.cache.rows(0), 0u);
    EXPECT_EQ(d.cache.rows(), 0u);
  }
}

TEST(RowCacheTest, SealLetsEverythingBeEvicted) {
  Driver d(32 * kSegment);
  d.cache.AddTable(kSmall);
  d.cache.AddTable(kLarge);
  for (int64_t id = 0; id < 300; ++id) d.cache.MarkDirty(d.Add(id % 10 == 0 ? 1 : 0, id));
  EXPECT_GE(d.cache.resident_bytes(), 270 * d.cache.stride(0) + 30 * d.cache.stride(1));
  d.cache.Seal();
  while (d.cache.resident_bytes() > 0) {
    d.EvictOne();
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(d.cache.rows(), 0u);
  EXPECT_EQ(d.written.size(), 300u);
}

TEST(RowCacheTest, SegmentsArePinnedAsOftenAsUnpinned) {
  Driver d(16 * kSegment);
  d.cache.AddTable(kMiddle);
  const uint32_t segment = d.cache.SegmentOf(d.Add(0, 1));
  d.cache.Pin(segment);
  d.cache.Pin(segment);
  d.cache.Unpin(segment);
  EXPECT_TRUE(d.cache.Pinned(segment));
  d.cache.Unpin(segment);
  EXPECT_FALSE(d.cache.Pinned(segment));
}

// The index was made for the rows there were; a table of smaller rows needs a larger one, at the arena's expense.
TEST(RowCacheTest, ATableOfSmallerRowsMayComeLater) {
  constexpr size_t kBytes = 64 * kSegment;
  Driver d(kBytes);
  d.cache.AddTable(kLarge);
  for (int64_t id = 0; id < 1000; ++id) d.cache.MarkDirty(d.Add(0, id));
  const size_t capacity_before = d.cache.row_capacity_bytes();
  std::vector<int64_t> cached;
  for (int64_t id = 0; id < 1000; ++id) {
    if (d.Has(0, id)) cached.push_back(id);
  }
  ASSERT_GT(cached.size(), 100u);
  EXPECT_EQ(d.cache.AddTable(kSmall), 1);
  for (const int64_t id : cached) {
    ASSERT_TRUE(d.Has(0, id)) << "lost by adding a table: " << id;
    EXPECT_EQ(d.PayloadAt(d.Find(0, id)), Payload(kLarge, 0, id));
  }
  EXPECT_LT(d.cache.row_capacity_bytes(), capacity_before);
  EXPECT_TRUE(d.cache.NeedsEviction(0)) << "a full cache is too full now";
  d.MakeRoom(0);
  d.cache.ReleaseFreeSegments();
  EXPECT_LE(d.cache.memory_bytes(), kBytes);
  for (int64_t id = 0; id < 20000; ++id) {
    d.Add(1, id);
    ASSERT_LE(d.cache.memory_bytes(), kBytes);
  }
  for (int64_t id = 0; id < 1000; ++id) {
    if (d.Has(0, id)) continue;
    EXPECT_EQ((d.written[{uint16_t{0}, id}]), Payload(kLarge, 0, id));
  }
}

class RowCacheBudgetTest : public ::testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Dims, RowCacheBudgetTest, ::testing::Values(1, 4, 16, 64, 200));

TEST_P(RowCacheBudgetTest, HoldsAndIsMadeUseOf) {
  constexpr size_t kBytes = 4 << 20, kSegmentBytes = 1 << 14;
  Driver d(kBytes, kSegmentBytes);
  d.cache.AddTable({GetParam(), 1});
  const size_t stride = d.cache.stride(0);
  for (int64_t id = 0; id < static_cast<int64_t>(2 * kBytes / stride); ++id) {
    d.Add(0, id);
    ASSERT_LE(d.cache.memory_bytes(), kBytes);
  }
  // Less the two segments that evictions need, the two that are open, and the ends of all others.
  const size_t per_row = stride + HashIndex::BytesFor(1000) / 1000 + 2;
  EXPECT_GE(d.cache.rows() * per_row, kBytes * (100 - 5) / 100 - 5 * kSegmentBytes);
}

TEST(RowCacheTest, RowsTooLargeForASegmentAreRefused) {
  Driver d(16 * kSegment);
  EXPECT_NO_THROW(d.cache.AddTable({kSegment / 4 / sizeof(float) - 5, 0}));
  ExpectError(ErrorCode::kInvalidArgument, {"1032", "1024"},
              [&] { d.cache.AddTable({kSegment / 4 / sizeof(float) - 4, 0}); });
}

}  // namespace
}  // namespace damo
