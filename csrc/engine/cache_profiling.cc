#include "engine/cache_profiling.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "cache/cache_split.h"
#include "engine/budget.h"

namespace damo {
namespace {

constexpr size_t kMostProfiled = size_t{4} << 40;

size_t UseOf(LookupUse use) { return use == LookupUse::kTraining ? 0 : 1; }

}  // namespace

std::vector<size_t> ProfiledBudgets(size_t own) {
  std::vector<size_t> budgets{own};
  for (size_t budget = kLeastMemoryBudget; budget <= kMostProfiled; budget *= 2) {
    budgets.push_back(budget);
    budgets.push_back(static_cast<size_t>(static_cast<double>(budget) * std::sqrt(2.0)) >> 20 << 20);
  }
  std::sort(budgets.begin(), budgets.end());
  budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
  return budgets;
}

size_t RowsWithin(size_t memory_budget, size_t payload_bytes) {
  const size_t bytes = DivideBudget(memory_budget).cache;
  const size_t stride = RowStride(kPayloadOffset + payload_bytes, kLeastUnitShift);
  const CacheSplit split = SplitCache(bytes, ChooseSegmentBytes(bytes), stride);
  return split.segments * (split.segment_bytes / stride);
}

CacheProfiler::CacheProfiler(const StoreOptions& options, CachedTables* rows, ThreadPool* threads) : rows_(rows) {
  if (!options.profile_cache) return;
  budgets_ = ProfiledBudgets(options.memory_budget);
  std::vector<size_t> sizes;
  for (const size_t budget : budgets_) sizes.push_back(DivideBudget(budget).cache);
  profile_ = std::make_unique<CacheProfile>(std::move(sizes), options.profile_shift, threads);
}

void CacheProfiler::Note(const Lookup& lookup) {
  try {
    Show(lookup);
  } catch (const std::bad_alloc&) {
    profile_.reset();
  }
}

void CacheProfiler::Show(const Lookup& lookup) {
  const RowCache& cache = rows_->cache;
  std::vector<SampledId> sampled;
  std::array<uint64_t, kProfileUses> ids{};
  for (const Feature& feature : lookup.features) {
    ids[UseOf(feature.use)] += lookup.ids_of(feature);
    profile_->SetTable(feature.table, cache.stride(feature.table), rows_->tables[feature.table].schema.iter);
  }
  for (size_t use = 0; use < kProfileUses; ++use) {
    if (ids[use] == 0) continue;
    sampled.clear();
    for (const Feature& feature : lookup.features) {
      if (UseOf(feature.use) != use) continue;
      const int64_t* first = lookup.batch.ids + lookup.bag_offsets(feature)[0];
      for (const int64_t* id = first; id != first + lookup.ids_of(feature); ++id) {
        const uint64_t hash = CacheProfile::Hash(feature.table, *id);
        if (profile_->Samples(hash)) sampled.push_back({hash, *id, feature.table});
      }
    }
    MergeSampled(&sampled);
    for (SampledId& id : sampled) Describe(&id);
    profile_->Note(use, ids[use], sampled);
  }
}

void CacheProfiler::Describe(SampledId* id) const {
  const RowCache& cache = rows_->cache;
  const Slot slot = cache.Find(HashTag(id->table, id->id), id->table, id->id);
  if (slot == kMissingSlot) return;  // a large lookup has had it go again
  char* row = cache.Row(slot);
  id->absent = (RowFlags(row) & kAbsent) != 0;
  id->header = *HeaderOf(row, cache.layout(id->table));
}

std::optional<CacheProfileReport> CacheProfiler::report() const {
  if (profile_ == nullptr) return std::nullopt;
  CacheProfileReport report{profile_->Recent(), budgets_, profile_->warm(), profile_->shift(), profile_->sampled_ids()};
  report.budgets.resize(report.counts.missed.size());
  return report;
}

}  // namespace damo
