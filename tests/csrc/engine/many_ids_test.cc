// Batches whose ids are too many for what a call may work with: they are looked up in windows, and updated by sums.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/store_model.h"
#include "engine/store_testing.h"
#include "testing/failing_allocations.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ExpectError;
using testing::FailingAllocation;
using testing::Forward;
using testing::GetRows;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::Training;

constexpr size_t kLittleWork = 64;  // a handful of ids is too many

std::unique_ptr<Store> OpenWith(size_t work_bytes, int threads = 1, size_t cache_bytes = testing::kRoomyCache,
                                std::unique_ptr<RowStore> rows = OpenMemoryStore()) {
  BudgetShares shares = testing::SharesWithCache(cache_bytes);
  shares.work = work_bytes;
  StoreOptions options;
  options.num_threads = threads;
  return std::make_unique<Store>(std::move(rows), shares, options);
}

// Bytes to work with: too few for a handful of ids, for those of a batch, and to group what it has.
class ManyIdsTest : public ::testing::TestWithParam<std::tuple<size_t, bool>> {
 protected:
  const size_t work_ = std::get<0>(GetParam());
  const Training training_{OptimizerKind::kRowWiseAdagrad, std::get<1>(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(Work, ManyIdsTest,
                         ::testing::Combine(::testing::Values(kLittleWork, 1024, 20'000), ::testing::Bool()),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) + (std::get<1>(info.param) ? "Weighted" : "");
                         });

TEST_P(ManyIdsTest, GiveTheSameBits) {
  const std::unique_ptr<Store> plain = OpenStore();
  training_.OpenTables(plain.get());
  const std::vector<std::vector<float>> outputs = training_.Run(plain.get());
  const std::vector<testing::Table> contents = training_.AllContents(plain.get());
  for (const int threads : {1, 3}) {
    const std::unique_ptr<Store> store = OpenWith(work_, threads);
    training_.OpenTables(store.get());
    EXPECT_TRUE(training_.Run(store.get()) == outputs) << threads;
    EXPECT_TRUE(training_.AllContents(store.get()) == contents) << threads;
    for (uint16_t table = 0; table < contents.size(); ++table) {
      EXPECT_EQ(store->rows(table), plain->rows(table));
      EXPECT_EQ(store->iter(table), plain->iter(table));
    }
  }
}

TEST_P(ManyIdsTest, GiveTheirWeightsTheSameGradient) {
  if (!training_.batches[0].weighted) GTEST_SKIP() << "ids without weights";
  const std::unique_ptr<Store> stores[] = {OpenStore(), OpenWith(work_)};
  std::vector<float> gradients[2];
  for (size_t step = 0; step < 3; ++step) {
    for (size_t s = 0; s < 2; ++s) {
      if (step == 0) training_.OpenTables(stores[s].get());
      const Batch& batch = training_.batches[step];
      const std::unique_ptr<Lookup> lookup = batch.lookup(training_.features);
      Forward(stores[s].get(), lookup.get(), training_.columns);
      gradients[s].assign(batch.ids.size(), -77);
      stores[s]->WeightGradient(lookup.get(), training_.grads[step].data(), training_.columns, gradients[s].data());
      training_.Backward(stores[s].get(), step, lookup.get());
    }
    EXPECT_EQ(gradients[0], gradients[1]) << step;
  }
}

TEST_P(ManyIdsTest, SeveralPartsAreOneUpdate) {
  std::vector<testing::Table> contents[2];
  for (size_t s = 0; s < 2; ++s) {
    const std::unique_ptr<Store> store = s == 0 ? OpenStore() : OpenWith(work_, 2);
    training_.OpenTables(store.get());
    std::vector<std::unique_ptr<Lookup>> lookups;
    std::vector<GradientPart> parts;
    for (size_t step = 0; step < 3; ++step) {
      lookups.push_back(training_.batches[step].lookup(training_.features));
      Forward(store.get(), lookups.back().get(), training_.columns);
      parts.push_back({lookups.back().get(), training_.grads[step].data(), training_.columns});
    }
    EXPECT_TRUE(store->Backward(parts, 2, NonFinite::kRaise));
    contents[s] = training_.AllContents(store.get());
  }
  EXPECT_TRUE(contents[0] == contents[1]);
}

TEST_P(ManyIdsTest, AGradientThatIsNotFiniteChangesNothing) {
  const std::unique_ptr<Store> store = OpenWith(work_, 2);
  training_.OpenTables(store.get());
  const std::unique_ptr<Lookup> lookup = training_.batches[0].lookup(training_.features);
  Forward(store.get(), lookup.get(), training_.columns);
  training_.Backward(store.get(), 0, lookup.get());
  const std::vector<testing::Table> before = training_.AllContents(store.get());
  std::vector<float> grad = training_.grads[0];
  grad.back() = std::numeric_limits<float>::quiet_NaN();
  const GradientPart part{lookup.get(), grad.data(), training_.columns};
  ExpectError(ErrorCode::kNonFinite, {"\"t0\"", "not finite"},
              [&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
  EXPECT_FALSE(store->Backward({&part, 1}, 1, NonFinite::kSkip));
  EXPECT_NE(store->FindFault({&part, 1}, 1).find("not finite"), std::string::npos);
  const GradientPart good{lookup.get(), training_.grads[0].data(), training_.columns};
  EXPECT_EQ(store->FindFault({&good, 1}, 1), "");
  EXPECT_TRUE(training_.AllContents(store.get()) == before);
  EXPECT_TRUE(training_.Backward(store.get(), 0, lookup.get()));
}

// Each row is evicted and comes back many times.
TEST(ManyIdsInATightCacheTest, GiveTheSameRows) {
  constexpr size_t kDim = 64;
  testing::Table contents[2];
  for (size_t s = 0; s < 2; ++s) {
    const std::unique_ptr<Store> store =
        s == 0 ? OpenStore({}, size_t{64} << 20) : OpenWith(size_t{1} << 17, 2, testing::kTightCache);
    store->OpenTable(PlainTable("t", 1, kDim));
    for (int64_t i = 0; i < 12; ++i) {
      std::vector<int64_t> ids = Range(2000 * i, 2000 * i + 4000);
      for (int64_t j = 0; j < 8000; ++j) ids.push_back(2000 * i + j % 7);
      Step(store.get(), 0, ids, 1);
    }
    contents[s] = Contents(store.get(), 0);
  }
  EXPECT_TRUE(contents[0] == contents[1]);
}

// A forward needs few rows at a time, an update all of them at once.
TEST(ManyIdsInATightCacheTest, ThatNeedMoreRowsThanFitAreReadButNotUpdated) {
  constexpr size_t kDim = 64;
  const auto store = OpenWith(1 << 17, 2, testing::kTightCache);
  store->OpenTable(PlainTable("t", 1, kDim, 0.5f));
  Step(store.get(), 0, Range(0, 100), 1);
  const testing::Table before = Contents(store.get(), 0);
  const Batch batch = BatchOf(Range(0, 30'000));
  const auto lookup = batch.lookup(OneFeature(0));
  const std::vector<float> out = Forward(store.get(), lookup.get(), kDim);
  EXPECT_EQ(out.front(), -0.5f);
  EXPECT_EQ(out.back(), 0.5f);
  const std::vector<float> grad(30'000 * kDim, 1);
  const GradientPart part{lookup.get(), grad.data(), kDim};
  // 30,000 rows of 284 bytes, and half as much again beyond a budget of 1 GiB.
  ExpectError(ErrorCode::kInvalidArgument, {"more rows in memory at once", "at least \"1037MiB\""},
              [&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
  ExpectError(ErrorCode::kInvalidArgument, {"more rows in memory at once"}, [&] { store->FindFault({&part, 1}, 1); });
  EXPECT_TRUE(Contents(store.get(), 0) == before);
  EXPECT_EQ(store->iter(0), 1u);
  Step(store.get(), 0, Range(0, 100), 1);
  EXPECT_EQ(store->iter(0), 2u);
}

TEST(ManyIdsMemoryTest, IsCountedWhileALookupLives) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 4));
  const size_t before = store->work_memory_bytes();
  const Batch batch = BatchOf(Range(0, 1000));
  auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), 4);
  Forward(store.get(), lookup.get(), 4);
  EXPECT_EQ(store->work_memory_bytes(), before + 1001 * sizeof(int64_t) + 1000 * sizeof(Slot));
  lookup.reset();
  EXPECT_EQ(store->work_memory_bytes(), before);
}

TEST(ManyIdsMemoryTest, IsNoneForEachId) {
  const BudgetShares shares = DivideBudget(size_t{64} << 20);
  StoreOptions options;
  options.num_threads = 2;
  Store store(OpenMemoryStore(), shares, options);
  store.OpenTable(PlainTable("t", 1, 16));
  const size_t before = store.work_memory_bytes();
  // One bag of eight million, and each update of them adds 1 to a row for each time that it occurs.
  Batch batch;
  batch.ids.resize(8'000'000);
  for (size_t i = 0; i < batch.ids.size(); ++i) batch.ids[i] = static_cast<int64_t>(i % 1000);
  batch.lengths = {static_cast<int64_t>(batch.ids.size())};
  batch.batch = 1;
  const auto lookup = batch.lookup(OneFeature(0));
  EXPECT_EQ(Forward(&store, lookup.get(), 16), std::vector<float>(16, 0));
  EXPECT_EQ(store.work_memory_bytes(), before + 2 * sizeof(int64_t));
  const std::vector<float> grad(16, -1);
  const GradientPart part{lookup.get(), grad.data(), 16};
  EXPECT_TRUE(store.Backward({&part, 1}, 1, NonFinite::kRaise));
  EXPECT_EQ(store.work_memory_bytes(), before + 2 * sizeof(int64_t));
  EXPECT_EQ(GetRows(&store, 0, {0, 999, 1000}, UnseenRows::kZeros)[16], 8000);
  EXPECT_EQ(store.rows(0), 1000);
}

TEST(ManyIdsMemoryTest, ThatIsKeptToGroupThemIsBounded) {
  const BudgetShares shares = DivideBudget(size_t{64} << 20);
  Store store(OpenMemoryStore(), shares, {});
  store.OpenTable(PlainTable("t", 1, 1));
  const size_t before = store.work_memory_bytes();
  for (const int64_t n : {1000, 50'000, 120'000, 140'000, 300'000}) {
    std::vector<int64_t> ids = Range(0, n);
    Step(&store, 0, ids, 1);
    EXPECT_LE(store.work_memory_bytes(), before + shares.work + shares.work / 8) << n;
  }
  EXPECT_EQ(store.iter(0), 5u);
}

// What is read ahead is what a window of it needs.
TEST(ManyIdsPrefetchTest, ChangesNoRow) {
  testing::Table contents[2];
  for (size_t s = 0; s < 2; ++s) {
    const auto store = OpenWith(1 << 14, 2, testing::kTightCache);
    store->OpenTable(PlainTable("t", 1, 64));
    Step(store.get(), 0, Range(0, 5000), 1);
    Step(store.get(), 0, Range(5000, 10000), 1);
    const Batch batch = BatchOf(Range(0, 4000));
    if (s == 1) store->Prefetch(batch.lookup(OneFeature(0)).get());
    Step(store.get(), 0, batch.ids, 1);
    contents[s] = Contents(store.get(), 0);
  }
  EXPECT_TRUE(contents[0] == contents[1]);
}

// What an update finds when an allocation fails: a capture that is under way, or none.
class UpdateWithoutMemoryTest : public ::testing::TestWithParam<std::tuple<size_t, bool>> {
 protected:
  static constexpr size_t kDim = 8;

  // A store, one step, and the forward of the next.
  struct Run {
    explicit Run(size_t work_bytes) : store(OpenWith(work_bytes)) {
      store->OpenTable(PlainTable("t", 1, kDim));
      Step(store.get(), 0, Range(0, 60), 1);
      lookup = batch.lookup(OneFeature(0));
      Forward(store.get(), lookup.get(), kDim);
    }
    void Backward() {
      const GradientPart part{lookup.get(), grad.data(), kDim};
      store->Backward({&part, 1}, 1, NonFinite::kRaise);
    }

    const std::unique_ptr<Store> store;
    const Batch batch = BatchOf(Range(40, 100));
    const std::vector<float> grad = std::vector<float>(60 * kDim, 1);
    std::unique_ptr<Lookup> lookup;
  };
};

INSTANTIATE_TEST_SUITE_P(Work, UpdateWithoutMemoryTest,
                         ::testing::Combine(::testing::Values(1024, size_t{1} << 20), ::testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == 1024 ? "Sums" : "Groups") +
                                  (std::get<1>(info.param) ? "WhileACheckpointIsMade" : "");
                         });

TEST_P(UpdateWithoutMemoryTest, IsDoneOrNotDone) {
  if (!testing::kAllocationsCanFail) GTEST_SKIP() << "a sanitizer that has its own operator new";
  const auto [work, captures] = GetParam();
  const testing::TemporaryDirectory directory;
  Run complete(work);
  const testing::Table before = Contents(complete.store.get(), 0);
  complete.Backward();
  const testing::Table after = Contents(complete.store.get(), 0);
  bool failed = true;
  size_t failures = 0;
  for (size_t n = 0; failed; ++n) {
    Run run(work);
    if (captures) run.store->BeginCheckpoint();
    {
      const FailingAllocation failing(n);
      try {
        run.Backward();
      } catch (const std::bad_alloc&) {
        ++failures;
      }
      failed = failing.failed();
    }
    const bool done = run.store->iter(0) == 2;
    EXPECT_EQ(run.store->rows(0), done ? 100 : 60) << n;
    if (captures) {
      const std::string path = directory / std::to_string(n);
      run.store->WriteCheckpoint(path, false);
      const auto read = OpenStore({}, testing::kRoomyCache, OpenMemoryStore(path));
      TableSchema schema = PlainTable("t", 1, kDim);
      schema.rows = 60;
      read->OpenTable(schema);
      EXPECT_TRUE(Contents(read.get(), 0) == before) << n;
    }
    EXPECT_TRUE(Contents(run.store.get(), 0) == (done ? after : before)) << n;
    if (done) continue;
    run.Backward();
    EXPECT_TRUE(Contents(run.store.get(), 0) == after) << n;
  }
  EXPECT_GT(failures, 4u);
}

}  // namespace
}  // namespace damo
