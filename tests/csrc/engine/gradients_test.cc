#include "engine/gradients.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ExpectError;
using testing::Forward;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

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

}  // namespace
}  // namespace damo
