// Checkpoints that are written while training goes on.

#include "engine/capture.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Contents;
using testing::ExpectError;
using testing::FailOnce;
using testing::Gate;
using testing::HookedStore;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;

constexpr int kDim = 64;
constexpr int64_t kRows = 4000;  // of several segments

class CaptureTest : public ::testing::Test {
 protected:
  // A store with kRows dirty rows.
  std::unique_ptr<Store> Open(
      size_t cache_bytes = testing::kRoomyCache, HookedStore::Hook before_write = [] {},
      const StoreOptions& options = {}) {
    auto rows = std::make_unique<HookedStore>([] {}, std::move(before_write));
    std::unique_ptr<Store> store = OpenStore(options, cache_bytes, std::move(rows));
    store->OpenTable(PlainTable("t", 1, kDim));
    Step(store.get(), 0, Range(0, kRows), 1);
    return store;
  }

  // What a checkpoint of this name holds.
  testing::Table Read(const std::string& name) {
    const std::unique_ptr<RowStore> rows = OpenMemoryStore(directory_ / name);
    const RowLayout layout = PlainTable("t", 1, kDim).layout();
    return testing::ReadAll(rows->Scan(1, layout.payload_size()).get(), layout.payload_size());
  }

  std::future<bool> WriteInTheBackground(Store* store, const std::string& name) {
    return std::async(std::launch::async,
                      [this, store, name] { return store->WriteCheckpoint(directory_ / name, false); });
  }

  const testing::TemporaryDirectory directory_;
};

TEST_F(CaptureTest, HoldsRowsAsTheyWereWhenItBegan) {
  Gate gate;
  const std::unique_ptr<Store> store = Open(testing::kRoomyCache, [&] { gate(); });
  const std::unique_ptr<Store> same = Open();
  const testing::Table expected = Contents(same.get(), 0);

  const std::vector<TableState> states = store->BeginCheckpoint();
  ASSERT_EQ(states.size(), 1u);
  EXPECT_EQ(states[0].iter, 1u);
  EXPECT_EQ(states[0].rows, kRows);
  std::future<bool> written = WriteInTheBackground(store.get(), "first");
  gate.AwaitArrival();
  // Rows change twice, others once, and new ones come, in segments that the capture has yet to take and in others.
  for (Store* s : {store.get(), same.get()}) {
    Step(s, 0, Range(0, kRows), 1);
    Step(s, 0, Range(kRows / 2, kRows + 500), 2);
  }
  gate.Open();
  EXPECT_FALSE(written.get());
  EXPECT_TRUE(Read("first") == expected);
  EXPECT_EQ(store->rows(0), kRows + 500);

  const testing::Table later = Contents(same.get(), 0);
  store->BeginCheckpoint();
  store->WriteCheckpoint(directory_ / "second", false);
  EXPECT_TRUE(Read("second") == later);
  EXPECT_TRUE(Contents(store.get(), 0) == later);
}

TEST_F(CaptureTest, UnderPressureUpdatesWaitAndNothingIsLost) {
  std::atomic<bool> slow = false;
  const StoreOptions options{.num_threads = 2};
  const std::unique_ptr<Store> store = Open(
      testing::kTightCache,
      [&] {
        if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      },
      options);
  const std::unique_ptr<Store> same = Open();
  slow = true;
  for (int round = 0; round < 3; ++round) {
    const testing::Table expected = Contents(same.get(), 0);
    store->BeginCheckpoint();
    std::future<bool> written = WriteInTheBackground(store.get(), std::to_string(round));
    for (int step = 0; step < 4; ++step) {
      // Three times as many rows as there is room for, and some new ones that are updated again and again, and so
      // survive.
      for (int64_t begin = step * 7000; begin < step * 7000 + 7000; begin += 500) {
        std::vector<int64_t> ids = Range(begin, begin + 500);
        for (int64_t id = 1; id <= 200; ++id) ids.push_back(-1000 * (round + 1) - id);
        for (Store* s : {store.get(), same.get()}) Step(s, 0, ids, 1);
      }
    }
    written.get();
    EXPECT_TRUE(Read(std::to_string(round)) == expected);
  }
  EXPECT_TRUE(Contents(store.get(), 0) == Contents(same.get(), 0));
}

// Between checkpoints rows are updated, set, deleted and made again, evicted, written all, and the disk fails now and
// then: whatever was where, each checkpoint that is complete holds what the tables held.
TEST_F(CaptureTest, CheckpointsAreWholeWhateverHappensBetweenThem) {
  for (const size_t cache_bytes : {testing::kRoomyCache, testing::kTightCache}) {
    FailOnce fail;
    const std::unique_ptr<Store> store = Open(cache_bytes, [&] { fail(); });
    const std::unique_ptr<Store> same = Open();
    std::mt19937 random(5);
    const auto below = [&](uint32_t n) { return static_cast<int64_t>(random() % n); };
    int complete = 0;
    for (int n = 0; n < 150; ++n) {
      const int64_t first = below(2 * kRows), last = first + below(400);
      const std::vector<int64_t> ids = Range(first, last + 1);
      const std::vector<float> weights(ids.size() * kDim, static_cast<float>(n));
      const int64_t kind = below(10);
      for (Store* s : {store.get(), same.get()}) {
        if (kind < 5) Step(s, 0, ids, static_cast<float>(n));
        if (kind == 5) s->Set(0, ids, weights.data());
        if (kind == 6) s->Delete(0, ids);
      }
      if (kind == 7 && n % 4 == 0) store->Flush();
      if (kind == 7 && n % 4 == 1) store->FlushPart(n % 3);
      if (kind < 8) continue;
      const std::string name = std::to_string(cache_bytes) + "-" + std::to_string(n);
      fail.Arm(n % 3 == 0 ? 1 : 0);
      const auto error = testing::ErrorOf([&] { store->Checkpoint(directory_ / name, false); });
      EXPECT_EQ(error.has_value(), n % 3 == 0 && fail.Fired());
      fail.Arm(0);
      if (error) continue;
      ++complete;
      ASSERT_TRUE(Read(name) == Contents(same.get(), 0)) << name;
    }
    EXPECT_GT(complete, 15);
  }
}

TEST_F(CaptureTest, AnUpdateThatTheReserveHasNoRoomForWaits) {
  Gate gate;
  // One row takes more than the reserve: an update waits until every segment has been taken.
  BudgetShares shares = testing::SharesWithCache(testing::kRoomyCache);
  shares.reserve = 100;
  auto rows = std::make_unique<HookedStore>([] {}, [&] { gate(); });
  const auto store = std::make_unique<Store>(std::move(rows), shares, StoreOptions());
  store->OpenTable(PlainTable("t", 1, kDim));
  Step(store.get(), 0, Range(0, kRows), 1);
  store->BeginCheckpoint();
  std::future<bool> written = WriteInTheBackground(store.get(), "rows");
  gate.AwaitArrival();
  std::future<void> update = std::async(std::launch::async, [&] { Step(store.get(), 0, {kRows - 1}, 1); });
  EXPECT_EQ(update.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  gate.Open();
  update.get();
  written.get();
  const std::unique_ptr<Store> same = Open();
  EXPECT_TRUE(Read("rows") == Contents(same.get(), 0));
  Step(same.get(), 0, {kRows - 1}, 1);
  EXPECT_TRUE(Contents(store.get(), 0) == Contents(same.get(), 0));
}

TEST_F(CaptureTest, CallsThatWriteWaitForItsEnd) {
  Gate gate;
  const std::unique_ptr<Store> store = Open(testing::kRoomyCache, [&] { gate(); });
  const testing::Table expected = [&] {
    const std::unique_ptr<Store> same = Open();
    return Contents(same.get(), 0);
  }();
  store->BeginCheckpoint();
  std::future<bool> written = WriteInTheBackground(store.get(), "rows");
  gate.AwaitArrival();
  std::future<void> change = std::async(std::launch::async, [&] {
    store->Delete(0, std::vector<int64_t>{1, 2});
    store->Set(0, std::vector<int64_t>{3}, std::vector<float>(kDim, 7).data());
    store->Flush();
  });
  EXPECT_EQ(change.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  gate.Open();
  change.get();
  written.get();
  EXPECT_TRUE(Read("rows") == expected);
  EXPECT_EQ(Contents(store.get(), 0).size(), expected.size() - 2);
}

TEST_F(CaptureTest, ReadingGoesOn) {
  Gate gate;
  const std::unique_ptr<Store> store = Open(testing::kRoomyCache, [&] { gate(); });
  store->BeginCheckpoint();
  std::future<bool> written = WriteInTheBackground(store.get(), "rows");
  gate.AwaitArrival();
  EXPECT_EQ(testing::GetRows(store.get(), 0, {5}), std::vector<float>(kDim, -1));
  uint8_t contains = 0;
  store->Contains(0, std::vector<int64_t>{5}, &contains);
  EXPECT_EQ(contains, 1);
  gate.Open();
  written.get();
}

// Every write of it fails once, in turn.
TEST_F(CaptureTest, OneThatFailsLosesNothing) {
  FailOnce fail;
  const std::unique_ptr<Store> store = Open(testing::kRoomyCache, [&] { fail(); });
  const std::unique_ptr<Store> same = Open();
  for (int n = 1;; ++n) {
    fail.Arm(n);
    store->BeginCheckpoint();
    // Some of its rows are kept, with nothing written yet.
    for (Store* s : {store.get(), same.get()}) Step(s, 0, Range(0, kRows / 2), 1);
    const std::string name = std::to_string(n);
    const auto error = testing::ErrorOf([&] { store->WriteCheckpoint(directory_ / name, false); });
    if (!error) {
      ASSERT_GT(n, 3);  // else little was tried
      fail.Arm(0);
      break;
    }
    EXPECT_EQ(error->code(), ErrorCode::kIo);
    EXPECT_EQ(testing::GetRows(store.get(), 0, Range(0, kRows)), testing::GetRows(same.get(), 0, Range(0, kRows)));
    for (Store* s : {store.get(), same.get()}) Step(s, 0, Range(0, kRows), 1);
  }
  EXPECT_TRUE(Contents(store.get(), 0) == Contents(same.get(), 0));
}

TEST_F(CaptureTest, AbandonedItIsAsIfItHadNotBegun) {
  const std::unique_ptr<Store> store = Open();
  const std::unique_ptr<Store> same = Open();
  store->BeginCheckpoint();
  for (Store* s : {store.get(), same.get()}) Step(s, 0, Range(100, 200), 1);
  store->AbandonCheckpoint();
  store->AbandonCheckpoint();
  ExpectError(ErrorCode::kInvalidArgument, {"no checkpoint has begun"},
              [&] { store->WriteCheckpoint(directory_ / "none", false); });
  EXPECT_TRUE(Contents(store.get(), 0) == Contents(same.get(), 0));
}

TEST_F(CaptureTest, CloseWaitsForIt) {
  Gate gate;
  const std::unique_ptr<Store> store = Open(testing::kRoomyCache, [&] { gate(); });
  store->BeginCheckpoint();
  std::future<bool> written = WriteInTheBackground(store.get(), "rows");
  gate.AwaitArrival();
  std::future<void> closed = std::async(std::launch::async, [&] { store->Close(); });
  EXPECT_EQ(closed.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  gate.Open();
  closed.get();
  written.get();
  EXPECT_EQ(Read("rows").size(), static_cast<size_t>(kRows));
}

TEST_F(CaptureTest, CloseEndsOneThatNobodyWrites) {
  const std::unique_ptr<Store> store = Open();
  store->BeginCheckpoint();
  store->Close();
}

}  // namespace
}  // namespace damo
