// The time that rules go by, where the clock leaps.
#include "life/life_clock.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "life/table_life.h"

namespace damo {
namespace {

constexpr double kHour = 3600, kDay = 24 * kHour;

TEST(LifeClock, CountsOfALeapHalfOfEachRule) {
  const std::vector<double> rules{10, 100};
  LifeClock clock(1000);
  clock.Read(1004, rules);
  EXPECT_EQ(clock.IdleTime(0, 10), 4);
  clock.Read(1034, rules);
  EXPECT_EQ(clock.gap(), 30);
  EXPECT_EQ(clock.IdleTime(0, 10), 9);
  EXPECT_EQ(clock.IdleTime(0, 100), 34);
  EXPECT_EQ(clock.IdleTime(4, 10), 5);
  EXPECT_EQ(clock.IdleTime(34, 10), 0);
  clock.Read(2034, rules);
  EXPECT_EQ(clock.IdleTime(0, 100), 84);
  EXPECT_EQ(clock.time(), 1034);
  clock.Read(2034, rules);
  EXPECT_EQ(clock.gap(), 0);
}

TEST(LifeClock, NeverLeapsByMoreThanAnyClockDoes) {
  LifeClock clock(-1e300);
  clock.Read(1e300, {});
  EXPECT_EQ(clock.time(), 1e9);
  EXPECT_TRUE(clock.leaps().empty());
}

// Against a plain sum of gaps, of which each counts half of the rule at most.
TEST(LifeClock, HasRowsDueWhenASumOfGapsSaysHoweverManyLeapsThereAre) {
  const std::vector<double> rules{1, 8, 300};
  std::mt19937 random(1);
  LifeClock clock(0);
  double reading = 0;
  std::vector<double> times{0}, gaps;
  for (int i = 0; i < 3000; ++i) {
    gaps.push_back(std::vector<double>{0.25, 2, 2, 40, 1000}[random() % 5]);
    reading += gaps.back();
    clock.Reserve();
    clock.Read(reading, rules);
    times.push_back(clock.time());
    ASSERT_LE(clock.leaps().size(), LifeClock::kMostLeaps);
    for (double rule : rules) {
      double idle = 0;
      for (size_t from = gaps.size(); from-- > 0 && idle < 2 * rule;) {
        idle += std::min(gaps[from], rule / 2);
        ASSERT_EQ(clock.IdleTime(times[from], rule) >= rule, idle >= rule) << i << " " << rule;
      }
    }
  }
}

// Two rules, a table that is trained by day, and its row that is not.
TEST(TableLife, CountsTheNightsByEachRuleAsItShould) {
  LifeOptions options;
  options.idle = {{.seconds = kHour, .below_count = 2}, {.seconds = 3 * kDay}};
  TableLife life(options, 0, 0);
  life.BeginStep(1, 1, 0);
  life.Add({1, 5}, 7);
  life.EndStep();
  double clock = 0, gone = 0;
  for (uint32_t step = 2; gone == 0 && step < 10'000; ++step) {
    clock += step % 100 == 0 ? 16 * kHour : kHour / 12;
    life.BeginStep(step, 0, clock);
    life.EndStep();
    if (life.rows() == 0) gone = clock;
  }
  EXPECT_GE(gone, 3 * kDay);
  EXPECT_LE(gone, 3 * kDay + 17 * kHour);  // the night in which it is due
}

TEST(TableLife, IsNotYoungerForUpdatesOfOthers) {
  LifeOptions options;
  options.idle = {{.seconds = 100}};
  TableLife life(options, 0, 0);
  life.BeginStep(1, 1, 0);
  life.Add({1, 1}, 7);
  life.EndStep();
  for (int i = 1; i < 100; ++i) life.PassTime(10 * i);
  EXPECT_EQ(life.clock_gap(), 10);
  EXPECT_EQ(life.rows(), 1u);
  const std::string bytes = life.Serialize();
  EXPECT_EQ(TableLife(bytes, options).Serialize(), bytes);
  life.BeginStep(2, 1, 1000);
  life.Add({2, 1}, 8);
  life.EndStep();
  EXPECT_EQ(life.rows(), 1u);
  EXPECT_TRUE(life.ladder().IsDead({1, 1}, 7));
  life.BeginStep(3, 0, 1090);
  life.EndStep();
  EXPECT_EQ(life.rows(), 1u);
}

}  // namespace
}  // namespace damo
