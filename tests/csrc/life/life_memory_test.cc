// What a life takes, and that it allocates at the beginning of an update or not at all.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "life/life_tally.h"
#include "life/table_life.h"
#include "testing/calls_without_memory.h"

namespace damo {
namespace {

using testing::CallWithoutMemory;
using testing::FailEachAllocation;

LifeOptions Options() {
  LifeOptions options;
  options.sightings = 2;
  options.within_steps = 50;
  options.idle = {{.steps = 200}, {.seconds = 100, .below_count = 4}};
  options.max_rows = 300;
  options.keep_rows = 200;
  return options;
}

// Rows whose counts rise by one in each update, of which `n` are new.
void Update(TableLife* life, uint32_t step, uint32_t n) {
  LifeTally tally(life);
  if (step > 1) tally.Remove({step - 1, step - 1}, 1);
  tally.Add({step, step}, 1);
  for (uint32_t id = 0; id < n; ++id) tally.Add({step, 1}, 2 + id);
  tally.AddSighting({step, 1});
}

TEST(LifeMemory, IsAllocatedBeforeAnUpdate) {
  TableLife life(Options(), 0, 0);
  for (uint32_t step = 1; step <= 3000; ++step) {
    life.BeginStep(step, 12, step);
    for (int64_t id = 0; step % 7 == 0 && id < 5; ++id) life.Add({step, 0}, 1'000'000 + id);
    const auto outcome = CallWithoutMemory(0, [&] {
      Update(&life, step, 10);
      life.EndStep();
    });
    ASSERT_FALSE(outcome.threw || outcome.failed) << step;
    ASSERT_LE(life.rows(), 300u);
  }
}

TEST(LifeMemory, ThatIsNotThereAtTheBeginningOfAnUpdateChangesNothing) {
  FailEachAllocation([](size_t n) {
    TableLife life(Options(), 0, 0), expected(Options(), 0, 0);
    bool failed = false;
    for (uint32_t step = 1; step <= 300; ++step) {
      const std::string before = life.Serialize();
      const auto outcome = CallWithoutMemory(n, [&] { life.BeginStep(step, 12, step); });
      EXPECT_EQ(outcome.threw, outcome.failed);
      failed = failed || outcome.failed;
      if (outcome.threw) {
        EXPECT_EQ(life.Serialize(), before);
        life.BeginStep(step, 12, step);
      }
      expected.BeginStep(step, 12, step);
      for (TableLife* each : {&life, &expected}) {
        Update(each, step, 10);
        each->EndStep();
        if (step % 5 == 0) each->Add({step, 0}, 1);
      }
    }
    EXPECT_EQ(life.Serialize(), expected.Serialize());
    return failed;
  });
}

TEST(LifeMemory, IsSmall) {
  TableLife life(Options(), 0, 0);
  EXPECT_LT(life.memory_bytes(), 20u << 10);
  for (uint32_t step = 1; step <= 20'000; ++step) {
    life.BeginStep(step, 12, step);
    Update(&life, step, 10);
    life.EndStep();
  }
  EXPECT_LT(life.memory_bytes(), 160u << 10);
}

TEST(Life, SumsWhatThreadsDo) {
  constexpr int kThreads = 4, kRows = 2000;
  TableLife life(Options(), 5, 0);
  const auto on_threads = [](auto f) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) threads.emplace_back(f, t);
    for (std::thread& thread : threads) thread.join();
  };
  on_threads([&](int t) {
    for (int i = 0; i < kRows; ++i) life.Add({5, static_cast<uint32_t>(i % 40)}, t * kRows + i);
  });
  EXPECT_EQ(life.rows(), uint64_t{kThreads} * kRows);
  LifeOptions unlimited = Options();
  unlimited.max_rows = unlimited.keep_rows = kNoLimit;
  life.SetOptions(unlimited);
  life.BeginStep(6, kThreads * kRows, 0);
  on_threads([&](int t) {
    LifeTally tally(&life);
    for (int i = 0; i < kRows; ++i) {
      const auto count = static_cast<uint32_t>(i % 40);
      tally.Remove({5, count}, t * kRows + i);
      tally.Add({6, count + 1}, t * kRows + i);
    }
  });
  life.EndStep();
  TableLife expected(unlimited, 5, 0);
  expected.BeginStep(6, kThreads * kRows, 0);
  for (int i = 0; i < kThreads * kRows; ++i) expected.Add({6, static_cast<uint32_t>(i % kRows % 40) + 1}, i);
  expected.EndStep();
  EXPECT_EQ(DecodeLife(life.Serialize()).cells, DecodeLife(expected.Serialize()).cells);
}

}  // namespace
}  // namespace damo
