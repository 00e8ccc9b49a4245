// What ends reads that are under way, other processes, and calls from several threads.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "engine/prefetch_testing.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ErrorOf;
using testing::ExpectError;
using testing::FirstRead;
using testing::GetRows;
using testing::Hooked;
using testing::HookedStore;
using testing::OpenFilled;
using testing::Prefetch;
using testing::Range;
using testing::Step;
using testing::WeightsOfIds;

// ---- the end

TEST(PrefetchCloseTest, WaitsForTheReadUnderWayAndDropsTheOthers) {
  FirstRead first;
  std::atomic<int> reads = 0;
  const std::unique_ptr<Store> store =
      OpenFilled(Range(0, 1000), 4, {}, testing::kRoomyCache, Hooked([&] { ++reads, first(); }));
  for (int64_t i = 0; i < 10; ++i) Prefetch(store.get(), 0, Range(10 * i, 10 * (i + 1)));
  first.AwaitArrival();
  EXPECT_EQ(reads, 1) << "the test needs reads that have not begun";
  const std::jthread opener = first.LetGoInTheBackground(false);
  store->Close();
  ExpectError(ErrorCode::kClosed, {"closed"}, [&] { Prefetch(store.get(), 0, {1}); });
  store->Close();
}

TEST(PrefetchCloseTest, AStoreThatGoesDuringAReadWaitsForIt) {
  for (const bool fails : {false, true}) {
    FirstRead first;
    std::unique_ptr<Store> store = OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { first(); }));
    Prefetch(store.get(), 0, Range(0, 10));
    Prefetch(store.get(), 0, Range(5, 20));
    first.AwaitArrival();
    const std::jthread opener = first.LetGoInTheBackground(fails);
    store.reset();
  }
}

TEST(PrefetchForkTest, AChildCannotPrefetchAndTheParentGoesOn) {
  FirstRead first;
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { first(); }));
  Prefetch(store.get(), 0, Range(0, 10));
  first.AwaitArrival();
  const pid_t child = fork();
  if (child == 0) {
    const auto error = ErrorOf([&] { Prefetch(store.get(), 0, {15}); });
    store->Close();  // does nothing, and waits for nothing
    _exit(error && error->code() == ErrorCode::kClosed ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  const std::jthread opener = first.LetGoInTheBackground(false);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 20)), WeightsOfIds(Range(0, 20)));
}

// ---- several threads

class PrefetchThreadsTest : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Reads, PrefetchThreadsTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Wide" : "Narrow"; });

// One thread reads ahead, at random, while others train, delete and set rows, and the cache is too small. Now and then
// a read fails; who made the call makes it again.
TEST_P(PrefetchThreadsTest, NothingIsLost) {
  constexpr int kDim = 64;
  constexpr int64_t kShared = 15000, kOwn = 100000;
  constexpr int kRounds = 40;
  StoreOptions options;
  options.num_threads = 2;
  options.direct_io = GetParam();
  std::atomic<bool> trained = false;
  std::atomic<int> reads = 0;
  const auto before_read = [&] {
    std::this_thread::yield();
    if (!trained && ++reads % 101 == 0) throw Error(ErrorCode::kIo, "the disk is on fire");
  };
  const std::unique_ptr<Store> store = OpenFilled(Range(0, kShared), kDim, options, testing::kTightCache,
                                                  std::make_unique<HookedStore>(before_read, std::this_thread::yield));
  const auto random_ids = [](std::mt19937_64* random, size_t n) {
    std::vector<int64_t> ids(n);
    for (int64_t& id : ids) id = static_cast<int64_t>((*random)() % kShared);
    return ids;
  };
  std::vector<std::vector<int>> updates(2, std::vector<int>(kShared));
  std::vector<std::jthread> threads;
  for (int trainer = 0; trainer < 2; ++trainer) {
    threads.emplace_back([&, trainer] {
      std::mt19937_64 random(static_cast<uint64_t>(trainer));
      for (int round = 0; round < kRounds; ++round) {
        const std::vector<int64_t> ids = random_ids(&random, 600);
        while (ErrorOf([&] { Step(store.get(), 0, ids, 1); })) {
        }
        for (const int64_t id : ids) ++updates[static_cast<size_t>(trainer)][static_cast<size_t>(id)];
      }
    });
  }
  std::atomic<int> wrong = 0;
  threads.emplace_back([&] {  // rows that come and go
    const std::vector<int64_t> ids = Range(kOwn, kOwn + 300);
    for (int round = 1; round <= kRounds; ++round) {
      const std::vector<float> weights(ids.size() * kDim, static_cast<float>(round));
      while (ErrorOf([&] {
        store->Set(0, ids, weights.data());
        wrong += GetRows(store.get(), 0, ids) == weights ? 0 : 1;
        store->Delete(0, ids);
        wrong += GetRows(store.get(), 0, ids) == std::vector<float>(weights.size(), 0) ? 0 : 1;
      })) {
      }
    }
  });
  std::jthread prefetcher([&] {
    std::mt19937_64 random(10);
    while (!trained) {
      Prefetch(store.get(), 0, random_ids(&random, 400));
      Prefetch(store.get(), 0, Range(kOwn, kOwn + 300));
    }
  });
  threads.clear();
  trained = true;
  prefetcher.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(store->rows(0), kShared);
  const std::vector<float> rows = GetRows(store.get(), 0, Range(0, kShared));
  for (size_t id = 0; id < kShared; ++id) {
    const float expected = static_cast<float>(static_cast<int>(id) - updates[0][id] - updates[1][id]);
    ASSERT_EQ(rows[id * kDim], expected) << id;
    ASSERT_EQ(rows[id * kDim + kDim - 1], expected) << id;
  }
}

TEST(PrefetchThreadsTest, CloseEndsThemAll) {
  const auto yield = [] { std::this_thread::yield(); };
  const std::unique_ptr<Store> store =
      OpenFilled({}, 64, {}, testing::kTightCache, std::make_unique<HookedStore>(yield, yield));
  std::atomic<int> prefetches = 0, wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (int64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        const auto error = ErrorOf([&] {
          for (int64_t i = 0;; ++i, ++prefetches) {
            const std::vector<int64_t> ids = Range(1000 * ((i + 30 * t) % 90), 1000 * ((i + 30 * t) % 90) + 500);
            Prefetch(store.get(), 0, ids);
            if (t == 0) Step(store.get(), 0, ids, 1);
          }
        });
        wrong += error->code() == ErrorCode::kClosed ? 0 : 1;
      });
    }
    while (prefetches < 60) std::this_thread::yield();
    store->Close();
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace damo
