// Updates rows: from the gradient of a collection's output to one update of each row that the batch names.
#pragma once

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
#include "engine/trial.h"
#include "kernels/optimizer.h"

namespace damo {

enum class NonFinite { kRaise, kSkip };

class Updater {
 public:
  Updater(CachedTables* rows, const Compute& compute, RowFinder* finder, Capture* capture);

  // See Store::Backward and Store::WeightGradient. They let go of the mutex while rows are loaded, or kept for a
  // capture.
  bool Update(std::span<const GradientPart> parts, float grad_scale, NonFinite policy) DAMO_REQUIRES(store_mutex);
  void WeightGradient(Lookup* lookup, const float* grad, size_t stride, float* weight_grad) DAMO_REQUIRES(store_mutex);

 private:
  // One call's work: what a thread takes at a time.
  struct Work {
    TableShare share;
    OptimizerStep step;
  };
  struct Plan {
    std::vector<PlacedGradient> parts;
    float grad_scale;
    std::vector<bool> involved;        // by table
    std::vector<size_t> ids_of_table;  // by table: occurrences, in all parts
    std::vector<Work> work;
  };

  void FindRows(std::span<const GradientPart> parts) DAMO_REQUIRES(store_mutex);
  Plan MakePlan(std::span<const GradientPart> parts, float grad_scale) DAMO_REQUIRES(store_mutex);
  // Throws kNonFinite, or returns false with kSkip, if the update would leave something that is not finite.
  bool StaysFinite(std::span<const GradientPart> parts, const Plan& plan, NonFinite policy) DAMO_REQUIRES(store_mutex);
  // What is not finite, in words, or an empty string: a gradient, whose largest value is found with that; or a row,
  // after the update.
  std::string FindNonFinite(const Plan& plan, float* largest) DAMO_REQUIRES(store_mutex);
  std::string FindOverflow(const Plan& plan) DAMO_REQUIRES(store_mutex);
  void AwaitReserve(const Plan& plan) DAMO_REQUIRES(store_mutex);
  void Apply(const Plan& plan) DAMO_REQUIRES(store_mutex);

  CachedTables* const rows_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex);
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  const Compute compute_;
  RowFinder* const finder_;
  Capture* const capture_;
  std::vector<RowGradients> gradients_ DAMO_GUARDED_BY(store_mutex);  // by thread
};

}  // namespace damo
