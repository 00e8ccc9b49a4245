#include "engine/open.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;
using testing::GetRows;
using testing::PlainTable;
using testing::Range;
using testing::Step;

TEST(OpenTest, RowsOfARocksDbComeBack) {
  const testing::TemporaryDirectory directory;
  {
    const std::unique_ptr<Store> store = damo::OpenStore(directory / "rows", /*create=*/true, /*in_memory=*/false, {});
    store->OpenTable(PlainTable("t", 1, 4));
    Step(store.get(), 0, Range(0, 100), 1);
    store->Flush();
    store->Checkpoint(directory / "checkpoint", /*link=*/true);
  }
  const std::unique_ptr<Store> store = damo::OpenStore(directory / "checkpoint", false, false, {});
  store->OpenTable(PlainTable("t", 1, 4));
  EXPECT_EQ(GetRows(store.get(), 0, {0, 99}), std::vector<float>(8, -1));
}

TEST(OpenTest, RowsInMemoryBeginWithThoseOfACheckpoint) {
  const testing::TemporaryDirectory directory;
  const std::unique_ptr<Store> first = damo::OpenStore("", true, /*in_memory=*/true, {});
  first->OpenTable(PlainTable("t", 1, 4));
  Step(first.get(), 0, Range(0, 100), 1);
  first->Checkpoint(directory / "checkpoint", true);
  const std::unique_ptr<Store> second = damo::OpenStore(directory / "checkpoint", false, true, {});
  second->OpenTable(PlainTable("t", 1, 4));
  EXPECT_EQ(GetRows(second.get(), 0, {0, 99}), std::vector<float>(8, -1));
}

TEST(OpenTest, ABudgetThatIsTooSmallMakesNothing) {
  const testing::TemporaryDirectory directory;
  StoreOptions options;
  options.memory_budget = kLeastMemoryBudget - 1;
  ExpectError(ErrorCode::kInvalidArgument, {"memory_budget"},
              [&] { damo::OpenStore(directory / "rows", true, false, options); });
  EXPECT_FALSE(std::filesystem::exists(directory / "rows"));
}

}  // namespace
}  // namespace damo
