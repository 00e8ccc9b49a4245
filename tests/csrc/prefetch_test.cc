// What a prefetch reads, how much, and that no result depends on it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "prefetch_testing.h"
#include "store_model.h"
#include "store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::Forward;
using testing::GetRows;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenFilled;
using testing::OpenStore;
using testing::PlainTable;
using testing::Prefetch;
using testing::Range;
using testing::Step;
using testing::Training;
using testing::Weights;
using testing::WeightsOfIds;

constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();

// ---- reads

TEST(PrefetchTest, TheForwardFindsEveryRowAndReadsNothing) {
  const std::vector<int64_t> ids = Range(-500, 500);
  const std::unique_ptr<Store> store = OpenFilled(ids);
  Prefetch(store.get(), 0, ids);
  EXPECT_EQ(store->row_counts().read, 1000u);
  EXPECT_EQ(GetRows(store.get(), 0, ids), WeightsOfIds(ids));
  EXPECT_EQ(store->row_counts().read, 1000u);
  EXPECT_EQ(store->table_stats(0).misses, 0u);
  EXPECT_EQ(store->table_stats(0).cached_rows, 1000u);
}

TEST(PrefetchTest, ReadsOnlyWhatIsNotThereOrOnItsWay) {
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 40));
  GetRows(store.get(), 0, Range(0, 10));
  Prefetch(store.get(), 0, Range(5, 20));
  EXPECT_EQ(store->row_counts().read, 20u);
  Prefetch(store.get(), 0, Range(15, 30));
  EXPECT_EQ(store->row_counts().read, 30u);
  Prefetch(store.get(), 0, Range(0, 30));
  EXPECT_EQ(store->row_counts().read, 30u);
  // The forward reads what nobody has read for it.
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 40)), WeightsOfIds(Range(0, 40)));
  EXPECT_EQ(store->row_counts().read, 40u);
}

TEST(PrefetchTest, ReadsARowOnceForAllFeaturesOfItsTable) {
  const std::unique_ptr<Store> store = OpenFilled({1, 2, 3});
  store->OpenTable(PlainTable("other", 2, 4, 7));
  const Batch batch = {{1, 2, 1, 2, 2, 3, 1, 1}, {2, 2, 2, 2}, {}, false, 2, 2};
  const std::vector<Feature> features = {{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                                         {0, Pooling::kSum, UnseenRows::kInitial, 1, 4},
                                         {1, Pooling::kSum, UnseenRows::kInitial, 1, 8}};
  store->Prefetch(batch.lookup(features).get());
  EXPECT_EQ(store->row_counts().read, 3u + 3u);
  const std::vector<float> expected = Weights({3, 5, 14, 3, 2, 14});
  EXPECT_EQ(Forward(store.get(), batch.lookup(features).get(), 12), expected);
  EXPECT_EQ(store->row_counts().read, 6u);
}

TEST(PrefetchTest, EveryIdIsValid) {
  const std::vector<int64_t> ids = {kMin, -1, 0, 1, kMax};
  const std::unique_ptr<Store> store = OpenFilled(ids);
  Prefetch(store.get(), 0, {kMax, 0, kMin, 1, -1, kMax});
  EXPECT_EQ(store->row_counts().read, 5u);
  EXPECT_EQ(GetRows(store.get(), 0, ids), WeightsOfIds(ids));
  EXPECT_EQ(store->row_counts().read, 5u);
}

TEST(PrefetchTest, ABatchWithoutIdsReadsNothing) {
  const std::unique_ptr<Store> store = OpenFilled({1});
  const Batch no_bags = BatchOf({}), empty_bags = {{}, {0, 0, 0}, {}, false, 1, 3};
  for (const Batch& batch : {no_bags, empty_bags}) {
    store->Prefetch(batch.lookup(OneFeature(0)).get());
    store->Prefetch(batch.lookup({}).get());
  }
  EXPECT_EQ(store->row_counts().read, 0u);
}

TEST(PrefetchTest, CountsTheRowsThatAreWrittenOnce) {
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 100));
  Prefetch(store.get(), 0, Range(0, 100));
  Step(store.get(), 0, Range(0, 100), 1);
  Step(store.get(), 0, Range(50, 150), 1);
  store->Flush();
  EXPECT_EQ(store->row_counts().written, 150u);
  Prefetch(store.get(), 0, Range(0, 150));
  store->Flush();
  EXPECT_EQ(store->row_counts().written, 150u);
}

// ---- unseen ids

TEST(PrefetchTest, CreatesNoRow) {
  TableSchema schema = PlainTable("t", 1, 4);
  schema.initializer = {Distribution::kUniform, 7, -1, 1, 0, 1};
  schema.optimizer.kind = OptimizerKind::kAdagrad;
  schema.optimizer.initial_accumulator_value = 0.5;
  const std::unique_ptr<Store> store = OpenStore(), other = OpenStore();
  store->OpenTable(schema);
  other->OpenTable(schema);
  const std::vector<int64_t> ids = {kMin, 5, 6, kMax};
  for (int round = 0; round < 3; ++round) Prefetch(store.get(), 0, ids);
  std::vector<uint8_t> contains(ids.size(), 7);
  store->Contains(0, ids, contains.data());
  EXPECT_EQ(contains, std::vector<uint8_t>(ids.size(), 0));
  EXPECT_EQ(store->rows(0), 0);
  EXPECT_EQ(store->iter(0), 0u);
  EXPECT_TRUE(Contents(store.get(), 0).empty());
  EXPECT_EQ(store->row_counts().written, 0u);
  // They read as unseen ids do, and their first update makes them what it makes of others.
  EXPECT_EQ(GetRows(store.get(), 0, ids, UnseenRows::kZeros), std::vector<float>(16, 0));
  EXPECT_EQ(GetRows(store.get(), 0, ids), GetRows(other.get(), 0, ids));
  for (Store* each : {store.get(), other.get()}) Step(each, 0, {5, kMin}, 1);
  EXPECT_EQ(store->rows(0), 2);
  EXPECT_EQ(Contents(store.get(), 0), Contents(other.get(), 0));
}

TEST(PrefetchTest, WorksInAReadOnlyStore) {
  StoreOptions options;
  options.read_only = true;
  const std::unique_ptr<Store> store = OpenFilled({1, 2}, 4, options);
  Prefetch(store.get(), 0, {1, 2, 3});
  EXPECT_EQ(GetRows(store.get(), 0, {1, 2, 3}), Weights({1, 2, 0}));
  EXPECT_EQ(store->row_counts().read, 3u);
}

// ---- results

struct Setting {
  std::string name;
  size_t cache_bytes;  // of StoreOptions
  int threads;
  bool direct_io;  // has reads run many at once, whatever the row store

  friend void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }
};

class PrefetchResultsTest : public ::testing::TestWithParam<std::tuple<Setting, size_t>> {
 protected:
  StoreOptions Options() const {
    const Setting& setting = std::get<0>(GetParam());
    StoreOptions options;
    options.num_threads = setting.threads;
    options.cache_bytes = setting.cache_bytes;
    options.direct_io = setting.direct_io;
    return options;
  }
  size_t Depth() const { return std::get<1>(GetParam()); }
  // A row store in which other threads get their turn at every call.
  static std::unique_ptr<RowStore> Rows() {
    const auto yield = [] { std::this_thread::yield(); };
    return std::make_unique<HookedStore>(yield, yield);
  }
};

INSTANTIATE_TEST_SUITE_P(
    Stores, PrefetchResultsTest,
    ::testing::Combine(::testing::Values(Setting{"RoomyOneThread", 0, 1, false},
                                         Setting{"RoomyThreeThreads", 0, 3, false},
                                         Setting{"RoomyWideReads", 0, 2, true}, Setting{"TinyOneThread", 1, 1, false},
                                         Setting{"TinyThreeThreads", 1, 3, false},
                                         Setting{"TinyWideReads", 1, 2, true}),
                       ::testing::Values(1, 3)),
    [](const auto& info) { return std::get<0>(info.param).name + "Depth" + std::to_string(std::get<1>(info.param)); });

TEST_P(PrefetchResultsTest, ATrainingRunIsBitEqual) {
  for (const bool weighted : {false, true}) {
    const Training training(OptimizerKind::kAdam, weighted);
    const std::unique_ptr<Store> reference = OpenStore();
    training.OpenTables(reference.get());
    const std::vector<std::vector<float>> outputs = training.Run(reference.get());

    const std::unique_ptr<Store> store = OpenStore(Options(), testing::kRoomyCache, Rows());
    training.OpenTables(store.get());
    const auto prefetch = [&](size_t step) {
      if (step < Training::kSteps) store->Prefetch(training.batches[step].lookup(training.features).get());
    };
    for (size_t step = 0; step < Depth(); ++step) prefetch(step);
    for (size_t step = 0; step < Training::kSteps; ++step) {
      prefetch(step + Depth());
      const auto lookup = training.batches[step].lookup(training.features);
      ASSERT_TRUE(Forward(store.get(), lookup.get(), training.columns) == outputs[step]) << "step " << step;
      if (step % 3 == 1) prefetch(step + 2);
      training.Backward(store.get(), step, lookup.get());
    }
    EXPECT_TRUE(training.AllContents(store.get()) == training.AllContents(reference.get()));
    for (uint16_t table = 0; table < training.schemas.size(); ++table) {
      EXPECT_EQ(store->rows(table), reference->rows(table));
    }
  }
}

TEST_P(PrefetchResultsTest, WeightGradientsAreBitEqual) {
  const Training training(OptimizerKind::kSgd, /*weighted=*/true);
  std::vector<std::vector<float>> gradients[2];
  for (const bool prefetches : {false, true}) {
    const std::unique_ptr<Store> store = OpenStore(Options(), testing::kRoomyCache, Rows());
    training.OpenTables(store.get());
    for (size_t step = 0; step + 1 < Training::kSteps; ++step) {
      const auto lookup = training.batches[step].lookup(training.features);
      Forward(store.get(), lookup.get(), training.columns);
      if (prefetches) store->Prefetch(training.batches[step + 1].lookup(training.features).get());
      std::vector<float> gradient(training.batches[step].ids.size());
      store->WeightGradient(lookup.get(), training.grads[step].data(), training.columns, gradient.data());
      gradients[prefetches].push_back(gradient);
      training.Backward(store.get(), step, lookup.get());
    }
  }
  EXPECT_TRUE(gradients[0] == gradients[1]);
}

// Some times the rows that the cache holds. Few ids are frequent, many are rare; some rows are deleted or set on the
// way, while they are being read or after that.
TEST_P(PrefetchResultsTest, UnderPressureTheyAreBitEqual) {
  constexpr int kDim = 64;
  constexpr size_t kSteps = 24, kIds = 1200;
  std::mt19937_64 random(3);
  std::vector<std::vector<int64_t>> ids(kSteps);
  std::vector<std::vector<float>> grads(kSteps);
  for (size_t step = 0; step < kSteps; ++step) {
    std::uniform_real_distribution<double> exponent(0, 10.5);
    for (size_t i = 0; i < kIds; ++i) ids[step].push_back(static_cast<int64_t>(std::exp(exponent(random))));
    grads[step] = testing::RandomFloats(&random, kIds * kDim);
  }
  TableSchema schema = PlainTable("t", 1, kDim);
  schema.initializer = {Distribution::kUniform, 7, -1, 1, 0, 1};
  schema.optimizer.kind = OptimizerKind::kRowWiseAdagrad;
  std::vector<std::vector<float>> outputs[2];
  testing::Table contents[2];
  for (const bool prefetches : {false, true}) {
    const std::unique_ptr<Store> store = prefetches ? OpenStore(Options(), testing::kTightCache, Rows()) : OpenStore();
    store->OpenTable(schema);
    for (size_t step = 0; step < kSteps; ++step) {
      if (prefetches && step + Depth() < kSteps) Prefetch(store.get(), 0, ids[step + Depth()]);
      const Batch batch = BatchOf(ids[step]);
      const auto lookup = batch.lookup(OneFeature(0));
      outputs[prefetches].push_back(Forward(store.get(), lookup.get(), kDim));
      const size_t later = std::min(step + 1, kSteps - 1);
      if (step % 5 == 0) store->Delete(0, std::span(ids[later]).first(100));
      if (step % 5 == 2) store->Set(0, std::span(ids[later]).first(100), grads[step].data());
      const GradientPart part{lookup.get(), grads[step].data(), kDim};
      store->Backward({&part, 1}, 1, NonFinite::kRaise);
    }
    contents[prefetches] = Contents(store.get(), 0);
  }
  EXPECT_TRUE(outputs[0] == outputs[1]);
  EXPECT_TRUE(contents[0] == contents[1]);
}

// ---- bounds

// A cache for some 10,000 rows of 64 floats.
class PrefetchBoundsTest : public ::testing::Test {
 protected:
  static constexpr int kDim = 64;
  static constexpr int64_t kRows = 40000;
  // Of the cache's rows, at the most.
  static constexpr size_t kQuarter = testing::kTightCache / 4 / (sizeof(float) * kDim);

  uint64_t RowsRead() { return store_->row_counts().read; }
  // As much as a prefetch may read.
  void FillAQuarter(uint16_t table) {
    Prefetch(store_.get(), table, Range(0, 20000));
    ASSERT_GT(RowsRead(), kQuarter / 2);
  }

  const std::unique_ptr<Store> store_ = OpenFilled(Range(0, kRows), kDim, {}, testing::kTightCache);
};

TEST_F(PrefetchBoundsTest, TheForwardReadsWhatAQuarterOfTheCacheCannotTake) {
  const std::vector<int64_t> ids = Range(0, 6000);
  Prefetch(store_.get(), 0, ids);
  EXPECT_GT(RowsRead(), kQuarter / 2);
  EXPECT_LE(RowsRead(), kQuarter);
  const Batch batch = BatchOf(ids);
  EXPECT_EQ(Forward(store_.get(), batch.lookup(OneFeature(0)).get(), kDim), WeightsOfIds(ids, kDim));
  EXPECT_EQ(RowsRead(), 6000u);
}

TEST_F(PrefetchBoundsTest, PrefetchesWithoutForwardsStopAtAQuarter) {
  for (int64_t i = 0; i < 16; ++i) Prefetch(store_.get(), 0, Range(300 * i, 300 * (i + 1)));
  EXPECT_GT(RowsRead(), kQuarter / 2);
  EXPECT_LE(RowsRead(), kQuarter);
}

TEST_F(PrefetchBoundsTest, PrefetchesWithoutForwardsLeaveRowsThatAreInUse) {
  const std::vector<int64_t> used = Range(37000, 40000);
  for (int64_t i = 0; i < 12; ++i) {
    GetRows(store_.get(), 0, used);
    GetRows(store_.get(), 0, Range(24000 + 1000 * i, 25000 + 1000 * i));
  }
  for (const int64_t ids : {10, 300, 5000}) {
    for (int64_t i = 0; i < 48; ++i) {
      Prefetch(store_.get(), 0, Range(ids * i % 15000, ids * i % 15000 + ids));
      ASSERT_LE(store_->cache_memory_bytes(), testing::kTightCache);
    }
    const uint64_t before = RowsRead();
    EXPECT_EQ(GetRows(store_.get(), 0, used), WeightsOfIds(used, kDim));
    EXPECT_EQ(RowsRead(), before) << "after prefetches of " << ids;
  }
}

// A depth that is more than fits: what waits for its forward stays within a quarter of the cache at every time.
TEST_F(PrefetchBoundsTest, SeveralBatchesAheadKeepToAQuarterTogether) {
  constexpr int64_t kIds = 900, kDepth = 6, kSteps = 35;
  std::vector<uint64_t> prefetched;  // by batch
  uint64_t waiting = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    for (int64_t ahead = step == 0 ? 0 : kDepth; ahead <= kDepth; ++ahead) {
      const uint64_t before = RowsRead();
      Prefetch(store_.get(), 0, Range(kIds * (step + ahead), kIds * (step + ahead + 1)));
      prefetched.push_back(RowsRead() - before);
      waiting += prefetched.back();
      ASSERT_LE(waiting, kQuarter) << "step " << step;
    }
    Step(store_.get(), 0, Range(kIds * step, kIds * (step + 1)), 1);
    waiting -= prefetched[static_cast<size_t>(step)];
  }
}

struct Ahead {
  int64_t ids;    // of a batch
  int64_t depth;  // batches beyond the next one

  friend void PrintTo(const Ahead& ahead, std::ostream* out) { *out << ahead.ids << " ids, depth " << ahead.depth; }
};

class PrefetchAheadTest : public PrefetchBoundsTest, public ::testing::WithParamInterface<Ahead> {
 protected:
  static constexpr int64_t kSteps = 28;

  // Trains with new ids in each step. How many rows the steps read themselves.
  uint64_t Train() {
    const auto [n, depth] = GetParam();
    uint64_t reads = 0;
    for (int64_t step = 0; step < kSteps; ++step) {
      for (int64_t ahead = step == 0 ? 0 : depth; ahead <= depth; ++ahead) {
        Prefetch(store_.get(), 0, Range(n * (step + ahead), n * (step + ahead + 1)));
      }
      const uint64_t before = RowsRead();
      Step(store_.get(), 0, Range(n * step, n * (step + 1)), 1);
      reads += RowsRead() - before;
    }
    return reads;
  }
};

// Training goes through many times the cache, and still finds what was read ahead.
class PrefetchFittingTest : public PrefetchAheadTest {};

INSTANTIATE_TEST_SUITE_P(Batches, PrefetchFittingTest,
                         ::testing::Values(Ahead{1200, 1}, Ahead{800, 2}, Ahead{500, 4}, Ahead{100, 15}));

TEST_P(PrefetchFittingTest, StepsReadNothingThemselves) { EXPECT_EQ(Train(), 0u); }

// More batches ahead than a quarter of the cache holds: the steps read what does not fit. What did fit is not read
// twice.
class PrefetchOverfullTest : public PrefetchAheadTest {};

INSTANTIATE_TEST_SUITE_P(Batches, PrefetchOverfullTest,
                         ::testing::Values(Ahead{900, 3}, Ahead{1200, 3}, Ahead{900, 6}));

TEST_P(PrefetchOverfullTest, RowsAreReadOnce) {
  Train();
  const uint64_t needed = static_cast<uint64_t>(kSteps * GetParam().ids);
  EXPECT_LE(RowsRead(), needed + needed / 20 + kQuarter);
}

TEST_F(PrefetchBoundsTest, ReadsOfRowsByIdLeaveTheBoundAsItIs) {
  FillAQuarter(0);
  const uint64_t before = RowsRead();
  GetRows(store_.get(), 0, {0});
  Prefetch(store_.get(), 0, Range(30000, 40000));
  EXPECT_LE(RowsRead(), kQuarter) << before << " rows of the first prefetch still wait for its forward";
}

// A model that was given up, or an epoch that was left early, does not keep others from reading ahead.
TEST_F(PrefetchBoundsTest, PrefetchesThatNoForwardComesForAreForgotten) {
  FillAQuarter(0);
  TableSchema schema = PlainTable("other", 2, kDim);
  store_->OpenTable(schema);
  for (int64_t step = 0; step < 100; ++step) {
    Prefetch(store_.get(), 1, Range(10 * step, 10 * step + 10));
    Step(store_.get(), 1, Range(10 * step, 10 * step + 10), 1);
  }
  const uint64_t before = RowsRead();
  Prefetch(store_.get(), 1, Range(5000, 5010));
  EXPECT_EQ(RowsRead(), before + 10);
}

// Batches that fill most of the cache train with prefetches as they do without: what was read ahead makes way.
class PrefetchLargeBatchTest : public PrefetchBoundsTest, public ::testing::WithParamInterface<int64_t> {};

INSTANTIATE_TEST_SUITE_P(Ids, PrefetchLargeBatchTest, ::testing::Values(4000, 5000, 6000));

TEST_P(PrefetchLargeBatchTest, FitsBesideWhatWasReadAhead) {
  const int64_t n = GetParam(), steps = 5;
  for (const bool prefetches : {false, true}) {
    for (int64_t step = 0; step < steps; ++step) {
      const Batch batch = BatchOf(Range(n * step, n * (step + 1)));
      const auto lookup = batch.lookup(OneFeature(0));
      const std::string where = "step " + std::to_string(step) + (prefetches ? " with prefetches" : "");
      ASSERT_NO_THROW(Forward(store_.get(), lookup.get(), kDim)) << where;
      if (prefetches) Prefetch(store_.get(), 0, Range(n * (step + 1), n * (step + 2)));
      const std::vector<float> grad(batch.ids.size() * kDim, 1);
      const GradientPart part{lookup.get(), grad.data(), kDim};
      ASSERT_NO_THROW(store_->Backward({&part, 1}, 1, NonFinite::kRaise)) << where;
    }
  }
  const std::vector<float> rows = GetRows(store_.get(), 0, Range(0, n * steps));
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], static_cast<float>(i / kDim) - 2);
}

}  // namespace
}  // namespace damo
