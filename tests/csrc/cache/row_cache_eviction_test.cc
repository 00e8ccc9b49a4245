// Which rows stay when a cache makes room, and that none is lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cache/row_cache.h"
#include "cache/row_cache_testing.h"

namespace damo {
namespace {

using testing::CacheDriver;
using testing::kLarge;
using testing::kMiddle;
using testing::kSegment;
using testing::kSmall;
using testing::Payload;

TEST(RowCacheTest, RowsThatWereUsedAgainSurviveTheRest) {
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(64 * kSegment);
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
  CacheDriver d(32 * kSegment);
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
  CacheDriver d(32 * kSegment);
  d.cache.AddTable(kMiddle);
  const Slot first = d.Add(0, 1);
  d.StreamUntilGone(first, 0);
  ASSERT_FALSE(d.Has(0, 1));
  d.MakeRoom(10 * d.cache.stride(0));
  const uint32_t segment_of_new = d.cache.SegmentOf(d.Add(0, 3));
  EXPECT_NE(d.cache.SegmentOf(d.Add(0, 1)), segment_of_new);
  EXPECT_EQ(d.cache.SegmentOf(d.Add(0, 4)), segment_of_new);
}

TEST(RowCacheTest, SealLetsEverythingBeEvicted) {
  CacheDriver d(32 * kSegment);
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

// Tables of different row sizes share a cache far too small for them, for long: whatever is found is right, and
// whatever is not found has been written.
class RowCacheRandomTest : public ::testing::TestWithParam<size_t> {};

INSTANTIATE_TEST_SUITE_P(Segments, RowCacheRandomTest, ::testing::Values(12, 17, 40));

TEST_P(RowCacheRandomTest, RandomOperationsLoseNothing) {
  const RowLayout layouts[] = {kSmall, kMiddle, kLarge};
  CacheDriver d(GetParam() * kSegment);
  for (const RowLayout& layout : layouts) d.cache.AddTable(layout);
  std::mt19937_64 random(11);
  std::map<CacheDriver::Key, std::string> rows;
  std::vector<CacheDriver::Key> pinned;
  uint64_t version = 0;
  uint32_t iter = 0;
  const auto check = [&](CacheDriver::Key key) {
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
    const CacheDriver::Key key = {table, static_cast<int64_t>(random() % (random() % 2 ? 50 : 3000))};
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

}  // namespace
}  // namespace damo
