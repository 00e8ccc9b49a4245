// The inner loops over rows, compiled once per instruction set from kernels_impl.h and chosen when a store is opened.
// All of them compute the same bits: elementwise IEEE operations, no contraction, sums by lane_sum.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/update_rules.h"
#include "row/initializer.h"
#include "row/row.h"
#include "row/row_bounds.h"

namespace damo {

enum class Pooling : uint8_t { kSum, kMean };

// What rows that are kAbsent read as: the initial value that they hold, zeros, or the mean of the table's other rows.
enum class UnseenRows : uint8_t { kInitial, kZeros, kMean };

// Where a bag is pooled in parts, one call after the other: what goes from one to the next, but for its output.
struct BagPart {
  float total = 0;  // of the weights so far
  bool first = true;
  bool last = false;
};

// Pools `bags` bags into `out`: bag b has the ids offsets[b]..offsets[b+1] of `slots` and `weights`, both indexed from
// offsets[0]. An empty bag, and a mean whose weights sum to zero, gives zeros. `mean` is for UnseenRows::kMean.
// REQUIRES: no slot is kMissingSlot.
struct PoolArgs {
  Arena arena;
  const Slot* slots;
  const int64_t* offsets;
  const float* weights;  // or nullptr: all ones
  size_t bags;
  int dim;
  Pooling pooling;
  float* out;  // row b at out + b * out_stride
  size_t out_stride;
  WeightType weight_type = WeightType::kFloat32;
  BagPart* part = nullptr;  // or of the one bag
  UnseenRows unseen = UnseenRows::kInitial;
  const float* mean = nullptr;  // [dim]
};

// One occurrence of an id in a batch: it adds scale * grad[0..dim) to its row's gradient.
struct Occurrence {
  const float* grad;
  float scale;
};

// Updates `rows` distinct rows: row r is slots[r] and its gradient the sum of occurrences begin[r]..begin[r+1], in that
// order. Clears kAbsent, sets kDirty, kChanged and the header.
struct ApplyArgs {
  Arena arena;
  const Slot* slots;
  const uint32_t* begin;
  const Occurrence* occurrences;
  size_t rows;
  int dim;
  OptimizerStep step;
  uint32_t iter;
  float* buffer;  // 2 * dim floats of scratch
  WeightType weight_type = WeightType::kFloat32;
  uint64_t stream_key = 0;  // of the table: what rounding to 16 bits is drawn from
};

struct ApplyResult {
  size_t created = 0;  // rows that had been absent
  RowBounds bounds;    // of what was written
};

// Gradients of the per-id weights of the bags in PoolArgs, whose `out` they get as input: grad[i] = <row_i, g> for sums
// and (<row_i, g> - <mean, g>) / sum of weights for means. `weight_grad` is indexed like `slots`.
struct WeightGradArgs {
  PoolArgs bags;  // out is not used
  const float* grad;
  size_t grad_stride;
  float* weight_grad;
};

struct Kernels {
  const char* name;
  void (*pool)(const PoolArgs&);
  ApplyResult (*apply[kOptimizerKinds])(const ApplyArgs&);  // by OptimizerKind
  void (*weight_grad)(const WeightGradArgs&);
  // The largest absolute value's bits as an integer: at least 0x7F800000 if any value is infinite or NaN.
  uint32_t (*max_abs_bits)(const float*, size_t);
  RowBounds (*row_bounds)(const RowLayout&, const char* payload);
  void (*draw_row)(const Initializer&, int64_t id, int dim, float* weights);
};

// The names of those that this machine can run, the widest first.
std::vector<std::string> SupportedInstructionSets();

// "auto" is the widest that this machine has. Throws kInvalidArgument with the names there are.
const Kernels& SelectKernels(const std::string& instruction_set);

}  // namespace damo
