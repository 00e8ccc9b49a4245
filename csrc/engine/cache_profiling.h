// Shows a CacheProfile what a store looks up, if it is asked to keep one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/thread_pool.h"
#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/options.h"
#include "profile/cache_profile.h"

namespace damo {

// A profile as it is now.
struct CacheProfileReport {
  CacheProfileCounts counts;
  std::vector<size_t> budgets;  // of the sizes in `counts`
  bool warm;                    // see CacheProfile::Recent
  int shift;                    // of the rate: one of 2^shift ids is sampled
  size_t sampled_ids;
};

// The memory budgets that a profile is of, ascending: two to each doubling, and the store's own.
std::vector<size_t> ProfiledBudgets(size_t own);

// How many rows with payloads of so many bytes are in memory with such a budget. Throws as DivideBudget does.
size_t RowsWithin(size_t memory_budget, size_t payload_bytes);

class CacheProfiler {
 public:
  CacheProfiler(const StoreOptions& options, CachedTables* rows, ThreadPool* threads);

  bool active() const { return profile_ != nullptr; }
  // After its forward. A profile that there is no memory for ends.
  void Note(const Lookup& lookup) DAMO_REQUIRES(store_mutex);
  std::optional<CacheProfileReport> report() const;

 private:
  void Show(const Lookup& lookup) DAMO_REQUIRES(store_mutex);
  void Describe(SampledId* id) const DAMO_REQUIRES(store_mutex);

  CachedTables* const rows_;
  std::vector<size_t> budgets_;
  std::unique_ptr<CacheProfile> profile_;
};

}  // namespace damo
