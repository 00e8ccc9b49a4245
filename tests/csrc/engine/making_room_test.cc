#include "engine/making_room.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ErrorOf;
using testing::ExpectError;
using testing::GetRows;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;

TEST(MakingRoomTest, ARowMustFitTheCache) {
  const std::unique_ptr<Store> store = OpenStore({}, testing::kTightCache);
  EXPECT_NO_THROW(store->OpenTable(PlainTable("t", 1, 16000)));
  ExpectError(ErrorCode::kInvalidArgument, {"\"u\"", "row", "memory budget", "65536"},
              [&] { store->OpenTable(PlainTable("u", 2, 17000)); });
  Step(store.get(), 0, {1, 2, 3}, 1);
  EXPECT_EQ(GetRows(store.get(), 0, {3}), std::vector<float>(16000, -1));
}

// A batch too large for the budget.
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

}  // namespace
}  // namespace damo
