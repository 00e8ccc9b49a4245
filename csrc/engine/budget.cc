#include "engine/budget.h"

#include <algorithm>
#include <string>

#include "base/status.h"

namespace damo {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kLeastRowStore = 24 * kMiB;
constexpr size_t kMostRowStore = 1024 * kMiB;
// Slots, gradients by row, sorted ids and write-back copies of a batch, and the reserve of a capture.
constexpr size_t kLeastStaging = 16 * kMiB;

}  // namespace

BudgetShares DivideBudget(size_t memory_budget) {
  if (memory_budget < kLeastMemoryBudget) {
    throw Error(ErrorCode::kInvalidArgument, "memory_budget must be at least " + std::to_string(kLeastMemoryBudget) +
                                                 " bytes (\"" + std::to_string(kLeastMemoryBudget / kMiB) +
                                                 "MiB\"), got " + std::to_string(memory_budget));
  }
  const size_t row_store = std::min(kLeastRowStore + (memory_budget - kLeastMemoryBudget) / 8, kMostRowStore);
  const size_t outputs = memory_budget / 32;
  const size_t staging = kLeastStaging + (memory_budget - kLeastMemoryBudget) / 16;
  return {row_store, memory_budget - row_store - outputs - staging, outputs, staging / 4, staging / 2};
}

}  // namespace damo
