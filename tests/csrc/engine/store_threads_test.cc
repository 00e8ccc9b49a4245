// Calls from several threads, the write-back thread, other processes and odd floating point environments. Most of what
// these tests are for, the sanitizers find.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/store_model.h"
#include "engine/store_testing.h"

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ErrorOf;
using testing::Forward;
using testing::Gate;
using testing::GetRows;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::Training;

StoreOptions WithThreads(int threads) {
  StoreOptions options;
  options.num_threads = threads;
  return options;
}

// A row store in which other threads get their turn at every call.
std::unique_ptr<RowStore> OpenYieldingStore() {
  const auto yield = [] {
    for (int i = 0; i < 20; ++i) std::this_thread::yield();
  };
  return std::make_unique<HookedStore>(yield, yield);
}

float FirstWeight(const std::string& payload) {
  float weight;
  std::memcpy(&weight, payload.data(), sizeof weight);
  return weight;
}

// A table that has seen many steps: the cache keeps none of the rows that a few more update, so that the write-back
// thread has work to do.
TableSchema OldTable(int dim) {
  TableSchema schema = PlainTable("t", 1, dim);
  schema.iter = 1000000;
  return schema;
}

std::vector<int64_t> RandomIds(std::mt19937_64* random, int64_t begin, int64_t end, size_t n) {
  std::vector<int64_t> ids;
  while (ids.size() < n) ids.push_back(begin + static_cast<int64_t>((*random)() % static_cast<uint64_t>(end - begin)));
  return ids;
}

TEST(StoreThreadsTest, ConcurrentCallsLoseNothing) {
  constexpr size_t kDim = 64;
  constexpr int64_t kShared = 20000;  // ids that the trainers share; every other thread has ids of its own
  constexpr int kTrainers = 3, kRounds = 60;
  const std::unique_ptr<Store> store = OpenStore(WithThreads(2), testing::kTightCache, OpenYieldingStore());
  store->OpenTable(PlainTable("t", 1, kDim));
  store->OpenTable(PlainTable("u", 2, 3));
  std::vector<std::vector<int>> updates(kTrainers, std::vector<int>(kShared));
  std::vector<std::thread> threads;
  for (int trainer = 0; trainer < kTrainers; ++trainer) {
    threads.emplace_back([&, trainer] {
      std::mt19937_64 random(static_cast<uint64_t>(trainer));
      for (int round = 0; round < kRounds; ++round) {
        const std::vector<int64_t> ids = RandomIds(&random, 0, kShared, 500);
        Step(store.get(), 0, ids, 1);
        for (const int64_t id : ids) ++updates[static_cast<size_t>(trainer)][static_cast<size_t>(id)];
      }
    });
  }
  std::atomic<int> wrong = 0;
  threads.emplace_back([&] {  // sets, gets
    std::mt19937_64 random(10);
    for (int round = 1; round <= kRounds; ++round) {
      const std::vector<int64_t> ids = RandomIds(&random, 100000, 110000, 300);
      const std::vector<float> weights(ids.size() * kDim, static_cast<float>(round));
      store->Set(0, ids, weights.data());
      if (GetRows(store.get(), 0, ids) != weights) ++wrong;
    }
  });
  threads.emplace_back([&] {  // creates, deletes
    for (int round = 0; round < kRounds; ++round) {
      const std::vector<int64_t> ids = Range(200000, 200400), half = Range(200000, 200200);
      for (uint16_t table = 0; table < 2; ++table) {
        Step(store.get(), table, ids, 1);
        store->Delete(table, half);
        std::vector<uint8_t> contains(ids.size());
        store->Contains(table, ids, contains.data());
        for (size_t i = 0; i < ids.size(); ++i) wrong += contains[i] == (i < half.size() ? 0 : 1) ? 0 : 1;
      }
    }
  });
  threads.emplace_back([&] {  // looks on
    for (int round = 0; round < kRounds / 3; ++round) {
      Contents(store.get(), 1);
      store->Flush();
      store->rows(0);
      store->iter(0);
      store->table_stats(0);
      store->cache_memory_bytes();
      store->row_store_stats();
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(store->iter(0), static_cast<uint32_t>(kTrainers * kRounds + kRounds));
  const testing::Table contents = Contents(store.get(), 0);
  EXPECT_EQ(store->rows(0), static_cast<int64_t>(contents.size()));
  for (int64_t id = 0; id < kShared; ++id) {
    int expected = 0;
    for (const std::vector<int>& of_trainer : updates) expected += of_trainer[static_cast<size_t>(id)];
    const auto row = contents.find(id);
    ASSERT_EQ(row != contents.end(), expected > 0) << id;
    ASSERT_EQ(row == contents.end() ? 0 : FirstWeight(row->second), -expected) << id;
  }
}

TEST(StoreThreadsTest, TablesMayBeOpenedDuringOtherCalls) {
  const std::unique_ptr<Store> store = OpenStore(WithThreads(2));
  store->OpenTable(PlainTable("t", 1, 8));
  std::thread opener([&] {
    for (uint32_t number = 2; number < 60; ++number) {
      const uint16_t table = store->OpenTable(PlainTable("u", number, 4));
      Step(store.get(), table, {1, 2, 3}, 1);
    }
  });
  for (int round = 0; round < 60; ++round) {
    Step(store.get(), 0, Range(0, 100), 1);
    GetRows(store.get(), 0, Range(0, 100));
    store->rows(0);
  }
  opener.join();
  EXPECT_EQ(GetRows(store.get(), 0, {5}), std::vector<float>(8, -60));
  EXPECT_EQ(GetRows(store.get(), 58, {3}), std::vector<float>(4, -1));
}

TEST(StoreThreadsTest, CloseWaitsForCallsAndEndsThem) {
  const std::unique_ptr<Store> store = OpenStore(WithThreads(2), testing::kTightCache, OpenYieldingStore());
  store->OpenTable(PlainTable("t", 1, 16));
  std::atomic<int> steps = 0, wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<uint64_t>(t));
      const auto error = ErrorOf([&] {
        for (;; ++steps) Step(store.get(), 0, RandomIds(&random, 0, 100000, 1000), 1);
      });
      if (error->code() != ErrorCode::kClosed) ++wrong;
    });
  }
  while (steps < 30) std::this_thread::yield();
  store->Close();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Rows that the write-back thread is about to write are deleted: they must not come back with that write.
TEST(StoreWriteBackTest, DeletedRowsStayDeletedWhileTheyAreWritten) {
  Gate gate;
  const std::thread::id caller = std::this_thread::get_id();
  const auto hold_background = [&] {
    if (std::this_thread::get_id() != caller) gate();
  };
  const std::unique_ptr<Store> store =
      OpenStore({}, testing::kRoomyCache, std::make_unique<HookedStore>([] {}, hold_background));
  store->OpenTable(OldTable(64));
  Step(store.get(), 0, Range(0, 5000), 1);
  gate.AwaitArrival();
  std::thread opener([&] { gate.Open(); });
  store->Delete(0, Range(0, 2500));
  opener.join();
  EXPECT_EQ(store->rows(0), 2500);
  const testing::Table contents = Contents(store.get(), 0);
  ASSERT_EQ(contents.size(), 2500u);
  EXPECT_EQ(contents.begin()->first, 2500);
}

TEST(StoreWriteBackTest, DeletedRowsStayDeletedUnderPressure) {
  const std::unique_ptr<Store> store = OpenStore({}, testing::kTightCache, OpenYieldingStore());
  store->OpenTable(OldTable(64));
  std::mt19937_64 random(1);
  std::set<int64_t> expected;
  for (int round = 0; round < 60; ++round) {
    const std::vector<int64_t> ids = RandomIds(&random, 0, 20000, 2000);
    Step(store.get(), 0, ids, 1);
    expected.insert(ids.begin(), ids.end());
    const std::vector<int64_t> deleted = RandomIds(&random, 0, 20000, 1500);
    store->Delete(0, deleted);
    for (const int64_t id : deleted) expected.erase(id);
    ASSERT_EQ(store->rows(0), static_cast<int64_t>(expected.size()));
  }
  std::set<int64_t> found;
  for (const auto& [id, payload] : Contents(store.get(), 0)) found.insert(id);
  EXPECT_EQ(found, expected);
}

TEST(StoreWriteBackTest, CloseWaitsForTheWriteUnderWay) {
  Gate gate;
  const std::unique_ptr<Store> store =
      OpenStore({}, testing::kRoomyCache, std::make_unique<HookedStore>([] {}, [&] { gate(); }));
  store->OpenTable(OldTable(64));
  Step(store.get(), 0, Range(0, 5000), 1);
  gate.AwaitArrival();
  std::thread opener([&] { gate.Open(); });
  store->Close();
  opener.join();
}

// Training on several times the rows that the least budget holds.
TEST(StorePressureTest, TheCacheKeepsToItsShareAndEveryRowIsRight) {
  constexpr size_t kBudget = size_t{64} << 20, kDim = 64;
  constexpr int64_t kSteps = 50, kNewIds = 4096, kHotIds = 2000;
  const BudgetShares shares = DivideBudget(kBudget);
  Store store(OpenMemoryStore(), shares, WithThreads(2));
  store.OpenTable(PlainTable("t", 1, kDim));
  for (int64_t i = 0; i < kSteps; ++i) {
    std::vector<int64_t> ids = Range(kNewIds * i, kNewIds * (i + 2));  // each of them twice, in steps one after another
    for (int64_t id = 0; id < kHotIds; ++id) ids.push_back(-1 - id);
    Step(&store, 0, ids, 1);
    ASSERT_LE(store.cache_memory_bytes(), shares.cache) << "step " << i;
  }
  EXPECT_LT(2 * static_cast<int64_t>(store.table_stats(0).cached_rows), store.rows(0)) << "this was no pressure";
  const std::unique_ptr<RowIterator> rows = store.Scan(0);
  int64_t id, expected_id = -kHotIds;
  const char* payload;
  for (; rows->Next(&id, &payload); ++expected_id) {
    ASSERT_EQ(id, expected_id);
    const bool once = id >= 0 && (id < kNewIds || id >= kNewIds * kSteps);
    const float expected = static_cast<float>(id < 0 ? -kSteps : once ? -1 : -2);
    float weights[kDim];
    std::memcpy(weights, payload, sizeof weights);
    for (const float weight : weights) ASSERT_EQ(weight, expected) << id;
  }
  EXPECT_EQ(expected_id, kNewIds * (kSteps + 1));
}

TEST(StoreForkTest, AChildCannotUseItsParentsStore) {
  const std::unique_ptr<Store> store = OpenStore(WithThreads(2));
  store->OpenTable(PlainTable("t", 1, 4));
  Step(store.get(), 0, {1}, 1);
  const pid_t child = fork();
  if (child == 0) {
    const auto error = ErrorOf([&] { GetRows(store.get(), 0, {1}); });
    const bool refused =
        error && error->code() == ErrorCode::kClosed && std::string(error->what()).find("fork") != std::string::npos;
    store->Close();  // does nothing
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(GetRows(store.get(), 0, {1}), std::vector<float>(4, -1));
}

// Rounds upwards and, where that can be set, flushes denormals to zero.
class OddFloatEnvironment {
 public:
  OddFloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetround(FE_UPWARD);
#ifdef __SSE2__
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
  }
  ~OddFloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
};

TEST(StoreFloatEnvironmentTest, RowsDoNotDependOnTheCallers) {
  const Training training(OptimizerKind::kAdam);
  std::vector<std::vector<float>> outputs[2];
  std::vector<testing::Table> contents[2];
  for (const bool odd : {false, true}) {
    const std::unique_ptr<Store> store = OpenStore(WithThreads(2));
    const auto environment = odd ? std::make_unique<OddFloatEnvironment>() : nullptr;
    training.OpenTables(store.get());
    outputs[odd] = training.Run(store.get());
    contents[odd] = training.AllContents(store.get());
  }
  EXPECT_TRUE(outputs[0] == outputs[1]);
  EXPECT_TRUE(contents[0] == contents[1]);
}

TEST(StoreFloatEnvironmentTest, WeightGradientsDoNotDependOnTheCallers) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 3, 0x1.234568p-70f));
  const Batch batch = {{1, 2}, {2}, {0.75f, 0.5f}, true, 1, 1};
  const auto lookup = batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0}});
  const std::vector<float> grad = {0x1.1p-70f, 0x1.3p-70f, 0x1.7p-70f};
  std::vector<float> gradients[2];
  for (const bool odd : {false, true}) {
    gradients[odd].resize(2);
    const auto environment = odd ? std::make_unique<OddFloatEnvironment>() : nullptr;
    store->WeightGradient(lookup.get(), grad.data(), 3, gradients[odd].data());
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

}  // namespace
}  // namespace damo
