#include "cache/replacement.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace damo {
namespace {

using Queue = Replacement::Queue;
using Segments = std::vector<uint32_t>;

constexpr RowLayout kLayout = {1, 0};
constexpr uint32_t kIter = 1000000;

struct Row {
  explicit Row(uint32_t count = 0, uint32_t last_step = 0, uint8_t flags = 0) {
    SetRowFlags(bytes, flags);
    *HeaderOf(bytes, kLayout) = {last_step, count};
  }

  alignas(8) char bytes[kPayloadOffset + sizeof(float) + sizeof(RowHeader)] = {};
};

// A policy with segments 0 to 9 in probation and 10 to 19 in main, of which 9 and 19 are open.
class ReplacementTest : public ::testing::Test {
 protected:
  ReplacementTest() {
    policy_.SetGhosts(GhostFilter(1000));
    for (uint32_t segment = 0; segment < 10; ++segment) policy_.Open(Queue::kProbation, segment);
    for (uint32_t segment = 10; segment < 20; ++segment) policy_.Open(Queue::kMain, segment);
  }

  bool KeptInProbation(const Row& row) const { return policy_.WouldKeep(row.bytes, kLayout, kIter, 0); }
  bool KeptInMain(const Row& row) const { return policy_.WouldKeep(row.bytes, kLayout, kIter, 10); }
  void Use(Row* row) {
    policy_.BeginOperation();
    policy_.Touch(row->bytes);
  }

  Replacement policy_{30};
};

TEST_F(ReplacementTest, ARowIsKeptOnceItWasUsedAgain) {
  policy_.BeginOperation();
  Row row;
  policy_.NoteArrival(row.bytes, /*awaited=*/false);
  policy_.Touch(row.bytes);
  EXPECT_FALSE(KeptInProbation(row)) << "the operation that brought it";
  Use(&row);
  policy_.Touch(row.bytes);
  EXPECT_TRUE(KeptInProbation(row));
  EXPECT_FALSE(KeptInMain(row)) << "several touches of an operation are one use";
  Use(&row);
  EXPECT_TRUE(KeptInMain(row));
}

TEST_F(ReplacementTest, TheUseThatARowAwaitsIsItsFirst) {
  Row row;
  policy_.NoteArrival(row.bytes, /*awaited=*/true);
  policy_.Touch(row.bytes);
  EXPECT_FALSE(KeptInProbation(row));
  Use(&row);
  EXPECT_TRUE(KeptInProbation(row));
}

TEST_F(ReplacementTest, EachEvictionFromMainTakesBackAUse) {
  Row row;
  policy_.NoteArrival(row.bytes, /*awaited=*/false);
  for (int use = 0; use < 10; ++use) Use(&row);
  const Replacement::Eviction eviction = policy_.Begin(10);
  policy_.Moved(row.bytes, eviction);
  EXPECT_TRUE(KeptInMain(row));
  policy_.Moved(row.bytes, eviction);
  EXPECT_FALSE(KeptInMain(row)) << "no more than three uses count";
  policy_.Moved(row.bytes, eviction);
  EXPECT_FALSE(KeptInProbation(row));
  policy_.Moved(row.bytes, eviction);
  EXPECT_FALSE(KeptInProbation(row));
}

TEST_F(ReplacementTest, AnEvictionFromProbationTakesBackAllUses) {
  Row row;
  policy_.NoteArrival(row.bytes, /*awaited=*/false);
  for (int use = 0; use < 3; ++use) Use(&row);
  policy_.Moved(row.bytes, policy_.Begin(0));
  EXPECT_FALSE(KeptInProbation(row));
}

TEST_F(ReplacementTest, ARowIsKeptWhileItIsUpdatedFrequently) {
  for (const auto& [count, last_step, kept] : std::vector<std::tuple<uint32_t, uint32_t, bool>>{
           {kIter, kIter, true},
           {200, kIter, true},
           {200, kIter - 19000, true},
           {200, kIter - 21000, false},  // four times as long as between two of its updates
           {50, kIter, false},
           {0, 0, false}}) {
    const Row row(count, last_step);
    EXPECT_EQ(KeptInProbation(row), kept) << count << " updates, the last in step " << last_step;
    EXPECT_EQ(KeptInMain(row), kept) << count << " updates, the last in step " << last_step;
  }
}

// How many evictions from main of one row each it takes until `row` goes.
int EvictionsUntilDropped(Replacement* policy, const Row& row) {
  for (int evictions = 1; evictions < 100; ++evictions) {
    policy->Open(Queue::kMain, 0);
    Replacement::Eviction eviction = policy->Begin(0);
    const bool kept = policy->Keeps(row.bytes, kLayout, kIter, &eviction);
    policy->End(eviction);
    if (!kept) return evictions;
  }
  return 100;
}

TEST(ReplacementBarTest, EvictionsThatFreeNothingSoonDropAnyRow) {
  Replacement policy(1);
  EXPECT_LT(EvictionsUntilDropped(&policy, Row(kIter, kIter)), 10);
}

TEST(ReplacementBarTest, EvictionsThatFreeMuchKeepLessFrequentRows) {
  Replacement policy(1);
  const Row rare(10, kIter);
  EXPECT_EQ(EvictionsUntilDropped(&policy, rare), 1);
  for (int i = 0; i < 100; ++i) {
    policy.Open(Queue::kMain, 0);
    Replacement::Eviction eviction = policy.Begin(0);
    EXPECT_FALSE(policy.Keeps(Row().bytes, kLayout, kIter, &eviction));
    policy.End(eviction);
  }
  EXPECT_GT(EvictionsUntilDropped(&policy, rare), 1);
}

TEST(ReplacementBarTest, EvictionsFromProbationDoNotMoveIt) {
  Replacement policy(1);
  const Row frequent(200, kIter);
  for (int i = 0; i < 100; ++i) {
    policy.Open(Queue::kProbation, 0);
    Replacement::Eviction eviction = policy.Begin(0);
    EXPECT_TRUE(policy.Keeps(frequent.bytes, kLayout, kIter, &eviction));
    policy.End(eviction);
  }
}

TEST_F(ReplacementTest, ProbationGoesFirstDownToItsShare) {
  EXPECT_EQ(policy_.NextVictims(3), (Segments{0, 1, 2}));
  // 5 % of the 18 that are not open is more than no segment, and less than one.
  EXPECT_EQ(policy_.NextVictims(100), (Segments{0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18}));
  EXPECT_EQ(policy_.spare_segments(), 18u);
  policy_.Begin(0);
  policy_.Begin(10);
  EXPECT_EQ(policy_.NextVictims(1), Segments{1});
  EXPECT_EQ(policy_.SegmentsInUse(), (Segments{1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
}

TEST(ReplacementVictimsTest, ALargeMainLeavesProbationItsShare) {
  Replacement policy(100);
  for (uint32_t segment = 0; segment < 10; ++segment) policy.Open(Queue::kProbation, segment);
  for (uint32_t segment = 10; segment < 100; ++segment) policy.Open(Queue::kMain, segment);
  // 9 and 89 are not open: 5 % of those are 4.9.
  EXPECT_EQ(policy.NextVictims(7), (Segments{0, 1, 2, 3, 4, 10, 11}));
}

TEST(ReplacementVictimsTest, NothingIsThereAtFirst) {
  Replacement policy(10);
  EXPECT_TRUE(policy.NextVictims(1).empty());
  EXPECT_EQ(policy.open_segment(Queue::kProbation), Replacement::kNoSegment);
  policy.Open(Queue::kProbation, 7);
  EXPECT_EQ(policy.open_segment(Queue::kProbation), 7u);
  EXPECT_EQ(policy.open_segment(Queue::kMain), Replacement::kNoSegment);
  EXPECT_TRUE(policy.NextVictims(1).empty()) << "the open one";
}

TEST(ReplacementVictimsTest, AwaitedRowsGoLastOfAll) {
  Replacement policy(10);
  for (const uint32_t segment : {0, 1}) policy.Open(Queue::kProbation, segment);
  policy.KeepArrivals(policy.arrival());  // in segment 1, which is open
  for (const uint32_t segment : {2, 3}) policy.Open(Queue::kProbation, segment);
  for (const uint32_t segment : {4, 5, 6}) policy.Open(Queue::kMain, segment);
  EXPECT_EQ(policy.NextVictims(100), (Segments{0, 4, 5, 1, 2}));
  EXPECT_EQ(policy.spare_segments(), 3u);
  policy.KeepArrivals(Replacement::kNoArrival);
  EXPECT_EQ(policy.NextVictims(100), (Segments{0, 1, 2, 4, 5}));
  EXPECT_EQ(policy.spare_segments(), 5u);
}

TEST_F(ReplacementTest, ARowThatComesBackArrivesInMain) {
  constexpr uint32_t kTag = 0x12345678;
  EXPECT_EQ(policy_.Admit(kTag), Queue::kProbation);
  policy_.Dropped(Row().bytes, kTag, policy_.Begin(0));
  EXPECT_EQ(policy_.Admit(kTag), Queue::kMain);
  EXPECT_EQ(policy_.Admit(kTag), Queue::kProbation) << "it is there, and no longer remembered";
}

TEST_F(ReplacementTest, RowsThatAreNotStoredOrWereInMainAreNotRemembered) {
  constexpr uint32_t kTag = 0x12345678;
  policy_.Dropped(Row(0, 0, kAbsent).bytes, kTag, policy_.Begin(0));
  EXPECT_EQ(policy_.Admit(kTag), Queue::kProbation);
  policy_.Dropped(Row().bytes, kTag, policy_.Begin(10));
  EXPECT_EQ(policy_.Admit(kTag), Queue::kProbation);
}

TEST(GhostFilterTest, RemembersMostOfWhatItHasRoomForAndLittleElse) {
  constexpr uint32_t kRows = 10000, kStride = 0x9E3779B1;  // odd: no tag twice
  GhostFilter ghosts(kRows);
  EXPECT_GE(ghosts.memory_bytes(), GhostFilter::BytesFor(kRows));
  for (uint32_t i = 0; i < kRows; ++i) ghosts.Remember(i * kStride);
  uint32_t remembered = 0, mistaken = 0;
  for (uint32_t i = 0; i < kRows; ++i) mistaken += ghosts.Forget((kRows + i) * kStride) ? 1 : 0;
  for (uint32_t i = 0; i < kRows; ++i) remembered += ghosts.Forget(i * kStride) ? 1 : 0;
  EXPECT_GT(remembered, kRows / 2);
  EXPECT_LT(mistaken, kRows / 100);
  for (uint32_t i = 0; i < kRows; ++i) EXPECT_FALSE(ghosts.Forget(i * kStride));
}

}  // namespace
}  // namespace damo
