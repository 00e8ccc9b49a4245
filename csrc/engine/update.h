// Updates rows: from the gradient of a collection's output to one update of each row that the batch names.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/capture.h"
#include "engine/compute.h"
#include "engine/gradients.h"
#include "engine/lookup.h"
#include "engine/summed_gradients.h"
#include "engine/trial.h"
#include "kernels/optimizer.h"
#include "life/shared_life.h"

namespace damo {

enum class NonFinite { kRaise, kSkip };

// A table that has a life, and rows in other stores as well, which make the same update.
struct SharedTable {
  uint16_t table;
  LifeCensus census;      // of all stores
  LifeExchange exchange;  // with them
};

// What the lives of tables go by in an update.
struct LifeStep {
  double clock = 0;                          // seconds
  std::span<const SharedTable> shared = {};  // in the same order in all stores
};

class Updater {
 public:
  // `work_bytes`: of memory that an update may work with.
  Updater(CachedTables* rows, const Compute& compute, RowFinder* finder, Capture* capture, size_t work_bytes);

  // See Store::Backward. Lets go of the mutex while rows are loaded, or kept for a capture.
  bool Update(std::span<const GradientPart> parts, float grad_scale, NonFinite policy, const LifeStep& lives)
      DAMO_REQUIRES(store_mutex);

  // See Store::FindFault.
  std::string FindFault(std::span<const GradientPart> parts, float grad_scale) DAMO_REQUIRES(store_mutex);

  // What is kept from call to call.
  size_t memory_bytes() const DAMO_REQUIRES(store_mutex);

 private:
  // One call's work: what a thread takes at a time.
  struct Work {
    TableShare share;
    size_t size;  // ids that are grouped, or rows that have sums
    OptimizerStep step;
  };
  struct OfTable {
    bool involved = false;
    size_t ids = 0;  // occurrences, in all parts
    std::atomic<int64_t> created = 0;
  };
  // All that the update allocates.
  struct Plan {
    Gradients gradients;
    std::vector<OfTable> tables;
    size_t ids = 0;  // of all tables
    std::vector<Work> work;
    std::vector<SummedGradients> sums;  // by thread, where ids are too many to be grouped
  };

  // f(&plan), with the rows found.
  template <class F>
  auto WithPlan(std::span<const GradientPart> parts, float grad_scale, F f) DAMO_REQUIRES(store_mutex);
  Plan MakePlan(std::span<const GradientPart> parts, float grad_scale) DAMO_REQUIRES(store_mutex);
  size_t LeastShares(const Plan& plan, size_t table) const DAMO_REQUIRES(store_mutex);
  bool PlanGroups(std::span<Lookup* const> lookups, Plan* plan) DAMO_REQUIRES(store_mutex);
  void PlanSums(Plan* plan) DAMO_REQUIRES(store_mutex);
  void AddWork(uint16_t table, std::span<const size_t> sizes, Plan* plan) DAMO_REQUIRES(store_mutex);
  static void SortWork(Plan* plan);
  bool CheckAndApply(std::span<const GradientPart> parts, NonFinite policy, const LifeStep& lives, Plan* plan)
      DAMO_REQUIRES(store_mutex);
  template <class F>
  void ForEachWork(Plan* plan, F f) DAMO_REQUIRES(store_mutex);
  // What would not be finite, in words, or an empty string: a gradient, or a row after the update.
  std::string FindFault(std::span<const GradientPart> parts, Plan* plan) DAMO_REQUIRES(store_mutex);
  std::string FindNonFinite(Plan* plan, float* largest) DAMO_REQUIRES(store_mutex);
  std::string FindOverflow(Plan* plan) DAMO_REQUIRES(store_mutex);
  void KeepRows(Plan* plan) DAMO_REQUIRES(store_mutex);
  void BeginLives(const Plan& plan, const LifeStep& lives) DAMO_REQUIRES(store_mutex);
  void Apply(const LifeStep& lives, Plan* plan) DAMO_REQUIRES(store_mutex);
  void ApplyTo(const Work& work, const RowGradients& gradients, OfTable* counts) DAMO_REQUIRES(store_mutex);
  void EndStep(uint16_t table, const OfTable& counts, const LifeExchange& exchange) DAMO_REQUIRES(store_mutex);

  CachedTables* const rows_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex);
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  const Compute compute_;
  RowFinder* const finder_;
  Capture* const capture_;
  const size_t work_bytes_;
  std::vector<GroupedGradients> groups_ DAMO_GUARDED_BY(store_mutex);  // by thread
};

}  // namespace damo
