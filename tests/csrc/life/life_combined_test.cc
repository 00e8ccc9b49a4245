#include "life/life_combined.h"

#include <gtest/gtest.h>

#include "base/status.h"
#include "life/life_bytes.h"
#include "life/life_recount.h"

namespace damo {
namespace {

LifeState StateOf(uint32_t iter, uint32_t ladder_step, uint64_t created) {
  LifeState state;
  state.iter = iter;
  state.time = iter;
  state.updated = iter;
  state.buckets = {{0, 0}, {PositionOf(4), 4}, {PositionOf(8), 8}};
  state.rules = {{.steps = 5}};
  state.counts.expired = {created / 2};
  state.counts.created = created;
  for (size_t c = 0; c < kLadderClasses; ++c) state.ladder.Raise(c, PositionOf(ladder_step));
  return state;
}

TEST(LifeCombinedTest, TakesTheLowerLadderAndTheSumOfCounts) {
  LifeState one = StateOf(10, 4, 6), other = StateOf(12, 8, 20);
  one.cells = {{1, 1, 2}};
  const LifeState combined = DecodeLife(CombineLives({EncodeLife(one), EncodeLife(other)}, true));
  EXPECT_EQ(combined.iter, 12u);
  EXPECT_EQ(combined.ladder, one.ladder);
  EXPECT_EQ(combined.counts.created, 26u);
  EXPECT_EQ(combined.counts.expired, std::vector<uint64_t>{13});
  EXPECT_TRUE(combined.cells.empty());
  const LifeState anew = DecodeLife(CombineLives({EncodeLife(one), EncodeLife(other)}, false));
  EXPECT_EQ(anew.counts, (LifeCounts{.expired = {0}}));
}

TEST(LifeCombinedTest, ComparesPartsOfSteps) {
  LifeState one = StateOf(10, 0, 0), other = StateOf(10, 0, 0);
  one.ladder.Raise(0, PositionOf(4, 7));
  other.ladder.Raise(0, PositionOf(5, 3));
  const LifeState combined = DecodeLife(CombineLives({EncodeLife(other), EncodeLife(one)}, false));
  EXPECT_EQ(combined.ladder.position(0), PositionOf(4, 7));
}

TEST(LifeCombinedTest, CountsRowsThatLivedByTheirOwn) {
  const LifeState one = StateOf(10, 4, 0), other = StateOf(10, 8, 0);
  LifeRecount recount(CombineLives({EncodeLife(one), EncodeLife(other)}, true), 10);
  EXPECT_TRUE(recount.Count({.last_step = 5, .count = 1}, 3, false));
  EXPECT_TRUE(recount.Count({.last_step = 9, .count = 0}, 4, false));
  EXPECT_EQ(recount.rows(), 2u);
}

TEST(LifeCombinedTest, RefusesOtherRules) {
  LifeState other = StateOf(10, 4, 0);
  other.rules[0].steps = 6;
  EXPECT_THROW(CombineLives({EncodeLife(StateOf(10, 4, 0)), EncodeLife(other)}, true), Error);
  EXPECT_THROW(CombineLives({}, true), Error);
}

}  // namespace
}  // namespace damo
