// What forwards and backwards do to rows, whatever the cache, the threads and the instruction set.
#include "engine/store.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/store_model.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ExpectError;
using testing::Forward;
using testing::GetRows;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::ReferenceRow;
using testing::Step;
using testing::StoreModel;
using testing::Training;

// The optimizer, and whether ids are weighted.
class StoreTrainingTest : public ::testing::TestWithParam<std::tuple<OptimizerKind, bool>> {
 protected:
  const Training training_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

std::string TrainingName(const ::testing::TestParamInfo<std::tuple<OptimizerKind, bool>>& info) {
  static const std::map<OptimizerKind, std::string> names = {{OptimizerKind::kSgd, "Sgd"},
                                                             {OptimizerKind::kAdagrad, "Adagrad"},
                                                             {OptimizerKind::kRowWiseAdagrad, "RowWiseAdagrad"},
                                                             {OptimizerKind::kAdam, "Adam"}};
  const auto [kind, weighted] = info.param;
  return names.at(kind) + (weighted ? "Weighted" : "");
}

INSTANTIATE_TEST_SUITE_P(All, StoreTrainingTest,
                         ::testing::Combine(::testing::Values(OptimizerKind::kSgd, OptimizerKind::kAdagrad,
                                                              OptimizerKind::kRowWiseAdagrad, OptimizerKind::kAdam),
                                            ::testing::Bool()),
                         TrainingName);

void ExpectNear(float value, double expected, const char* what) {
  ASSERT_NEAR(value, expected, 2e-5 * (1 + std::abs(expected))) << what;
}

void ExpectRow(const char* payload, const ReferenceRow& expected) {
  std::vector<double> floats = expected.weights;
  floats.insert(floats.end(), expected.state.begin(), expected.state.end());
  for (const double x : floats) {
    float value;
    std::memcpy(&value, payload, sizeof value);
    ExpectNear(value, x, "weight or state");
    payload += sizeof value;
  }
  uint32_t counters[2];
  std::memcpy(counters, payload, sizeof counters);
  ASSERT_EQ(counters[0], expected.last_step);
  ASSERT_EQ(counters[1], expected.count);
}

TEST_P(StoreTrainingTest, MatchesMapsInFloat64) {
  const Training& t = training_;
  const std::unique_ptr<Store> store = OpenStore();
  t.OpenTables(store.get());
  StoreModel model(t.schemas);
  for (size_t step = 0; step < Training::kSteps; ++step) {
    const Batch& batch = t.batches[step];
    const std::unique_ptr<Lookup> lookup = batch.lookup(t.features);
    const std::vector<float> out = Forward(store.get(), lookup.get(), t.columns);
    const std::vector<double> expected = model.Forward(t.features, batch, t.columns);
    ASSERT_EQ(out.size(), expected.size());
    for (size_t i = 0; i < out.size(); ++i) ExpectNear(out[i], expected[i], "output");
    if (batch.weighted) {
      std::vector<float> gradient(batch.ids.size(), -77);
      store->WeightGradient(lookup.get(), t.grads[step].data(), t.columns, gradient.data());
      const std::vector<double> wanted = model.WeightGradient(t.features, batch, t.grads[step], t.columns);
      for (size_t i = 0; i < gradient.size(); ++i) ExpectNear(gradient[i], wanted[i], "gradient of a weight");
    }
    t.Backward(store.get(), step, lookup.get());
    model.Backward(t.features, batch, t.grads[step], t.columns);
    if (HasFatalFailure()) FAIL() << "step " << step;
  }
  for (uint16_t table = 0; table < t.schemas.size(); ++table) {
    EXPECT_EQ(store->iter(table), model.iter(table));
    EXPECT_EQ(store->rows(table), static_cast<int64_t>(model.rows(table).size()));
    const testing::Table contents = Contents(store.get(), table);
    ASSERT_EQ(contents.size(), model.rows(table).size());
    for (const auto& [id, row] : model.rows(table)) {
      ASSERT_TRUE(contents.contains(id)) << id;
      ExpectRow(contents.at(id).data(), row);
      if (HasFatalFailure()) FAIL() << "table " << table << ", id " << id;
    }
  }
}

TEST_P(StoreTrainingTest, GivesTheSameBitsUnderEveryOption) {
  StoreOptions plain;
  plain.instruction_set = "plain";
  const std::unique_ptr<Store> reference = OpenStore(plain);
  training_.OpenTables(reference.get());
  const std::vector<std::vector<float>> outputs = training_.Run(reference.get());
  const std::vector<testing::Table> contents = training_.AllContents(reference.get());
  for (const std::string& instruction_set : testing::InstructionSets()) {
    for (const int threads : {1, 2, 4}) {
      for (const size_t cache_bytes : {0, 1}) {
        StoreOptions options;
        options.num_threads = threads;
        options.instruction_set = instruction_set;
        options.cache_bytes = cache_bytes;
        const std::unique_ptr<Store> store = OpenStore(options);
        EXPECT_EQ(store->instruction_set(), instruction_set);
        training_.OpenTables(store.get());
        ASSERT_TRUE(training_.Run(store.get()) == outputs) << instruction_set << " " << threads << " " << cache_bytes;
        ASSERT_TRUE(training_.AllContents(store.get()) == contents)
            << instruction_set << " " << threads << " " << cache_bytes;
      }
    }
  }
}

StoreOptions WithCacheBytes(size_t cache_bytes) {
  StoreOptions options;
  options.cache_bytes = cache_bytes;
  return options;
}

// With everything evicted after every call, and with nothing ever.
class StoreTest : public ::testing::TestWithParam<size_t> {
 protected:
  const std::unique_ptr<Store> store_ = OpenStore(WithCacheBytes(GetParam()), size_t{32} << 20);
};

INSTANTIATE_TEST_SUITE_P(Caches, StoreTest, ::testing::Values(0, 1),
                         [](const auto& info) { return info.param ? "Evicting" : "Keeping"; });

TEST_P(StoreTest, ForwardsCreateNoRows) {
  store_->OpenTable(PlainTable("t", 1, 4, 0.5f));
  const std::vector<int64_t> ids = Range(-500, 500);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(GetRows(store_.get(), 0, ids, UnseenRows::kInitial), std::vector<float>(4 * ids.size(), 0.5f));
    EXPECT_EQ(GetRows(store_.get(), 0, ids, UnseenRows::kZeros), std::vector<float>(4 * ids.size(), 0));
  }
  std::vector<uint8_t> contains(ids.size(), 7);
  store_->Contains(0, ids, contains.data());
  EXPECT_EQ(contains, std::vector<uint8_t>(ids.size(), 0));
  EXPECT_EQ(store_->rows(0), 0);
  EXPECT_EQ(store_->iter(0), 0u);
  EXPECT_TRUE(Contents(store_.get(), 0).empty());
}

TEST_P(StoreTest, UnseenIdsOfABagReadAsTheFeatureWants) {
  store_->OpenTable(PlainTable("t", 1, 2, 8));
  Step(store_.get(), 0, {1}, 3);  // row 1 is 5
  const Batch batch = {{1, 2, 2, 3}, {3, 1}, {}, false, 1, 2};
  const auto lookup = batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                                    {0, Pooling::kSum, UnseenRows::kZeros, 0, 2},
                                    {0, Pooling::kMean, UnseenRows::kZeros, 0, 4}});
  const float third = 5.0f / 3;  // zeros count in a mean
  EXPECT_EQ(Forward(store_.get(), lookup.get(), 6), (std::vector<float>{21, 21, 5, 5, third, third, 8, 8, 0, 0, 0, 0}));
}

TEST_P(StoreTest, RowsThatWereReadAsZerosBeginWithTheirInitialValues) {
  store_->OpenTable(PlainTable("t", 1, 2, 8));
  Step(store_.get(), 0, {1}, 3);  // row 1 is 5
  const Batch batch = {{1, 2, 2, 3}, {3, 1}, {0.5f, 1, 2, 4}, true, 1, 2};
  const auto lookup = batch.lookup(OneFeature(0, UnseenRows::kZeros));
  const std::vector<float> grad = {1, 1, 2, 2};
  const GradientPart part{lookup.get(), grad.data(), 2};
  std::vector<float> of_weights(4);
  EXPECT_EQ(Forward(store_.get(), lookup.get(), 2), (std::vector<float>{2.5f, 2.5f, 0, 0}));
  store_->WeightGradient(lookup.get(), grad.data(), 2, of_weights.data());
  EXPECT_EQ(of_weights, (std::vector<float>{10, 0, 0, 0}));
  EXPECT_TRUE(store_->Backward({&part, 1}, 1, NonFinite::kRaise));
  EXPECT_EQ(GetRows(store_.get(), 0, {1, 2, 3}), (std::vector<float>{4.5f, 4.5f, 5, 5, 0, 0}));
  EXPECT_EQ(store_->rows(0), 3);
}

TEST_P(StoreTest, LookupsOfEvaluationUpdateNothing) {
  store_->OpenTable(PlainTable("t", 1, 1, 8));
  const Batch batch = BatchOf({1});
  const auto lookup = batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0, LookupUse::kEvaluation}});
  Forward(store_.get(), lookup.get(), 1);
  const float grad = 1;
  const GradientPart part{lookup.get(), &grad, 1};
  ExpectError(ErrorCode::kInvalidArgument, {"not for training"},
              [&] { store_->Backward({&part, 1}, 1, NonFinite::kRaise); });
}

TEST_P(StoreTest, TheMeanIsThatOfTheRowsAsTheyAre) {
  store_->OpenTable(PlainTable("t", 1, 2, 8));
  const auto mean = [&] { return GetRows(store_.get(), 0, {-1}, UnseenRows::kMean); };
  EXPECT_EQ(mean(), (std::vector<float>{0, 0}));
  Step(store_.get(), 0, {1, 2}, 3);  // 5, 5
  EXPECT_EQ(mean(), (std::vector<float>{5, 5}));
  const std::vector<float> row = {11, 8};
  const std::vector<int64_t> id = {7}, first = {1};
  store_->Set(0, id, row.data());
  EXPECT_EQ(mean(), (std::vector<float>{7, 6}));
  store_->Delete(0, first);
  EXPECT_EQ(mean(), (std::vector<float>{8, 6.5f}));
  EXPECT_EQ(store_->Mean(0), store_->Mean(0));  // not computed again
  Step(store_.get(), 0, {2}, 5);                // 0, 0
  EXPECT_EQ(mean(), (std::vector<float>{5.5f, 4}));
  EXPECT_EQ(store_->rows(0), 2);
}

TEST_P(StoreTest, UnseenIdsOfABagReadTheMeanOrWhatIsGivenForIt) {
  store_->OpenTable(PlainTable("t", 1, 2, 8));
  Step(store_.get(), 0, {1, 5}, 3);  // 5, 5
  const Batch batch = {{1, 2, 2, 3}, {3, 1}, {}, false, 1, 2};
  const auto given = std::make_shared<const std::vector<float>>(std::vector<float>{1, -2});
  const auto lookup = batch.lookup({{0, Pooling::kMean, UnseenRows::kMean, 0, 0},
                                    {0, Pooling::kSum, UnseenRows::kMean, 0, 2, LookupUse::kEvaluation, given}});
  EXPECT_EQ(Forward(store_.get(), lookup.get(), 4), (std::vector<float>{5, 5, 7, 1, 5, 5, 1, -2}));
  const auto wrong = std::make_shared<const std::vector<float>>(std::vector<float>{1});
  const auto refused = batch.lookup({{0, Pooling::kSum, UnseenRows::kMean, 0, 0, LookupUse::kEvaluation, wrong}});
  ExpectError(ErrorCode::kInvalidArgument, {"\"t\"", "2 weights", "got 1"},
              [&] { Forward(store_.get(), refused.get(), 2); });
}

TEST_P(StoreTest, ZeroGradientsAreUpdates) {
  store_->OpenTable(PlainTable("t", 1, 3, 0.25f));
  Step(store_.get(), 0, {5, 5, -9}, 0);
  EXPECT_EQ(store_->rows(0), 2);
  EXPECT_EQ(GetRows(store_.get(), 0, {-9, 5, 6}, UnseenRows::kZeros),
            (std::vector<float>{0.25f, 0.25f, 0.25f, 0.25f, 0.25f, 0.25f, 0, 0, 0}));
}

TEST_P(StoreTest, AnUpdateOfEmptyBagsCountsForItsTablesOnly) {
  for (uint32_t number = 0; number < 2; ++number) store_->OpenTable(PlainTable("t", number, 2));
  const Batch batch = {{}, {0, 0, 0}, {}, false, 1, 3};
  const auto lookup = batch.lookup(OneFeature(1));
  EXPECT_EQ(Forward(store_.get(), lookup.get(), 2), std::vector<float>(6, 0));
  const std::vector<float> grad(6, 1);
  const GradientPart part{lookup.get(), grad.data(), 2};
  EXPECT_TRUE(store_->Backward({&part, 1}, 1, NonFinite::kRaise));
  EXPECT_EQ(store_->iter(0), 0u);
  EXPECT_EQ(store_->iter(1), 1u);
  EXPECT_EQ(store_->rows(1), 0);
}

TEST_P(StoreTest, ABatchWithoutSamplesIsABatch) {
  store_->OpenTable(PlainTable("t", 1, 2));
  const Batch batch = {{}, {}, {}, false, 3, 0};
  const auto lookup = batch.lookup(OneFeature(0));
  EXPECT_TRUE(Forward(store_.get(), lookup.get(), 2).empty());
  const GradientPart part{lookup.get(), nullptr, 2};
  EXPECT_TRUE(store_->Backward({&part, 1}, 1, NonFinite::kRaise));
  EXPECT_EQ(store_->iter(0), 1u);
}

// 2^30 + 1 - 2^30 is 0 in this order and 1 in others.
TEST_P(StoreTest, DuplicatesAreSummedByFeatureThenSampleThenPosition) {
  constexpr float kHuge = 0x1p30f;
  store_->OpenTable(PlainTable("t", 1, 1));
  const Batch batch = {{7, 7, 7, 7}, {1, 1, 1, 1}, {}, false, 2, 2};  // two keys of two samples
  // The first feature has the second key.
  const auto lookup =
      batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 1, 0}, {0, Pooling::kSum, UnseenRows::kInitial, 0, 1}});
  Forward(store_.get(), lookup.get(), 2);
  const float in_order[] = {kHuge, -kHuge, 1, 0.5f};  // (sample, feature): huge, 1, -huge, 0.5
  const GradientPart part{lookup.get(), in_order, 2};
  store_->Backward({&part, 1}, 1, NonFinite::kRaise);
  EXPECT_EQ(GetRows(store_.get(), 0, {7}), std::vector<float>{-0.5f});

  const Batch one_bag = {{8, 8, 8, 8}, {4}, {kHuge, 1, -kHuge, 0.5f}, true, 1, 1};
  const auto positions = one_bag.lookup(OneFeature(0));
  Forward(store_.get(), positions.get(), 1);
  const float one = 1;
  const GradientPart part_of_one{positions.get(), &one, 1};
  store_->Backward({&part_of_one, 1}, 1, NonFinite::kRaise);
  EXPECT_EQ(GetRows(store_.get(), 0, {8}), std::vector<float>{-0.5f});
}

TEST_P(StoreTest, SeveralPartsAreOneUpdate) {
  TableSchema schema = PlainTable("t", 1, 2);
  schema.optimizer.kind = OptimizerKind::kAdagrad;
  store_->OpenTable(schema);
  const Batch a = BatchOf({1, 2}), b = BatchOf({2, 3});
  const auto lookup_a = a.lookup(OneFeature(0)), lookup_b = b.lookup(OneFeature(0));
  Forward(store_.get(), lookup_a.get(), 2);
  Forward(store_.get(), lookup_b.get(), 2);
  const std::vector<float> grad_a(4, 3), grad_b(4, 4);
  const GradientPart parts[] = {{lookup_a.get(), grad_a.data(), 2}, {lookup_b.get(), grad_b.data(), 2}};
  store_->Backward(parts, 2, NonFinite::kRaise);
  EXPECT_EQ(store_->iter(0), 1u);
  // The state of row 2 is the square of (3 + 4) / 2, not the sum of two squares.
  const testing::Table contents = Contents(store_.get(), 0);
  ASSERT_EQ(contents.size(), 3u);
  for (const auto& [id, state] : {std::pair{1, 2.25f}, {2, 12.25f}, {3, 4.0f}}) {
    float found;
    std::memcpy(&found, contents.at(id).data() + 2 * sizeof(float), sizeof found);
    EXPECT_EQ(found, state) << id;
  }
}

TEST_P(StoreTest, RowsThatMovedSinceTheForwardAreFoundAgain) {
  store_->OpenTable(PlainTable("t", 1, 64));
  const Batch batch = BatchOf(Range(0, 1000));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store_.get(), lookup.get(), 64);
  for (int64_t i = 1; i <= 20; ++i) Step(store_.get(), 0, Range(2000 * i, 2000 * (i + 1)), 1);
  Step(store_.get(), 0, Range(0, 500), 5);
  store_->Delete(0, Range(0, 10));
  const std::vector<float> grad(64000, 1);
  const GradientPart part{lookup.get(), grad.data(), 64};
  store_->Backward({&part, 1}, 1, NonFinite::kRaise);
  const std::vector<float> rows = GetRows(store_.get(), 0, Range(0, 1000));
  for (size_t i = 0; i < 64000; ++i) ASSERT_EQ(rows[i], i < 640 ? -1 : i < 32000 ? -6 : -1);
  EXPECT_EQ(store_->rows(0), 41000);
}

TEST_P(StoreTest, ALookupMayGoBackwardMoreThanOnceAndWithoutAForward) {
  store_->OpenTable(PlainTable("t", 1, 2));
  const Batch batch = BatchOf({1, 2, 1});
  const auto lookup = batch.lookup(OneFeature(0));
  const std::vector<float> grad(6, 1);
  const GradientPart part{lookup.get(), grad.data(), 2};
  for (int i = 0; i < 3; ++i) store_->Backward({&part, 1}, 1, NonFinite::kRaise);
  EXPECT_EQ(GetRows(store_.get(), 0, {1, 2}), (std::vector<float>{-6, -6, -3, -3}));
}

TEST_P(StoreTest, ANewLearningRateHoldsFromTheNextUpdate) {
  TableSchema schema = PlainTable("t", 1, 1);
  store_->OpenTable(schema);
  Step(store_.get(), 0, {1}, 1);
  schema.optimizer.lr = 0.5;
  store_->SetOptimizer(0, schema.optimizer);
  Step(store_.get(), 0, {1}, 1);
  EXPECT_EQ(GetRows(store_.get(), 0, {1}), std::vector<float>{-1.5f});
}

TEST_P(StoreTest, ColumnsOfNoFeatureAreLeftAlone) {
  store_->OpenTable(PlainTable("t", 1, 2, 3));
  const Batch batch = BatchOf({1, 2});
  const auto lookup = batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 1}});
  EXPECT_EQ(Forward(store_.get(), lookup.get(), 4), (std::vector<float>{-77, 3, 3, -77, -77, 3, 3, -77}));
}

TEST_P(StoreTest, WeightGradientsSumOverFeaturesAndAreZeroForUnusedKeys) {
  store_->OpenTable(PlainTable("t", 1, 1, 2));
  store_->OpenTable(PlainTable("u", 2, 1, 10));
  const Batch batch = {{5, 6, 5, 7}, {2, 1, 1}, {1, 3, 1, 1}, true, 3, 1};
  const auto lookup = batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                                    {1, Pooling::kSum, UnseenRows::kInitial, 0, 1},
                                    {1, Pooling::kSum, UnseenRows::kZeros, 2, 2}});
  Forward(store_.get(), lookup.get(), 3);
  const float grad[] = {1, 0.5f, 4};
  std::vector<float> result(4, -77);
  store_->WeightGradient(lookup.get(), grad, 3, result.data());
  EXPECT_EQ(result, (std::vector<float>{7, 7, 0, 0}));
  EXPECT_EQ(store_->rows(0), 0);
}

TEST(StoreStatsTest, OccurrencesAreHitsOrMisses) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 4));
  store->OpenTable(PlainTable("u", 2, 4));
  GetRows(store.get(), 0, {1, 2, 2, 3});
  GetRows(store.get(), 0, {3, 3, 4});
  const TableStats stats = store->table_stats(0);
  EXPECT_EQ(stats.lookups[static_cast<size_t>(LookupUse::kById)].misses, 5u);
  EXPECT_EQ(stats.lookups[static_cast<size_t>(LookupUse::kById)].hits, 2u);
  EXPECT_EQ(stats.cached_rows, 4u);
  EXPECT_EQ(store->table_stats(1).lookups[static_cast<size_t>(LookupUse::kById)].misses, 0u);
}

// Keys with a number of bags of their own are what each key is alone.
TEST(RaggedBatchTest, OutputsStandOneBehindTheOtherAndTheirGradientsToo) {
  for (const int threads : {1, 4}) {
    const auto together = OpenStore({.num_threads = threads}), alone = OpenStore({.num_threads = threads});
    for (Store* store : {together.get(), alone.get()}) {
      for (const int dim : {3, 5}) {
        TableSchema schema = PlainTable(std::to_string(dim), static_cast<uint32_t>(dim), dim);
        schema.initializer.distribution = Distribution::kUniform;
        schema.initializer.b = 1;
        store->OpenTable(schema);
      }
    }
    const std::vector<int64_t> ids = {1, 2, 3, 1, 9, 4, 1, 1}, lengths = {2, 0, 1, 1, 1, 3}, bags = {3, 0, 1, 2};
    const std::vector<Feature> features = {{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                                           {1, Pooling::kMean, UnseenRows::kInitial, 3, 0},
                                           {1, Pooling::kSum, UnseenRows::kInitial, 1, 0},
                                           {1, Pooling::kSum, UnseenRows::kInitial, 2, 0}};
    std::mt19937_64 random(1);
    for (int step = 0; step < 3; ++step) {
      const std::unique_ptr<Lookup> ragged =
          MakeLookup(features, {ids.data(), lengths.data(), nullptr, ids.size(), bags.size(), 0, bags.data()});
      std::vector<float> out(3 * 3 + 2 * 5 + 0 + 1 * 5, -77);
      together->Forward(ragged.get(), out.data(), 0);
      const std::vector<float> grads = testing::RandomFloats(&random, out.size());
      const GradientPart part{ragged.get(), grads.data(), 0};
      ASSERT_TRUE(together->Backward({&part, 1}, 1, NonFinite::kRaise));

      // The same keys, each as a batch of its own; one update of a table has to have all of its keys.
      const testing::Batch first = {{1, 2, 3}, {2, 0, 1}, {}, false, 1, 3};
      const testing::Batch third = {{1}, {1}, {}, false, 1, 1};
      const testing::Batch fourth = {{9, 4, 1, 1}, {1, 3}, {}, false, 1, 2};
      const std::vector<std::tuple<const testing::Batch*, Feature, size_t, size_t>> parts = {
          {&first, {0, Pooling::kSum, UnseenRows::kInitial, 0, 0}, 0, 3},
          {&fourth, {1, Pooling::kMean, UnseenRows::kInitial, 0, 0}, 9, 5},
          {&third, {1, Pooling::kSum, UnseenRows::kInitial, 0, 0}, 19, 5}};
      std::vector<std::unique_ptr<Lookup>> lookups;
      for (const auto& [batch, feature, begin, dim] : parts) {
        lookups.push_back(batch->lookup({feature}));
        const std::vector<float> expected = Forward(alone.get(), lookups.back().get(), dim);
        for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(out[begin + i], expected[i]) << begin + i;
      }
      const GradientPart of_first{lookups[0].get(), grads.data(), 3};
      ASSERT_TRUE(alone->Backward({&of_first, 1}, 1, NonFinite::kRaise));
      const GradientPart of_second[] = {{lookups[1].get(), grads.data() + 9, 5},
                                        {lookups[2].get(), grads.data() + 19, 5}};
      ASSERT_TRUE(alone->Backward(of_second, 1, NonFinite::kRaise));
    }
    for (const uint16_t table : {0, 1}) EXPECT_EQ(Contents(together.get(), table), Contents(alone.get(), table));
  }
}

}  // namespace
}  // namespace damo
