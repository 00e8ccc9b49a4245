// Prefetches between a forward and its backward, and reads ahead that fail.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "engine/prefetch_testing.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Backward;
using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ExpectError;
using testing::FailOnce;
using testing::Forward;
using testing::Gate;
using testing::GetRows;
using testing::Hooked;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenFilled;
using testing::PlainTable;
using testing::Prefetch;
using testing::Range;
using testing::Step;
using testing::Weights;
using testing::WeightsOfIds;

// ---- between a forward and its backward

TEST(PrefetchLookupTest, RowsThatPrefetchesDroveOutAreUpdated) {
  constexpr int kDim = 64;
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 20000), kDim, {}, testing::kTightCache);
  const Batch batch = BatchOf(Range(0, 1000));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), kDim);
  for (int64_t i = 1; i < 20; ++i) {  // each with its forward, so that the next one is read, too
    Prefetch(store.get(), 0, Range(1000 * i, 1000 * (i + 1)));
    const Batch other = BatchOf(Range(1000 * i, 1000 * (i + 1)));
    Forward(store.get(), other.lookup(OneFeature(0)).get(), kDim);
  }
  Prefetch(store.get(), 0, Range(500, 600));  // some of them are on their way back
  const uint64_t before = store->row_counts().read;
  Backward(store.get(), lookup.get(), 1, kDim);
  EXPECT_EQ(store->row_counts().read - before, 900u) << "the test needs rows that are gone";
  const std::vector<float> rows = GetRows(store.get(), 0, Range(0, 1000));
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], static_cast<float>(i / kDim) - 1);
}

TEST(PrefetchLookupTest, RowsThatWereDeletedAreMadeAnew) {
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 10));
  const Batch batch = BatchOf(Range(0, 10));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), 4);
  store->Delete(0, Range(0, 5));
  Prefetch(store.get(), 0, Range(0, 12));
  Backward(store.get(), lookup.get(), 1);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), Weights({-1, -1, -1, -1, -1, 4, 5, 6, 7, 8}));
  EXPECT_EQ(store->rows(0), 10);
}

TEST(PrefetchLookupTest, AFailedReadOfOthersLeavesTheirSlots) {
  FailOnce failure;
  const std::unique_ptr<Store> store =
      OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { failure(); }));
  const Batch batch = BatchOf(Range(0, 10));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), 4);
  failure.Arm(1);
  Prefetch(store.get(), 0, Range(5, 15));
  Backward(store.get(), lookup.get(), 1);
  EXPECT_EQ(GetRows(store.get(), 0, Range(10, 15)), WeightsOfIds(Range(10, 15)));
  EXPECT_TRUE(failure.Fired());
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), WeightsOfIds(Range(-1, 9)));
}

// A call that failed has found a row that is being read. The backward after it has to wait for that row, too.
class PrefetchRepeatedTest : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Calls, PrefetchRepeatedTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Forward" : "Backward"; });

TEST_P(PrefetchRepeatedTest, ABackwardAfterAFailedCallWaitsForRowsOnTheirWay) {
  constexpr int kDim = 64;
  constexpr size_t kBags = 4000;
  const std::thread::id caller = std::this_thread::get_id();
  Gate gate;
  std::atomic<bool> hold = false, disk_full = false, caller_reads = false;
  const auto before_read = [&] {
    if (std::this_thread::get_id() == caller) {
      caller_reads = true;
    } else if (hold) {
      gate();
    }
  };
  const auto before_write = [&] {  // in the background never: evictions have to write
    if (disk_full || std::this_thread::get_id() != caller) throw Error(ErrorCode::kOutOfSpace, "full");
  };
  auto rows = std::make_unique<HookedStore>(before_read, before_write);
  TableSchema schema = testing::FillTable(rows.get(), Range(0, 50000), kDim);
  schema.iter = 1000000;  // the cache keeps none of its rows for their updates
  const std::unique_ptr<Store> store = testing::OpenStore({}, testing::kTightCache, std::move(rows));
  store->OpenTable(schema);

  // Row 1 alone, and enough others that room has to be made for them.
  Batch batch;
  batch.keys = 2;
  batch.batch = kBags;
  batch.ids = Range(20000, 20000 + kBags);
  batch.ids.insert(batch.ids.begin(), 1);
  batch.lengths.assign(2 * kBags, 1);
  std::fill_n(batch.lengths.begin() + 1, kBags - 1, 0);
  const auto lookup =
      batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0}, {0, Pooling::kSum, UnseenRows::kInitial, 1, kDim}});
  // Row 2 is used again and again, so that it is kept in a part of the cache where row 1 will come back to: nothing has
  // moved there since the forward.
  for (int i = 0; i < 3; ++i) GetRows(store.get(), 0, {2});
  for (int64_t i = 30; i < 40; ++i) GetRows(store.get(), 0, Range(1000 * i, 1000 * (i + 1)));
  Forward(store.get(), lookup.get(), 2 * kDim);
  std::vector<Batch> others;
  for (int64_t i = 40; i < 46; ++i) others.push_back(BatchOf(Range(1000 * i, 1000 * (i + 1))));
  std::vector<std::unique_ptr<Lookup>> lookups;
  for (const Batch& other : others) {
    lookups.push_back(other.lookup(OneFeature(0)));
    Forward(store.get(), lookups.back().get(), kDim);
  }

  hold = true;
  const uint64_t before = store->row_counts().read;
  Prefetch(store.get(), 0, {1});
  ASSERT_EQ(store->row_counts().read, before + 1);
  gate.AwaitArrival();
  for (const auto& other : lookups) Backward(store.get(), other.get(), 1, kDim);
  disk_full = true;
  ExpectError(ErrorCode::kOutOfSpace, {"full"}, [&] {
    if (GetParam()) Forward(store.get(), lookup.get(), 2 * kDim);
    Backward(store.get(), lookup.get(), 1, 2 * kDim);
  });
  disk_full = caller_reads = false;
  {
    const std::jthread opener([&] {
      for (int i = 0; i < 1000000 && !caller_reads; ++i) std::this_thread::yield();
      for (int i = 0; i < 10000; ++i) std::this_thread::yield();  // time for a backward that does not wait
      gate.Open();
    });
    Backward(store.get(), lookup.get(), 1, 2 * kDim);
  }
  EXPECT_EQ(GetRows(store.get(), 0, {1}), std::vector<float>(kDim, 0));
  EXPECT_EQ(store->rows(0), 50000);
}

// ---- reads that fail

TEST(PrefetchFailureTest, IsTheForwardsToReport) {
  std::atomic<bool> broken = true;
  const auto before_read = [&] {
    if (broken) throw Error(ErrorCode::kCorruption, "a bad checksum");
  };
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 1000), 4, {}, testing::kRoomyCache, Hooked(before_read));
  store->OpenTable(PlainTable("other", 2, 4, 7));
  for (int round = 0; round < 3; ++round) {
    EXPECT_NO_THROW(Prefetch(store.get(), 0, Range(0, 1000)));
    ExpectError(ErrorCode::kCorruption, {"\"t_user\"", "a bad checksum"},
                [&] { GetRows(store.get(), 0, Range(500, 510)); });
    ExpectError(ErrorCode::kCorruption, {"\"t_user\"", "a bad checksum"}, [&] { Step(store.get(), 0, {0, 999}, 1); });
    EXPECT_EQ(store->table_stats(0).cached_rows, 0u);
  }
  broken = false;
  Prefetch(store.get(), 0, Range(0, 1000));
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 1000)), WeightsOfIds(Range(0, 1000)));
  EXPECT_EQ(store->rows(0), 1000);
  EXPECT_EQ(store->iter(0), 0u);
  EXPECT_EQ(store->row_counts().written, 0u);
}

TEST(PrefetchFailureTest, ThatIsOverWhenTheForwardComesIsNotSeen) {
  for (const bool out_of_memory : {false, true}) {
    std::atomic<bool> failed = false;
    const auto before_read = [&] {
      if (failed.exchange(true)) return;
      if (out_of_memory) throw std::bad_alloc();
      throw Error(ErrorCode::kIo, "the disk is on fire");
    };
    const std::unique_ptr<Store> store = OpenFilled(Range(0, 1000), 4, {}, testing::kRoomyCache, Hooked(before_read));
    Prefetch(store.get(), 0, Range(0, 1000));
    EXPECT_EQ(GetRows(store.get(), 0, Range(0, 1000)), WeightsOfIds(Range(0, 1000)));
    EXPECT_EQ(store->row_counts().read, 2000u);
  }
}

// One table's rows cannot be read, but the prefetch was for two.
TEST(PrefetchFailureTest, OfOneTableLosesNothingOfAnother) {
  std::atomic<bool> broken = false;
  std::atomic<int> reads = 0;
  const auto before_read = [&] {
    if (broken && ++reads == 2) throw Error(ErrorCode::kIo, "the disk is on fire");
  };
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 10), 4, {}, testing::kRoomyCache, Hooked(before_read));
  store->OpenTable(PlainTable("other", 2, 4, 7));
  Step(store.get(), 1, {1}, 1);
  broken = true;
  const Batch batch = {{1, 2, 1, 2}, {2, 2}, {}, false, 2, 1};
  const std::vector<Feature> features = {{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                                         {1, Pooling::kSum, UnseenRows::kInitial, 1, 4}};
  store->Prefetch(batch.lookup(features).get());
  EXPECT_EQ(Forward(store.get(), batch.lookup(features).get(), 8), Weights({3, 13}));
  EXPECT_EQ(Contents(store.get(), 1).size(), 1u);
}

}  // namespace
}  // namespace damo
