// What is left of a call that finds no memory.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <latch>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/buffer_pool.h"
#include "base/files.h"
#include "base/thread_pool.h"
#include "base/worker.h"
#include "testing/calls_without_memory.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

using testing::CallWithoutMemory;
using testing::FailEachAllocation;
using testing::Outcome;

TEST(NoMemoryTest, AThreadPoolThatCannotBeMadeLeavesNoThread) {
  FailEachAllocation([](size_t n) {
    std::unique_ptr<ThreadPool> pool;
    const Outcome outcome = CallWithoutMemory(n, [&] { pool = std::make_unique<ThreadPool>(5); });
    EXPECT_EQ(outcome.threw, pool == nullptr);
    return outcome.failed;
  });
}

TEST(NoMemoryTest, ALoopRunsWholeOrNotAtAll) {
  FailEachAllocation([](size_t n) {
    ThreadPool pool(3);
    std::atomic<int> calls = 0;
    const auto loop = [&] { pool.ParallelFor(100, [&](size_t, int) { ++calls; }); };
    const Outcome outcome = CallWithoutMemory(n, loop);
    EXPECT_EQ(calls, outcome.threw ? 0 : 100);
    calls = 0;
    loop();
    EXPECT_EQ(calls, 100);
    return outcome.failed;
  });
}

TEST(NoMemoryTest, AJobIsDoneOrNot) {
  FailEachAllocation([](size_t n) {
    Worker worker;
    int done = 0;
    const std::function<void()> job = [&done, padding = std::string(100, 'x')] { ++done; };
    const Outcome outcome = CallWithoutMemory(n, [&] { worker.Post(job); });
    std::latch end(1);
    worker.Post([&] { end.count_down(); });
    end.wait();
    EXPECT_EQ(done, outcome.threw ? 0 : 1);
    return outcome.failed;
  });
}

TEST(NoMemoryTest, BuffersThatCannotBeKeptGoBackToTheSystem) {
  FailEachAllocation([](size_t n) {
    BufferPool pool(size_t{1} << 20);
    Pages pages = pool.Take(1000);
    const Outcome outcome = CallWithoutMemory(n, [&] { pool.GiveBack(std::move(pages)); });
    EXPECT_FALSE(outcome.threw);
    EXPECT_NE(pool.Take(1000).get(), nullptr);
    return outcome.failed;
  });
}

TEST(NoMemoryTest, ADirectoryIsBuiltOrGone) {
  const testing::TemporaryDirectory directory;
  FailEachAllocation([&](size_t n) {
    const std::string path = directory / std::to_string(n);
    const Outcome outcome = CallWithoutMemory(n, [&] {
      BuildDirectory(path, [&] {
        FileWriter file(path + "/a", kDirectAlignment);
        file.Append("rows");
        file.Finish();
        CopyFile(path + "/a", path + "/b", 4);
      });
    });
    EXPECT_EQ(outcome.threw, !std::filesystem::exists(path));
    return outcome.failed;
  });
}

}  // namespace
}  // namespace damo
