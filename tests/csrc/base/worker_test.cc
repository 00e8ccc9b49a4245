#include "base/worker.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "testing/gate.h"

namespace damo {
namespace {

using testing::Gate;

// Returns once all jobs that were posted before it are done.
void AwaitJobs(Worker* worker) {
  const auto done = std::make_shared<std::latch>(1);
  worker->Post([done] { done->count_down(); });
  done->wait();
}

TEST(WorkerTest, DoesJobsOneAfterTheOtherInOrder) {
  Worker worker;
  std::vector<int> done;  // not guarded: for the thread sanitizer
  for (int i = 0; i < 1000; ++i) worker.Post([&done, i] { done.push_back(i); });
  AwaitJobs(&worker);
  ASSERT_EQ(done.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(done[static_cast<size_t>(i)], i);
}

TEST(WorkerTest, WorksOnAThreadOfItsOwnAndPostDoesNotWait) {
  Worker worker;
  Gate gate;
  std::thread::id thread;
  worker.Post([&] {
    gate();
    thread = std::this_thread::get_id();
  });
  gate.AwaitArrival();
  std::atomic<int> done = 0;
  for (int i = 0; i < 10; ++i) worker.Post([&] { ++done; });
  EXPECT_EQ(done, 0) << "the job before them is not done";
  gate.Open();
  AwaitJobs(&worker);
  EXPECT_EQ(done, 10);
  EXPECT_NE(thread, std::this_thread::get_id());
  EXPECT_NE(thread, std::thread::id());
}

TEST(WorkerTest, TakesJobsFromSeveralThreadsAndFromJobs) {
  Worker worker;
  int done = 0;  // not atomic: for the thread sanitizer
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 500; ++i) worker.Post([&] { ++done; });
      });
    }
  }
  worker.Post([&] { worker.Post([&] { ++done; }); });
  AwaitJobs(&worker);  // the job that posts
  AwaitJobs(&worker);  // what it posted
  EXPECT_EQ(done, 2001);
}

TEST(WorkerTest, LetsGoOfAJobOnceItIsDone) {
  Worker worker;
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  worker.Post([held = std::move(held)] {});
  AwaitJobs(&worker);
  EXPECT_TRUE(watch.expired());
}

TEST(WorkerTest, ItsEndWaitsForTheJobUnderWayAndKeepsNoOther) {
  Gate gate;
  bool finished = false;
  const auto held = std::make_shared<int>(0);
  {
    std::jthread opener;
    Worker worker;
    worker.Post([&] {
      gate();
      for (int i = 0; i < 1000; ++i) std::this_thread::yield();
      finished = true;
    });
    for (int i = 0; i < 10; ++i) worker.Post([held] {});
    gate.AwaitArrival();
    opener = std::jthread([&] { gate.Open(); });
  }
  EXPECT_TRUE(finished);
  EXPECT_EQ(held.use_count(), 1);
}

TEST(WorkerTest, MayEndWithoutAJob) {
  for (int i = 0; i < 100; ++i) Worker worker;
}

}  // namespace
}  // namespace damo
