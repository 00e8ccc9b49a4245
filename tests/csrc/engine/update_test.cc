#include "engine/update.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::ExpectError;
using testing::GetRows;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Step;

TEST(UpdateTest, ScalesThatDivideToNothingAreRefused) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 1));
  const Batch batch = BatchOf({1});
  const auto lookup = batch.lookup(OneFeature(0));
  const float grad = 1;
  const GradientPart part{lookup.get(), &grad, 1};
  for (const float scale : {0.0f, -0.0f, std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    ExpectError(ErrorCode::kInvalidArgument, {"grad_scale"},
                [&] { store->Backward({&part, 1}, scale, NonFinite::kRaise); });
  }
  EXPECT_EQ(store->iter(0), 0u);
}

TEST(UpdateTest, ATableHasOnlySoManyUpdates) {
  const std::unique_ptr<Store> store = OpenStore();
  TableSchema schema = PlainTable("old", 1, 1);
  schema.iter = std::numeric_limits<uint32_t>::max() - 1;
  store->OpenTable(schema);
  Step(store.get(), 0, {1}, 1);
  ExpectError(ErrorCode::kInvalidArgument, {"\"old\"", "4294967295"}, [&] { Step(store.get(), 0, {1}, 1); });
  EXPECT_EQ(GetRows(store.get(), 0, {1}), std::vector<float>{-1});
}

}  // namespace
}  // namespace damo
