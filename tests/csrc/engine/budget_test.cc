#include "engine/budget.h"

#include <gtest/gtest.h>

#include <string>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;

TEST(BudgetTest, SharesAddUpToLessThanTheBudget) {
  for (size_t budget = size_t{64} << 20; budget <= size_t{64} << 30; budget += budget / 3) {
    const BudgetShares shares = DivideBudget(budget);
    EXPECT_LT(shares.row_store + shares.cache + shares.outputs, budget);
    EXPECT_GT(shares.cache, budget / 3);
    EXPECT_LT(shares.cache, budget);  // no share has wrapped around
  }
}

TEST(BudgetTest, TooSmallABudgetIsRefusedWithTheLeast) {
  EXPECT_NO_THROW(DivideBudget(size_t{64} << 20));
  for (const size_t budget : {size_t{0}, size_t{1}, (size_t{64} << 20) - 1}) {
    ExpectError(ErrorCode::kInvalidArgument, {"memory_budget", "64MiB", std::to_string(budget)},
                [&] { DivideBudget(budget); });
  }
}

}  // namespace
}  // namespace damo
