#include "cache/row_cache.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "cache/row_cache_testing.h"

namespace damo {
namespace {

using testing::CacheDriver;
using testing::ExpectError;
using testing::kLarge;
using testing::kMiddle;
using testing::kSegment;
using testing::kSmall;
using testing::Payload;

TEST(RowCacheTest, FindsRowsByTableAndId) {
  CacheDriver d(64 * kSegment);
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
      EXPECT_EQ(RowId(d.cache.Row(slot)), id);
      EXPECT_EQ(RowTable(d.cache.Row(slot)), table);
      EXPECT_EQ(d.PayloadAt(slot), Payload(kMiddle, table, id));
    }
    EXPECT_FALSE(d.Has(table, 2));
  }
  EXPECT_EQ(d.cache.rows(), 2 * ids.size());
  EXPECT_FALSE(d.Has(2, 0));
}

TEST(RowCacheTest, ASlotHoldsUntilItsRowMovesOrGoes) {
  CacheDriver d(32 * kSegment);
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

TEST(RowCacheTest, ErasedRowsLeaveNoTrace) {
  CacheDriver d(16 * kSegment);
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

TEST(RowCacheTest, SegmentsArePinnedAsOftenAsUnpinned) {
  CacheDriver d(16 * kSegment);
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
  CacheDriver d(kBytes);
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
  CacheDriver d(kBytes, kSegmentBytes);
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
  CacheDriver d(16 * kSegment);
  EXPECT_NO_THROW(d.cache.AddTable({kSegment / 4 / sizeof(float) - 5, 0}));
  ExpectError(ErrorCode::kInvalidArgument, {"1032", "1024"},
              [&] { d.cache.AddTable({kSegment / 4 / sizeof(float) - 4, 0}); });
}

}  // namespace
}  // namespace damo
