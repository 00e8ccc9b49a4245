// Rows that have changed: they are found until they are written, and a snapshot takes what they were.
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "cache/row_cache.h"
#include "cache/row_cache_testing.h"

namespace damo {
namespace {

using testing::CacheDriver;
using testing::Dirty;
using testing::kMiddle;
using testing::kSegment;

TEST(RowCacheTest, DirtyRowsAreCollectedUntilClean) {
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  for (int64_t id = 0; id < 5000; ++id) {
    const Slot slot = d.Add(0, id);
    d.cache.MarkDirty(slot);
    ASSERT_TRUE(d.cache.NeedsCleaning(d.cache.SegmentOf(slot))) << id;
    for (const uint32_t victim : d.cache.NextVictims(100)) d.cache.MarkCleaned(victim);
  }
}

TEST(RowCacheTest, RowsThatAnEvictionMovesStayDirty) {
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(64 * kSegment);
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
      EXPECT_TRUE(d.cache.BeginCapture(d.cache.SegmentOf(moved), kChanged));
    }
  }
  const uint32_t segment = d.cache.SegmentOf(d.Find(0, 1));
  ASSERT_EQ(d.cache.SegmentOf(d.Find(0, 2)), segment);
  std::vector<Slot> slots;
  d.cache.CollectCaptured(segment, kChanged, &slots);
  d.cache.EndCapture(segment, kChanged);
  EXPECT_EQ(slots, std::vector<Slot>{d.Find(0, 1)});
  EXPECT_FALSE(d.cache.InCapture(segment));
  EXPECT_EQ(Dirty(d.cache, segment, false), (std::vector<Slot>{d.Find(0, 1), d.Find(0, 2)}));
  // The next one has the other alone, and a new journal's both.
  for (const auto& [flag, expected] :
       {std::pair{kChanged, std::vector<Slot>{d.Find(0, 2)}}, {kChanged, {}}, {kDirty, {d.Find(0, 1), d.Find(0, 2)}}}) {
    slots.clear();
    EXPECT_EQ(d.cache.BeginCapture(segment, flag), !expected.empty());
    d.cache.CollectCaptured(segment, flag, &slots);
    d.cache.EndCapture(segment, flag);
    EXPECT_EQ(slots, expected);
  }
}

}  // namespace
}  // namespace damo
