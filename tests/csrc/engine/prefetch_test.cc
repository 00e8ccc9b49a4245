// What a prefetch reads, and that no result depends on it.
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

#include "engine/prefetch_testing.h"
#include "engine/store_model.h"
#include "engine/store_testing.h"

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
  EXPECT_EQ(store->table_stats(0).lookups[static_cast<size_t>(LookupUse::kById)].misses, 0u);
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

}  // namespace
}  // namespace damo
