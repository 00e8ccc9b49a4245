// How a memory budget is divided.
#pragma once

#include <cstddef>

namespace damo {

// What RocksDB, the working memory of a call and a cache that is worth having take at least.
constexpr size_t kLeastMemoryBudget = size_t{64} << 20;
// A cache of that size has a gigabyte to say of its segments alone.
constexpr size_t kMostMemoryBudget = size_t{16} << 40;

struct BudgetShares {
  size_t row_store;
  size_t cache;
  size_t outputs;  // kept for the next step
  size_t reserve;  // for rows that are updated while a checkpoint is being written
  size_t work;     // for the gradients of an update, by row
};
// Throws kInvalidArgument below kLeastMemoryBudget. REQUIRES: kMostMemoryBudget at most.
BudgetShares DivideBudget(size_t memory_budget);

}  // namespace damo
