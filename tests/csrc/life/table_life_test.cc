// What options do to the rows of a table, by examples small enough to reckon by hand.
#include "life/table_life.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/status.h"
#include "life/life_tally.h"
#include "testing/errors.h"

namespace damo {
namespace {

using testing::ExpectError;

LifeOptions IdleSteps(uint32_t steps, uint64_t below_count = 0) {
  LifeOptions options;
  options.idle = {{.steps = steps, .below_count = below_count}};
  return options;
}

LifeOptions IdleSeconds(double seconds) {
  LifeOptions options;
  options.idle = {{.seconds = seconds}};
  return options;
}

LifeOptions MostRows(uint64_t max_rows, uint64_t keep_rows, uint32_t credit = 0) {
  LifeOptions options;
  options.max_rows = max_rows;
  options.keep_rows = keep_rows;
  options.credit = credit;
  return options;
}

// A step at which so many new ids come.
void NewIds(TableLife* life, uint32_t step, int64_t ids, double clock = 0) {
  life->BeginStep(step, static_cast<size_t>(ids), clock);
  for (int64_t id = 0; id < ids; ++id) life->Add({step, 1}, step * 1000 + id);
  life->EndStep();
}

TEST(TableLife, KeepsAllRowsWithoutOptions) {
  TableLife life({}, 0, 0);
  for (uint32_t step = 1; step <= 5000; ++step) NewIds(&life, step, 3, step * 1e6);
  EXPECT_EQ(life.rows(), 15000u);
  EXPECT_EQ(life.ladder(), Ladder());
  EXPECT_EQ(life.counts().created, 15000u);
}

TEST(TableLife, HasARowGoWhenItWasIdleForMoreStepsThanTheRuleSays) {
  TableLife life(IdleSteps(10), 0, 0);
  NewIds(&life, 1, 1);
  for (uint32_t step = 2; step <= 11; ++step) NewIds(&life, step, 0);
  EXPECT_EQ(life.rows(), 1u);
  EXPECT_FALSE(life.ladder().IsDead({1, 1}, 1000));
  NewIds(&life, 12, 0);
  EXPECT_EQ(life.rows(), 0u);
  EXPECT_TRUE(life.ladder().IsDead({1, 1}, 1000));
  EXPECT_EQ(life.counts().expired, std::vector<uint64_t>{1});
}

TEST(TableLife, AppliesARuleToRowsWithFewerUpdatesOnly) {
  TableLife life(IdleSteps(10, 4), 0, 0);
  life.BeginStep(1, 4, 0);
  for (uint32_t count = 1; count <= 4; ++count) life.Add({1, count}, count);
  life.EndStep();
  for (uint32_t step = 2; step <= 20; ++step) NewIds(&life, step, 0);
  EXPECT_EQ(life.rows(), 1u);
  EXPECT_TRUE(life.ladder().IsDead({1, 3}, 3));
  EXPECT_FALSE(life.ladder().IsDead({1, 4}, 4));
}

TEST(TableLife, StopsExpiryAtMinRows) {
  LifeOptions options = IdleSteps(10);
  options.min_rows = 5;
  TableLife life(options, 0, 0);
  for (uint32_t step = 1; step <= 4; ++step) NewIds(&life, step, 2);
  for (uint32_t step = 5; step <= 50; ++step) NewIds(&life, step, 0);
  EXPECT_EQ(life.rows(), 6u);
  NewIds(&life, 51, 1);
  EXPECT_EQ(life.rows(), 5u);
}

TEST(TableLife, HasARowGoWhenItWasIdleForATime) {
  TableLife life(IdleSeconds(256), 0, 5000);
  NewIds(&life, 1, 1, 5001);
  for (uint32_t step = 2; step <= 256; ++step) NewIds(&life, step, 0, 5000 + step);
  EXPECT_EQ(life.rows(), 1u);  // 255 seconds
  NewIds(&life, 257, 0, 5257);
  EXPECT_EQ(life.rows(), 0u);
}

TEST(TableLife, CountsALeapOfTheClockAsHalfOfARule) {
  TableLife life(IdleSeconds(100), 0, 0);
  NewIds(&life, 1, 1, 0);
  NewIds(&life, 2, 0, 1e6);
  EXPECT_EQ(life.rows(), 1u);
  EXPECT_EQ(life.clock_gap(), 1e6);
  EXPECT_EQ(life.clock_gap(), 1e6);
  NewIds(&life, 3, 0, 1e6 + 49);
  EXPECT_EQ(life.rows(), 1u);
  NewIds(&life, 4, 0, 1e6 + 51);
  EXPECT_EQ(life.rows(), 0u);
  EXPECT_EQ(life.clock_gap(), 2);
}

TEST(TableLife, CountsTimeOnceIfTheClockGoesBackALittle) {
  TableLife life(IdleSeconds(100), 0, 0);
  NewIds(&life, 1, 1, 0);
  for (uint32_t step = 2; step < 200; ++step) NewIds(&life, step, 0, step % 2 == 0 ? 40 : 10);
  EXPECT_EQ(life.rows(), 1u);
}

TEST(TableLife, GoesOnFromAClockThatHasBeenSetBack) {
  TableLife life(IdleSeconds(100), 0, 1e9);
  NewIds(&life, 1, 1, 1e9);
  NewIds(&life, 2, 0, 0);
  EXPECT_EQ(life.rows(), 1u);
  NewIds(&life, 3, 0, 50);
  NewIds(&life, 4, 0, 101);
  EXPECT_EQ(life.rows(), 0u);
}

TEST(TableLife, RefusesAClockThatIsNoNumber) {
  TableLife life(IdleSteps(2), 0, 0);
  NewIds(&life, 1, 3);
  const std::string before = life.Serialize();
  for (double clock : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    ExpectError(ErrorCode::kInvalidArgument, {"clock"}, [&] { life.BeginStep(2, 1, clock); });
    ExpectError(ErrorCode::kInvalidArgument, {"clock"}, [&] { TableLife(LifeOptions(), 0, clock); });
  }
  ExpectError(ErrorCode::kInvalidArgument, {"step", "1", "0"}, [&] { life.BeginStep(0, 1, 0); });
  EXPECT_EQ(life.Serialize(), before);
}

TEST(TableLife, CutsTheRowsThatWereUpdatedLongestAgo) {
  TableLife life(MostRows(10, 8), 0, 0);
  for (uint32_t step = 1; step <= 5; ++step) NewIds(&life, step, 2);
  EXPECT_EQ(life.rows(), 10u);
  NewIds(&life, 6, 1);
  EXPECT_EQ(life.rows(), 7u);
  EXPECT_EQ(life.counts().cut, 4u);
  EXPECT_TRUE(life.ladder().IsDead({2, 1}, 2000));
  EXPECT_FALSE(life.ladder().IsDead({3, 1}, 3000));
}

TEST(TableLife, NeverCutsTheRowsOfTheNewestStep) {
  TableLife life(MostRows(10, 8), 0, 0);
  for (uint32_t step = 1; step <= 5; ++step) NewIds(&life, step, 4);
  NewIds(&life, 6, 50);
  EXPECT_EQ(life.rows(), 50u);
  NewIds(&life, 7, 1);
  EXPECT_LE(life.rows(), 8u);
  EXPECT_GE(life.rows(), 4u);
}

TEST(TableLife, GivesRowsWithMoreUpdatesCredit) {
  TableLife life(MostRows(10, 9, 3), 0, 0);
  life.BeginStep(1, 2, 0);
  life.Add({1, 1}, 1);  // as if of step 4
  life.Add({1, 4}, 2);  // of step 10
  life.EndStep();
  for (uint32_t step = 2; step <= 9; ++step) NewIds(&life, step, 1);
  EXPECT_EQ(life.rows(), 10u);
  NewIds(&life, 10, 1);
  EXPECT_EQ(life.rows(), 9u);
  EXPECT_TRUE(life.ladder().IsDead({2, 1}, 2000));
  EXPECT_FALSE(life.ladder().IsDead({3, 1}, 3000));
  EXPECT_FALSE(life.ladder().IsDead({1, 4}, 2));
}

TEST(TableLife, CutsPartOfTheRowsThatWereSetInOneStep) {
  TableLife life({}, 5, 0);
  for (int64_t id = 0; id < 100'000; ++id) life.Add({5, 0}, id);
  life.CountCreated(100'000);
  life.SetOptions(MostRows(90'000, 80'000));
  NewIds(&life, 6, 10);
  EXPECT_LE(life.rows(), 80'000u);
  EXPECT_GT(life.rows(), 79'000u);
  uint64_t alive = 10;
  for (int64_t id = 0; id < 100'000; ++id) alive += life.ladder().IsDead({5, 0}, id) ? 0 : 1;
  EXPECT_EQ(life.rows(), alive);
  EXPECT_EQ(life.counts().created, 100'010u);
  EXPECT_EQ(life.counts().cut + life.rows(), 100'010u);
}

TEST(TableLife, ForgetsSightings) {
  LifeOptions options;
  options.sightings = 3;
  options.within_steps = 4;
  TableLife life(options, 0, 0);
  life.BeginStep(1, 2, 0);
  life.AddSighting({1, 1});
  life.AddSighting({1, 2});
  life.EndStep();
  NewIds(&life, 2, 1);
  life.BeginStep(3, 1, 0);
  life.RemoveSighting({1, 2});
  life.AddSighting({3, 2});
  life.EndStep();
  for (uint32_t step = 4; step <= 6; ++step) NewIds(&life, step, 0);
  EXPECT_EQ(life.sighted(), 1u);
  EXPECT_TRUE(life.ladder().IsDeadSighting({1, 1}));
  EXPECT_FALSE(life.ladder().IsDeadSighting({3, 1}));
  EXPECT_EQ(life.rows(), 1u);
  EXPECT_EQ(life.counts().forgotten_sightings, 1u);
}

TEST(TableLife, ForeseesWhatOtherOptionsWouldRemove) {
  TableLife life(IdleSteps(1000), 0, 0);
  for (uint32_t step = 1; step <= 100; ++step) NewIds(&life, step, 2);
  const std::string before = life.Serialize();
  EXPECT_EQ(life.Preview(IdleSteps(1000)), 0u);
  const uint64_t by_cut = life.Preview(MostRows(100, 90));
  EXPECT_GE(by_cut, 110u);
  EXPECT_LE(by_cut, 120u);
  EXPECT_NEAR(static_cast<double>(life.Preview(IdleSteps(50))), 98, 8);
  ExpectError(ErrorCode::kInvalidArgument, {"max_rows"}, [&] { life.Preview(MostRows(0, 0)); });
  EXPECT_EQ(life.Serialize(), before);
}

TEST(TableLife, NeverLowersTheLadder) {
  TableLife life(IdleSteps(10), 0, 0);
  for (uint32_t step = 1; step <= 50; ++step) NewIds(&life, step, 1);
  const uint64_t highest = life.ladder().highest();
  EXPECT_EQ(highest, 40u);
  life.SetOptions(IdleSteps(1000));
  NewIds(&life, 51, 1);
  EXPECT_EQ(life.ladder().highest(), highest);
  life.SetOptions({});
  NewIds(&life, 52, 1);
  EXPECT_EQ(life.ladder().highest(), highest);
  EXPECT_TRUE(life.counts().expired.empty());
}

TEST(TableLife, KeepsTheCountsOfRulesThatStay) {
  LifeOptions options = IdleSteps(10);
  options.idle.push_back({.steps = 5, .below_count = 2});
  TableLife life(options, 0, 0);
  for (uint32_t step = 1; step <= 20; ++step) NewIds(&life, step, 1);
  EXPECT_EQ(life.counts().expired, (std::vector<uint64_t>{0, 14}));
  life.SetOptions(IdleSteps(5, 2));
  EXPECT_EQ(life.counts().expired, std::vector<uint64_t>{14});
  life.SetOptions(IdleSteps(6, 2));
  EXPECT_EQ(life.counts().expired, std::vector<uint64_t>{0});
}

TEST(TableLife, TakesItsLimitsFromTheRowsThatATableHadBefore) {
  TableLife life(IdleSteps(100), 1'000'000, 0);
  for (uint32_t step = 0; step <= 1'000'000; step += 10) life.Add({step, step % 40}, step);
  EXPECT_EQ(life.counts().created, 0u);
  NewIds(&life, 1'000'001, 1);
  EXPECT_EQ(life.rows(), 11u);  // of 999,910 to 1,000,000, and the new one
}

// Whatever the options were before: a cut takes about as many as it should.
TEST(TableLife, CutsNoMoreThanItShouldIfALimitComesLater) {
  const auto cut = [](TableLife* life, uint32_t step) {
    const uint64_t before = life->rows(), keep = before / 2;
    life->SetOptions(MostRows(before - 10, keep));
    NewIds(life, step, 1);
    EXPECT_LE(life->rows(), keep);
    EXPECT_GE(life->rows(), keep - before / 64);
  };
  TableLife old(IdleSteps(100'000), 1'000'000, 0);  // all of whose rows are in use
  for (int64_t id = 0; id < 100'000; ++id) old.Add({static_cast<uint32_t>(1'000'000 - id % 400), 2}, id);
  cut(&old, 1'000'001);
  TableLife life(IdleSteps(100'000), 0, 0);
  for (uint32_t step = 1; step <= 20'000; ++step) {
    life.BeginStep(step, 10, 0);
    for (int64_t i = 0; i < 10; ++i) {
      const int64_t id = (step * 10 + i) % 2000;
      if (step > 200) life.Remove({step - 200, 1}, id);
      life.Add({step, 1}, id);
    }
    life.EndStep();
  }
  cut(&life, 20'001);
}

TEST(TableLife, SumsWhatThreadsTallied) {
  TableLife life(IdleSteps(100), 0, 0), expected(IdleSteps(100), 0, 0);
  NewIds(&life, 1, 500);
  NewIds(&expected, 1, 500);
  life.BeginStep(2, 500, 0);
  expected.BeginStep(2, 500, 0);
  {
    LifeTally first(&life), second(&life);
    for (int64_t i = 0; i < 500; ++i) {
      LifeTally& tally = i % 2 == 0 ? first : second;
      tally.Remove({1, 1}, 1000 + i);
      tally.Add({2, 2}, 1000 + i);
      expected.Remove({1, 1}, 1000 + i);
      expected.Add({2, 2}, 1000 + i);
    }
    first.AddSighting({2, 1});
    second.AddSighting({2, 1});
    second.RemoveSighting({2, 1});
    expected.AddSighting({2, 1});
  }
  life.EndStep();
  expected.EndStep();
  EXPECT_EQ(life.Serialize(), expected.Serialize());
  EXPECT_EQ(life.rows(), 500u);
  EXPECT_EQ(life.sighted(), 1u);
}

TEST(LifeOptions, AreRefusedByName) {
  const auto refuses = [](const std::string& name, auto change) {
    LifeOptions options = MostRows(100, 90);
    change(&options);
    ExpectError(ErrorCode::kInvalidArgument, {name}, [&] { CheckLifeOptions(options); });
    ExpectError(ErrorCode::kInvalidArgument, {name}, [&] { TableLife(options, 0, 0); });
    TableLife life({}, 0, 0);
    const std::string before = life.Serialize();
    ExpectError(ErrorCode::kInvalidArgument, {name}, [&] { life.SetOptions(options); });
    EXPECT_EQ(life.Serialize(), before);
  };
  const double nan = std::nan("");
  refuses("sightings", [](auto* o) { o->sightings = 0; });
  for (double p : {0.0, -0.1, 1.1, nan}) refuses("probability", [=](auto* o) { o->probability = p; });
  refuses("max_rows", [](auto* o) { o->max_rows = 0; });
  refuses("keep_rows", [](auto* o) { o->keep_rows = 101; });
  refuses("keep_rows", [](auto* o) { o->keep_rows = 0; });
  refuses("keep_rows", [](auto* o) { o->max_rows = kNoLimit; });
  refuses("credit", [](auto* o) {
    *o = {};
    o->credit = 1;
  });
  refuses("min_rows", [](auto* o) { o->min_rows = 101; });
  refuses("expire[0]", [](auto* o) { o->idle = {{}}; });
  refuses("expire[1]", [](auto* o) { o->idle = {{.steps = 1}, {.steps = 1, .seconds = 1}}; });
  for (double s : {-1.0, nan, HUGE_VAL}) refuses("expire[0]", [=](auto* o) { o->idle = {{.seconds = s}}; });
  for (uint64_t n : {uint64_t{3}, kMostBelowCount * 2}) {
    refuses("below_count", [=](auto* o) { o->idle = {{.steps = 1, .below_count = n}}; });
  }
}

TEST(LifeOptions, MayBeAsWideAsTheyGo) {
  LifeOptions options;
  options.idle = {{.steps = UINT32_MAX, .below_count = kMostBelowCount}, {.seconds = 1e300, .below_count = 1}};
  options.max_rows = kNoLimit - 1;
  options.keep_rows = 1;
  options.credit = UINT32_MAX;
  options.within_steps = UINT32_MAX;
  TableLife life(options, UINT32_MAX - 5, 1e300);
  for (uint32_t i = 0; i < 5; ++i) NewIds(&life, UINT32_MAX - 4 + i, 3, -1e300);
  EXPECT_EQ(life.rows(), 15u);
  TableLife narrow(MostRows(1, 1, UINT32_MAX), UINT32_MAX - 5, 0);
  for (uint32_t i = 0; i < 5; ++i) NewIds(&narrow, UINT32_MAX - 4 + i, 3);
  EXPECT_EQ(narrow.rows(), 3u);
}

}  // namespace
}  // namespace damo
