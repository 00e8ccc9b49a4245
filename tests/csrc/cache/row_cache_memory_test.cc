// A cache that finds no memory is as it was, and what makes room in it needs none.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "cache/row_cache_testing.h"
#include "testing/calls_without_memory.h"

namespace damo {
namespace {

using testing::CacheDriver;
using testing::CallWithoutMemory;
using testing::FailEachAllocation;
using testing::FailingAllocation;
using testing::kLarge;
using testing::kSegment;
using testing::kSmall;
using testing::Outcome;
using testing::Payload;

// Of smaller rows, so that the index is made anew.
TEST(RowCacheMemoryTest, ATableIsAddedOrNot) {
  FailEachAllocation([](size_t n) {
    CacheDriver d(64 * kSegment);
    d.cache.AddTable(kLarge);
    for (int64_t id = 0; id < 20; ++id) d.Add(0, id);
    const size_t bytes = d.cache.memory_bytes();
    const Outcome outcome = CallWithoutMemory(n, [&] { d.cache.AddTable(kSmall); });
    if (outcome.threw) {
      EXPECT_EQ(d.cache.memory_bytes(), bytes);
      EXPECT_EQ(d.cache.AddTable(kSmall), 1);
    }
    d.Add(1, 7);
    EXPECT_EQ(d.PayloadAt(d.Find(1, 7)), Payload(kSmall, 1, 7));
    for (int64_t id = 0; id < 20; ++id) EXPECT_EQ(d.PayloadAt(d.Find(0, id)), Payload(kLarge, 0, id));
    return outcome.failed;
  });
}

TEST(RowCacheMemoryTest, AddingEvictingAndCapturingRowsTakesNone) {
  CacheDriver d(64 * kSegment);
  d.cache.AddTable(kLarge);
  std::vector<uint32_t> victims;
  for (int64_t id = 0; id < 1000; ++id) {
    const FailingAllocation failing;
    while (d.cache.NeedsEviction(d.cache.stride(0))) {
      const size_t seen = failing.seen();
      victims = d.cache.NextVictims(1);  // a vector
      ASSERT_LE(failing.seen(), seen + 1);
      d.cache.Evict(victims[0]);
      ASSERT_LE(failing.seen(), seen + 1);
    }
    const size_t seen = failing.seen();
    const Slot slot = d.cache.Add(0, id, HashTag(0, id), /*awaited=*/false);
    d.cache.BeginCapture(d.cache.SegmentOf(slot), kDirty);
    d.cache.EndCapture(d.cache.SegmentOf(slot), kDirty);
    ASSERT_EQ(failing.seen(), seen);
  }
  EXPECT_FALSE(victims.empty()) << "nothing was evicted";
}

}  // namespace
}  // namespace damo
