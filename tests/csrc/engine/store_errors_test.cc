// What a failed call leaves: the store as it was, and a call that can be made again.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/store_model.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ErrorOf;
using testing::ExpectError;
using testing::FailOnce;
using testing::Forward;
using testing::GetRows;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::Training;

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- gradients that are not finite

// One batch of two features, of tables "good" (dim 1) and "bad" (dim 1), in one bag. The gradient of "bad" and, where
// there are any, the weights of its ids, which are all 42.
struct Gradient {
  std::string name;
  float grad;
  size_t ids = 1;
  std::vector<float> weights = {};
  Pooling pooling = Pooling::kSum;
  float grad_scale = 1;

  friend void PrintTo(const Gradient& gradient, std::ostream* out) { *out << gradient.name; }
};

class StoreGradientTest : public ::testing::TestWithParam<Gradient> {
 protected:
  StoreGradientTest() {
    StoreOptions options;
    options.num_threads = 2;
    store_ = OpenStore(options);
    for (uint32_t number = 0; number < 2; ++number) {
      TableSchema schema = PlainTable(number == 0 ? "good" : "bad", number, 1);
      schema.optimizer.lr = 0x1p-120;
      store_->OpenTable(schema);
      Step(store_.get(), static_cast<uint16_t>(number), {1, 42}, 1);
    }
  }

  bool Update(NonFinite policy) {
    const Gradient& g = GetParam();
    Batch batch;
    batch.keys = 2;
    batch.batch = 1;
    batch.ids = Range(1, 4);
    batch.ids.insert(batch.ids.end(), g.ids, 42);
    batch.lengths = {3, static_cast<int64_t>(g.ids)};
    batch.weighted = !g.weights.empty();
    batch.weights = {1, 1, 1};
    batch.weights.insert(batch.weights.end(), g.weights.begin(), g.weights.end());
    const auto lookup =
        batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0}, {1, g.pooling, UnseenRows::kInitial, 1, 1}});
    Forward(store_.get(), lookup.get(), 2);
    const float grad[] = {1, g.grad};
    const GradientPart part{lookup.get(), grad, 2};
    return store_->Backward({&part, 1}, g.grad_scale, policy);
  }

  std::unique_ptr<Store> store_;
};

std::string GradientName(const ::testing::TestParamInfo<Gradient>& info) { return info.param.name; }

class StoreNonFiniteTest : public StoreGradientTest {};

INSTANTIATE_TEST_SUITE_P(
    Gradients, StoreNonFiniteTest,
    ::testing::Values(Gradient{.name = "NaN", .grad = kNan}, Gradient{.name = "NegativeNaN", .grad = -kNan},
                      Gradient{.name = "Infinity", .grad = kInfinity},
                      Gradient{.name = "NegativeInfinity", .grad = -kInfinity},
                      Gradient{.name = "TwoThatOverflow", .grad = kMax, .ids = 2},
                      Gradient{.name = "AWeightThatOverflows", .grad = kMax, .weights = {1.5f}},
                      Gradient{.name = "AnInfiniteWeight", .grad = 1, .weights = {kInfinity}},
                      Gradient{.name = "ANaNWeightOfNoGradient", .grad = 0, .weights = {kNan}},
                      Gradient{.name = "AMeanOfTinyWeight",
                               .grad = 1,
                               .ids = 2,
                               .weights = {1, -0x1.fffffep-1f},
                               .pooling = Pooling::kMean,
                               .grad_scale = 0x1p-110f},
                      Gradient{.name = "AScaleThatOverflows", .grad = kMax, .grad_scale = 0.5f},
                      Gradient{.name = "ANegativeScaleThatOverflows", .grad = kMax, .grad_scale = -0.5f}),
    GradientName);

TEST_P(StoreNonFiniteTest, IsAnErrorThatNamesTableAndIdAndChangesNothing) {
  const testing::Table before[] = {Contents(store_.get(), 0), Contents(store_.get(), 1)};
  ExpectError(ErrorCode::kNonFinite, {"\"bad\"", "id 42"}, [&] { Update(NonFinite::kRaise); });
  EXPECT_FALSE(Update(NonFinite::kSkip));
  for (uint16_t table = 0; table < 2; ++table) {
    EXPECT_EQ(Contents(store_.get(), table), before[table]);
    EXPECT_EQ(store_->iter(table), 1u);
    EXPECT_EQ(store_->rows(table), 2);
  }
  Step(store_.get(), 1, {42}, 1);
  EXPECT_EQ(store_->iter(1), 2u);
}

class StoreHugeGradientTest : public StoreGradientTest {};

INSTANTIATE_TEST_SUITE_P(
    Gradients, StoreHugeGradientTest,
    ::testing::Values(
        Gradient{.name = "TheLargest", .grad = kMax}, Gradient{.name = "TheLeast", .grad = -kMax},
        Gradient{.name = "SeveralThatSumToNearlyTheLargest", .grad = kMax / 4, .ids = 3},
        Gradient{.name = "OnesThatCancel", .grad = kMax, .ids = 2, .weights = {1, -1}},
        Gradient{.name = "AMean", .grad = kMax, .ids = 8, .pooling = Pooling::kMean},
        Gradient{
            .name = "AMeanOfWeightsThatCancel", .grad = kMax, .ids = 2, .weights = {1, -1}, .pooling = Pooling::kMean},
        Gradient{.name = "NaNForAnEmptyBag", .grad = kNan, .ids = 0},
        Gradient{.name = "AScale", .grad = kMax, .grad_scale = 0x1p100f}),
    GradientName);

TEST_P(StoreHugeGradientTest, IsApplied) {
  EXPECT_TRUE(Update(NonFinite::kRaise));
  for (uint16_t table = 0; table < 2; ++table) EXPECT_EQ(store_->iter(table), 2u);
  EXPECT_EQ(store_->rows(0), 4);
}

TEST(StoreOverflowTest, AnOverflowOverSeveralFeaturesOfATableIsFound) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 1));
  const Batch batch = BatchOf({7});
  const Feature features[] = {{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                              {0, Pooling::kSum, UnseenRows::kInitial, 0, 1}};
  const auto lookup = batch.lookup({features[0], features[1]});
  const float grad[] = {kMax, kMax};
  const GradientPart part{lookup.get(), grad, 2};
  ExpectError(ErrorCode::kNonFinite, {"\"t\"", "id 7"}, [&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
  // Over several parts, too.
  const auto lookup_of_one = batch.lookup({features[0]});
  const GradientPart parts[] = {{lookup_of_one.get(), grad, 1}, {lookup_of_one.get(), grad, 1}};
  ExpectError(ErrorCode::kNonFinite, {"\"t\"", "id 7"}, [&] { store->Backward(parts, 1, NonFinite::kRaise); });
  EXPECT_EQ(store->rows(0), 0);
}

// 20 of these are below the largest float, but not if float32 adds them one after the other.
TEST(StoreOverflowTest, AnOverflowByRoundingIsFound) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 1));
  const Batch batch = BatchOf(std::vector<int64_t>(20, 7));
  const auto lookup = batch.lookup(OneFeature(0));
  const std::vector<float> grad(20, 0x1.999996p+123f);
  const GradientPart part{lookup.get(), grad.data(), 1};
  ExpectError(ErrorCode::kNonFinite, {"\"t\"", "id 7"}, [&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
  EXPECT_EQ(store->rows(0), 0);
}

// ---- wrong calls

TEST(StoreArgumentsTest, ScalesThatDivideToNothingAreRefused) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 1));
  const Batch batch = BatchOf({1});
  const auto lookup = batch.lookup(OneFeature(0));
  const float grad = 1;
  const GradientPart part{lookup.get(), &grad, 1};
  for (const float scale : {0.0f, -0.0f, kNan, kInfinity, -kInfinity}) {
    ExpectError(ErrorCode::kInvalidArgument, {"grad_scale"},
                [&] { store->Backward({&part, 1}, scale, NonFinite::kRaise); });
  }
  EXPECT_EQ(store->iter(0), 0u);
}

TEST(StoreArgumentsTest, LengthsMustDescribeTheIds) {
  const int64_t ids[] = {1, 2, 3};
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const struct {
    std::vector<int64_t> lengths;
    std::vector<std::string> message;
  } wrong[] = {{{1, 1}, {"lengths", "3", "2"}},
               {{2, 2}, {"lengths", "3", "position 1"}},
               {{4, -1}, {"lengths", "position 0"}},
               {{-1, 4}, {"negative", "-1", "position 0"}},
               {{3, std::numeric_limits<int64_t>::min()}, {"negative", "position 1"}},
               {{kHuge, kHuge}, {"lengths", "position 0"}},
               {{}, {"lengths", "3", "0"}}};
  for (const auto& [lengths, message] : wrong) {
    ExpectError(ErrorCode::kInvalidArgument, message, [&, n = lengths.size(), data = lengths.data()] {
      Store::MakeLookup(OneFeature(0), {ids, data, nullptr, 3, 1, n});
    });
  }
}

TEST(StoreArgumentsTest, ARowMustFitTheCache) {
  const std::unique_ptr<Store> store = OpenStore({}, testing::kTightCache);
  EXPECT_NO_THROW(store->OpenTable(PlainTable("t", 1, 16000)));
  ExpectError(ErrorCode::kInvalidArgument, {"\"u\"", "row", "memory budget", "65536"},
              [&] { store->OpenTable(PlainTable("u", 2, 17000)); });
  Step(store.get(), 0, {1, 2, 3}, 1);
  EXPECT_EQ(GetRows(store.get(), 0, {3}), std::vector<float>(16000, -1));
}

TEST(StoreArgumentsTest, ATableHasOnlySoManyUpdates) {
  const std::unique_ptr<Store> store = OpenStore();
  TableSchema schema = PlainTable("old", 1, 1);
  schema.iter = std::numeric_limits<uint32_t>::max() - 1;
  store->OpenTable(schema);
  Step(store.get(), 0, {1}, 1);
  ExpectError(ErrorCode::kInvalidArgument, {"\"old\"", "4294967295"}, [&] { Step(store.get(), 0, {1}, 1); });
  EXPECT_EQ(GetRows(store.get(), 0, {1}), std::vector<float>{-1});
}

// ---- a batch too large for the budget

class StoreLargeBatchTest : public ::testing::Test {
 protected:
  static constexpr size_t kDim = 64;

  std::unique_ptr<Store> Open(size_t budget) {
    StoreOptions options;
    options.memory_budget = budget;
    auto store = std::make_unique<Store>(OpenMemoryStore(), DivideBudget(budget), options);
    store->OpenTable(PlainTable("t", 1, kDim));
    return store;
  }

  std::unique_ptr<Store> store_ = Open(size_t{64} << 20);
  std::vector<int64_t> large_ = Range(0, 150000);
};

TEST_F(StoreLargeBatchTest, IsRefusedAndASmallerOneWorks) {
  Step(store_.get(), 0, Range(0, 1000), 1);
  for (int i = 0; i < 2; ++i) {
    ExpectError(ErrorCode::kInvalidArgument, {"memory_budget", "67108864", "MiB"},
                [&] { Step(store_.get(), 0, large_, 1); });
  }
  EXPECT_EQ(store_->rows(0), 1000);
  EXPECT_EQ(store_->iter(0), 1u);
  Step(store_.get(), 0, Range(500, 50500), 1);
  const std::vector<float> rows = GetRows(store_.get(), 0, Range(0, 50500));
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], i >= 500 * kDim && i < 1000 * kDim ? -2 : -1) << i;
  EXPECT_EQ(store_->rows(0), 50500);
}

TEST_F(StoreLargeBatchTest, WorksWithTheBudgetThatTheRefusalNames) {
  Step(store_.get(), 0, Range(100000, 160000), 1);  // part of the batch is in the cache already
  const std::string message = ErrorOf([&] { Step(store_.get(), 0, large_, 1); }).value().what();
  const size_t end = message.rfind("MiB");
  const size_t begin = message.rfind('"', end) + 1;
  const size_t mebibytes = std::stoul(message.substr(begin, end - begin));
  EXPECT_LT(mebibytes, 250u) << message;
  const std::unique_ptr<Store> store = Open(mebibytes << 20);
  Step(store.get(), 0, large_, 1);
  EXPECT_EQ(store->rows(0), 150000);
}

// ---- a row store that fails

// The same training with the n-th read or write failing, for ever larger n, while whatever fails is done again: no
// update may get lost or be applied twice.
class StoreFaultTest : public ::testing::TestWithParam<size_t> {
 protected:
  StoreFaultTest() {
    options_.num_threads = 2;
    options_.cache_bytes = GetParam();
  }

  // Makes the call until it does not fail with the injected error.
  static void Retry(const std::function<void()>& call) {
    while (const std::optional<Error> error = ErrorOf(call)) {
      ASSERT_EQ(error->code(), ErrorCode::kIo) << error->what();
      ASSERT_NE(std::string(error->what()).find("on fire"), std::string::npos) << error->what();
    }
  }

  void ExpectFaultsChangeNothing(const std::function<std::unique_ptr<RowStore>(FailOnce*)>& open) {
    const std::unique_ptr<Store> reference = OpenStore(options_);
    training_.OpenTables(reference.get());
    const std::vector<std::vector<float>> outputs = training_.Run(reference.get());
    const std::vector<testing::Table> contents = training_.AllContents(reference.get());
    int faults = 0;
    for (int n = 1;; n += 1 + n / 4, ++faults) {
      FailOnce failure;
      const std::unique_ptr<Store> store = OpenStore(options_, testing::kRoomyCache, open(&failure));
      training_.OpenTables(store.get());
      failure.Arm(n);
      for (size_t step = 0; step < Training::kSteps; ++step) {
        const auto lookup = training_.batches[step].lookup(training_.features);
        std::vector<float> output;
        Retry([&] { output = Forward(store.get(), lookup.get(), training_.columns); });
        ASSERT_TRUE(output == outputs[step]) << "fault " << n << ", step " << step;
        Retry([&] { training_.Backward(store.get(), step, lookup.get()); });
      }
      Retry([&] { store->Flush(); });
      ASSERT_TRUE(training_.AllContents(store.get()) == contents) << "fault " << n;
      for (uint16_t table = 0; table < 3; ++table) {
        ASSERT_EQ(store->rows(table), reference->rows(table)) << "fault " << n;
        ASSERT_EQ(store->iter(table), reference->iter(table)) << "fault " << n;
      }
      if (!failure.Fired()) break;
    }
    EXPECT_GT(faults, 0) << "nothing failed";
  }

  StoreOptions options_;
  const Training training_{OptimizerKind::kRowWiseAdagrad};
};

INSTANTIATE_TEST_SUITE_P(Caches, StoreFaultTest, ::testing::Values(0, 1),
                         [](const auto& info) { return "Bytes" + std::to_string(info.param); });

TEST_P(StoreFaultTest, AFailedReadLeavesACallThatCanBeRepeated) {
  ExpectFaultsChangeNothing(
      [](FailOnce* failure) { return std::make_unique<HookedStore>([failure] { (*failure)(); }); });
}

TEST_P(StoreFaultTest, AFailedWriteLeavesACallThatCanBeRepeated) {
  ExpectFaultsChangeNothing(
      [](FailOnce* failure) { return std::make_unique<HookedStore>([] {}, [failure] { (*failure)(); }); });
}

// A cache that is truly full: evictions in the midst of forwards and backwards have to write.
TEST(StoreFullCacheTest, AFailedWriteLeavesACallThatCanBeRepeated) {
  constexpr size_t kDim = 64;
  int faults = 0;
  for (int n = 1;; n += 1 + n / 2, ++faults) {
    FailOnce failure;
    const std::thread::id caller = std::this_thread::get_id();
    // Only those writes that the caller waits for.
    const auto fail = [&] {
      if (std::this_thread::get_id() == caller) failure();
    };
    const std::unique_ptr<Store> store =
        OpenStore({}, testing::kTightCache, std::make_unique<HookedStore>([] {}, fail));
    store->OpenTable(PlainTable("t", 1, kDim));
    failure.Arm(n);
    int errors = 0;
    const auto retry = [&](const std::function<void()>& call) {
      while (ErrorOf(call)) ++errors;
    };
    for (int64_t i = 0; i < 16; ++i) {
      const Batch a = BatchOf(Range(1500 * i, 1500 * i + 2500)), b = BatchOf(Range(1500 * i + 2500, 1500 * i + 5000));
      const auto lookup_a = a.lookup(OneFeature(0)), lookup_b = b.lookup(OneFeature(0));
      retry([&] { Forward(store.get(), lookup_a.get(), kDim); });
      retry([&] { Forward(store.get(), lookup_b.get(), kDim); });  // evicts much of the other
      const std::vector<float> grad(2500 * kDim, 1);
      for (Lookup* lookup : {lookup_a.get(), lookup_b.get()}) {
        const GradientPart part{lookup, grad.data(), kDim};
        retry([&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
      }
    }
    retry([&] { store->Flush(); });
    EXPECT_EQ(errors, failure.Fired() ? 1 : 0);
    const int64_t end = 1500 * 15 + 5000;
    ASSERT_EQ(store->rows(0), end);
    for (int64_t id = 0; id < end; id += 500) {
      float expected = 0;
      for (int64_t i = 0; i < 16; ++i) expected -= 1500 * i <= id && id < 1500 * i + 5000 ? 1 : 0;
      ASSERT_EQ(GetRows(store.get(), 0, {id})[0], expected) << "id " << id << ", fault " << n;
    }
    if (!failure.Fired()) break;
  }
  EXPECT_GT(faults, 0) << "nothing failed";
}

TEST(StoreFullCacheTest, FailuresInTheBackgroundLoseNothing) {
  std::atomic<int> failures = 0;
  std::atomic<bool> healed = false;
  const std::thread::id caller = std::this_thread::get_id();
  const auto fail = [&] {
    if (healed || std::this_thread::get_id() == caller) return;
    if (++failures % 2) throw Error(ErrorCode::kOutOfSpace, "full");
    throw std::bad_alloc();
  };
  const std::unique_ptr<Store> store = OpenStore({}, testing::kTightCache, std::make_unique<HookedStore>([] {}, fail));
  store->OpenTable(PlainTable("t", 1, 64));
  for (int64_t i = 0; i < 40; ++i) {
    if (i == 30) healed = true;
    Step(store.get(), 0, Range(1000 * i, 1000 * i + 3000), 1);
  }
  EXPECT_GT(failures, 0);
  const std::vector<float> rows = GetRows(store.get(), 0, Range(20000, 23000));
  for (const float weight : rows) ASSERT_EQ(weight, -3);
  ASSERT_EQ(Contents(store.get(), 0).size(), 42000u);
  for (int64_t id = 3000; id < 39000; id += 250) ASSERT_EQ(GetRows(store.get(), 0, {id})[0], -3) << id;
}

TEST(StoreFullCacheTest, AFailedDeleteDeletesNothing) {
  FailOnce failure;
  const std::unique_ptr<Store> store =
      OpenStore({}, testing::kRoomyCache, std::make_unique<HookedStore>([] {}, [&] { failure(); }));
  store->OpenTable(PlainTable("t", 1, 1));
  Step(store.get(), 0, Range(0, 10), 1);
  failure.Arm(1);
  ExpectError(ErrorCode::kIo, {"on fire"}, [&] { store->Delete(0, Range(0, 5)); });
  EXPECT_EQ(store->rows(0), 10);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), std::vector<float>(10, -1));
  store->Delete(0, Range(0, 5));
  EXPECT_EQ(Contents(store.get(), 0).size(), 5u);
}

TEST(StoreFullCacheTest, AnErrorOfAReadNamesTheTable) {
  FailOnce failure;
  const std::unique_ptr<Store> store =
      OpenStore({}, testing::kRoomyCache, std::make_unique<HookedStore>([&] { failure(); }));
  store->OpenTable(PlainTable("t_user", 1, 1));
  failure.Arm(1);
  ExpectError(ErrorCode::kIo, {"t_user", "on fire"}, [&] { GetRows(store.get(), 0, {1}); });
}

}  // namespace
}  // namespace damo
