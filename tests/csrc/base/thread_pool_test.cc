#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <latch>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace damo {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 4, 9));

TEST_P(ThreadPoolTest, CountsTheCallingThread) { EXPECT_EQ(pool_.threads(), GetParam()); }

TEST_P(ThreadPoolTest, CallsEveryIndexOnce) {
  for (const size_t n : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> calls(n);
    std::atomic<bool> thread_in_range = true;
    pool_.ParallelFor(n, [&](size_t i, int thread) {
      ++calls[i];
      if (thread < 0 || thread >= pool_.threads()) thread_in_range = false;
    });
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(calls[i].load(), 1) << i << " of " << n;
    EXPECT_TRUE(thread_in_range);
  }
}

TEST_P(ThreadPoolTest, WhatOneThreadDoesIsNeverDoneAtOnce) {
  std::vector<int> counts(static_cast<size_t>(GetParam()));  // not atomic: for the thread sanitizer
  int total = 0;
  pool_.ParallelFor(10000, [&](size_t, int thread) { ++counts[static_cast<size_t>(thread)]; });
  for (const int count : counts) total += count;
  EXPECT_EQ(total, 10000);
}

TEST_P(ThreadPoolTest, ManyShortLoopsLoseNothing) {
  constexpr size_t kRounds = 20000;
  size_t sum = 0;
  std::vector<size_t> results(5);
  for (size_t round = 0; round < kRounds; ++round) {
    const size_t n = round % 6;
    pool_.ParallelFor(n, [&](size_t i, int) { results[i] = round + i; });
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(results[i], round + i);
      sum += 1;
    }
  }
  EXPECT_EQ(sum, kRounds / 6 * 15 + 1);
}

TEST_P(ThreadPoolTest, RethrowsAfterAllThreadsHaveStopped) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> running = 0;
    try {
      pool_.ParallelFor(100, [&](size_t i, int) {
        ++running;
        if (i % 10 == 3) {
          --running;
          throw std::out_of_range("index " + std::to_string(i));
        }
        std::this_thread::yield();
        --running;
      });
      FAIL() << "nothing was thrown";
    } catch (const std::out_of_range& error) {
      EXPECT_EQ(std::string(error.what()).substr(0, 6), "index ");
      EXPECT_EQ(running, 0);
    }
    // The next loop knows nothing of it.
    std::atomic<int> calls = 0;
    pool_.ParallelFor(10, [&](size_t, int) { ++calls; });
    ASSERT_EQ(calls, 10);
  }
}

TEST_P(ThreadPoolTest, OneIndexThatThrowsDoesNotHang) {
  for (int round = 0; round < 100; ++round) {
    EXPECT_THROW(pool_.ParallelFor(1, [](size_t, int) { throw 1; }), int);
  }
}

TEST_P(ThreadPoolTest, LoopsOfSeveralCallersLoseNothing) {
  constexpr size_t kRounds = 2000;
  std::atomic<int> wrong = 0;
  const auto caller = [&](size_t n) {
    std::vector<size_t> results(n);  // not atomic: for the thread sanitizer
    for (size_t round = 0; round < kRounds; ++round) {
      pool_.ParallelFor(n, [&](size_t i, int) { results[i] = round + i; });
      for (size_t i = 0; i < n; ++i) wrong += results[i] == round + i ? 0 : 1;
    }
  };
  std::vector<std::jthread> callers;
  callers.emplace_back(caller, 2);
  callers.emplace_back(caller, 7);
  callers.emplace_back(caller, 1);
  caller(20);
  callers.clear();
  EXPECT_EQ(wrong, 0);
}

TEST_P(ThreadPoolTest, AnErrorReachesOnlyTheCallerOfItsLoop) {
  std::atomic<int> wrong = 0;
  const auto caller = [&](int which) {
    for (int round = 0; round < 300; ++round) {
      try {
        pool_.ParallelFor(20, [&](size_t i, int) {
          if (which != 0 && i == 7) throw which;
        });
        wrong += which == 0 ? 0 : 1;
      } catch (const int error) {
        wrong += error == which ? 0 : 1;
      }
    }
  };
  {
    const std::jthread one(caller, 1), two(caller, 2);
    caller(0);
  }
  EXPECT_EQ(wrong, 0);
}

// All threads stand in the loop at once, or it would never end.
TEST_P(ThreadPoolTest, ALoopTakesAllThreadsThatAreFree) {
  std::latch all(pool_.threads());
  std::vector<std::atomic<int>> calls(static_cast<size_t>(pool_.threads()));
  pool_.ParallelFor(static_cast<size_t>(pool_.threads()), [&](size_t, int thread) {
    ++calls[static_cast<size_t>(thread)];
    all.arrive_and_wait();
  });
  for (const std::atomic<int>& of_thread : calls) EXPECT_EQ(of_thread, 1);
}

// As when reads that wait for a disk have all workers: another loop goes on without them, and has those that come free.
TEST_P(ThreadPoolTest, ALoopDoesNotWaitForWorkersThatAnotherHas) {
  const size_t threads = static_cast<size_t>(pool_.threads());
  std::latch busy(GetParam()), release(1);
  std::jthread other([&] {
    pool_.ParallelFor(threads, [&](size_t, int) {
      busy.count_down();
      release.wait();
    });
  });
  busy.wait();
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> calls = 0, elsewhere = 0;
  pool_.ParallelFor(100, [&](size_t, int) {
    ++calls;
    elsewhere += std::this_thread::get_id() == caller ? 0 : 1;
  });
  EXPECT_EQ(calls, 100);
  EXPECT_EQ(elsewhere, 0);
  release.count_down();
  other.join();
  std::latch all(GetParam());
  pool_.ParallelFor(threads, [&](size_t, int) { all.arrive_and_wait(); });
}

// Rounding to nearest and denormals as they are, in every thread, whatever the caller has set; and the caller keeps it.
TEST_P(ThreadPoolTest, LoopsRunInTheDefaultFloatEnvironment) {
  volatile float one = 1, tiny = 0x1p-30f, denormal = 0x1p-140f;
  std::fesetround(FE_UPWARD);
#ifdef __SSE2__
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);  // flush to zero, denormals are zero
#endif
  std::atomic<int> wrong = 0;
  for (const size_t n : {1, 50}) {
    pool_.ParallelFor(n, [&](size_t, int) {
      const float sum = one + tiny, product = denormal * one;
      if (std::fegetround() != FE_TONEAREST || sum != 1.0f || product == 0) ++wrong;
    });
  }
  EXPECT_THROW(pool_.ParallelFor(5, [](size_t, int) { throw 1; }), int);
  const float sum = one + tiny;
  const int rounding = std::fegetround();
#ifdef __SSE2__
  const unsigned after = _mm_getcsr();
  _mm_setcsr(saved);
  EXPECT_EQ(after & 0x8040, 0x8040u);
#endif
  std::fesetround(FE_TONEAREST);
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(sum, 1.0f);
  EXPECT_EQ(rounding, FE_UPWARD);
}

// Workers inherit the environment of the thread that starts them.
TEST(ThreadPoolTest, WorkersStartedUnderFlushToZeroDoNotFlush) {
#ifdef __SSE2__
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);
  ThreadPool pool(4);
  _mm_setcsr(saved);
  volatile float denormal = 0x1p-140f;
  std::atomic<int> flushed = 0;
  for (int round = 0; round < 100; ++round) {
    pool.ParallelFor(64, [&](size_t, int) {
      const float product = denormal * 1.0f;
      if (product == 0) ++flushed;
      std::this_thread::yield();
    });
  }
  EXPECT_EQ(flushed, 0);
#else
  GTEST_SKIP() << "flush to zero is set in a register of x86";
#endif
}

}  // namespace
}  // namespace damo
