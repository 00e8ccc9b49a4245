// Every call of a store at once, from threads of its own each. What this is for, the thread sanitizer finds.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::BatchOf;
using testing::ErrorOf;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;

constexpr size_t kDim = 64;
constexpr int kTrainers = 2, kSteps = 80;
constexpr int64_t kIds = 20000;         // that trainers update
constexpr int64_t kOthers = 1'000'000;  // those from here on are set and deleted

std::vector<int64_t> RandomIds(std::mt19937_64* random, int64_t begin, size_t n) {
  std::vector<int64_t> ids(n);
  for (int64_t& id : ids) id = begin + static_cast<int64_t>((*random)() % kIds);
  return ids;
}

// Calls, in a thread for each, until it is told to stop or the store is closed.
class Callers {
 public:
  ~Callers() { Stop(); }

  void Add(std::function<void(std::mt19937_64*)> call) {
    threads_.emplace_back([this, call = std::move(call), seed = threads_.size()] {
      std::mt19937_64 random(seed);
      const auto error = ErrorOf([&] {
        do call(&random);
        while (!stop_);
      });
      closed_ += error && error->code() == ErrorCode::kClosed ? 1 : 0;
      failed_ += error && error->code() != ErrorCode::kClosed ? 1 : 0;
    });
  }
  void Stop() {
    stop_ = true;
    AwaitEnd();
  }
  void AwaitEnd() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  size_t size() const { return threads_.size(); }
  // How many have ended since the store was closed, and by another error.
  size_t closed() const { return closed_; }
  size_t failed() const { return failed_; }

 private:
  std::atomic<bool> stop_ = false;
  std::atomic<size_t> closed_ = 0, failed_ = 0;
  std::vector<std::thread> threads_;
};

void AddReaders(Store* store, Callers* callers) {
  callers->Add([=](std::mt19937_64* random) {
    const std::vector<int64_t> ids = RandomIds(random, 0, 500);
    std::vector<float> weights(ids.size() * kDim);
    store->Get(0, ids, UnseenRows::kZeros, weights.data());
    std::vector<uint8_t> contains(ids.size());
    store->Contains(0, ids, contains.data());
  });
  callers->Add([=](std::mt19937_64* random) {
    const testing::Batch batch = BatchOf(RandomIds(random, 0, 500));
    const auto lookup = batch.lookup(OneFeature(0));
    store->Prefetch(lookup.get());
    testing::Forward(store, lookup.get(), kDim);
  });
  callers->Add([=](std::mt19937_64*) { testing::Contents(store, 0); });
  callers->Add([=](std::mt19937_64*) {
    store->iter(0);
    store->rows(0);
    store->layout(0);
    store->table_stats(0);
    store->row_store_stats();
    store->row_counts();
    store->cache_memory_bytes();
    store->instruction_set();
    store->outputs()->GiveBack(store->outputs()->Take(1000));
  });
}

void AddChangers(Store* store, const std::string& directory, std::atomic<int>* checkpoints, Callers* callers) {
  callers->Add([=](std::mt19937_64* random) {
    const std::vector<int64_t> ids = RandomIds(random, kOthers, 200);
    store->Set(0, ids, std::vector<float>(ids.size() * kDim, 5).data());
    store->Delete(0, RandomIds(random, kOthers, 200));
  });
  callers->Add([=](std::mt19937_64*) {
    store->Flush();
    store->SetOptimizer(0, PlainTable("t", 1, kDim).optimizer);
    store->CheckTable(PlainTable("u", 2, 4));
  });
  callers->Add([=, number = 2u](std::mt19937_64*) mutable {
    const TableSchema table = PlainTable("u", number, 4);
    if (number < 40) {
      store->OpenTable(table);
      ++number;
    } else {
      store->CheckTable(table);
    }
  });
  callers->Add([=](std::mt19937_64*) {
    store->BeginCheckpoint();
    store->AbandonCheckpoint();
    store->BeginCheckpoint();
    store->WriteCheckpoint(directory + "/" + std::to_string((*checkpoints)++), /*link=*/true);
  });
}

TEST(StoreEverythingTest, AtOnceLosesNothing) {
  const testing::TemporaryDirectory directory;
  const std::unique_ptr<Store> store = OpenStore({.num_threads = 2}, testing::kTightCache);
  store->OpenTable(PlainTable("t", 1, kDim));
  std::vector<int> updates(kIds);
  std::mutex mutex;
  std::atomic<int> checkpoints = 0;
  {
    Callers callers;
    AddReaders(store.get(), &callers);
    AddChangers(store.get(), directory / "", &checkpoints, &callers);
    std::vector<std::thread> trainers;
    for (uint64_t t = 0; t < kTrainers; ++t) {
      trainers.emplace_back([&, t] {
        std::mt19937_64 random(100 + t);
        for (int step = 0; step < kSteps; ++step) {
          const std::vector<int64_t> ids = RandomIds(&random, 0, 500);
          testing::Step(store.get(), 0, ids, 1);
          const std::lock_guard lock(mutex);
          for (const int64_t id : ids) ++updates[static_cast<size_t>(id)];
        }
      });
    }
    for (std::thread& trainer : trainers) trainer.join();
    callers.Stop();
    EXPECT_EQ(callers.closed() + callers.failed(), 0u);
  }
  EXPECT_GT(checkpoints, 0);
  EXPECT_EQ(store->iter(0), static_cast<uint32_t>(kTrainers * kSteps));
  const testing::Table contents = testing::Contents(store.get(), 0);
  EXPECT_EQ(store->rows(0), static_cast<int64_t>(contents.size()));
  const std::vector<float> weights = testing::GetRows(store.get(), 0, Range(0, kIds));
  for (size_t id = 0; id < kIds; ++id) {
    ASSERT_EQ(contents.contains(static_cast<int64_t>(id)), updates[id] > 0) << id;
    ASSERT_EQ(weights[id * kDim], static_cast<float>(-updates[id])) << id;
  }
}

TEST(StoreEverythingTest, AtOnceEndsWithClose) {
  const testing::TemporaryDirectory directory;
  const std::unique_ptr<Store> store = OpenStore({.num_threads = 2}, testing::kTightCache);
  store->OpenTable(PlainTable("t", 1, kDim));
  testing::Step(store.get(), 0, Range(0, 1000), 1);
  std::atomic<int> checkpoints = 0;
  Callers callers;
  AddReaders(store.get(), &callers);
  AddChangers(store.get(), directory / "", &checkpoints, &callers);
  while (checkpoints < 3) std::this_thread::yield();
  store->Close();
  const size_t all = callers.size();
  callers.AwaitEnd();
  EXPECT_EQ(callers.closed(), all);
  EXPECT_EQ(callers.failed(), 0u);
}

}  // namespace
}  // namespace damo
