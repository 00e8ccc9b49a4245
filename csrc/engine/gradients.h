// From the gradient of a collection's output to that of each row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/compute.h"
#include "kernels/kernels.h"

namespace damo {

// A gradient that arrives in Backward: that of the output of `lookup`.
struct GradientPart {
  Lookup* lookup;
  const float* grad;
  size_t stride;  // floats from one sample to the next, where the output is one matrix
};

// The same, with the places of its features in it.
struct PlacedGradient {
  const Lookup* lookup;
  const float* grad;
  std::vector<Place> places;
};

// What an update is made of. Gradients are summed in the order (part, the table's features, sample, position), and
// divided by `grad_scale`.
struct Gradients {
  std::vector<PlacedGradient> parts;
  float grad_scale;
};

// A share of a table's rows, so that several threads can work on one table, or one on less than all of it.
struct TableShare {
  uint16_t table;
  size_t share;
  size_t shares;
};

// What rows of one table get: row r the sum of occurrences begin[r]..begin[r + 1], in that order.
struct RowGradients {
  std::span<const Slot> rows;  // distinct
  const uint32_t* begin;
  const Occurrence* occurrences;
  float* buffer;                  // for the kernels
  const uint32_t* ids = nullptr;  // by row: how many ids those stand for, where it is not one each

  uint32_t ids_of(size_t row) const { return ids == nullptr ? begin[row + 1] - begin[row] : ids[row]; }
};

// Groups the occurrences of ids by row, where they are. One thread's, in cache lines of its own.
class alignas(64) GroupedGradients {
 public:
  // What it takes for each occurrence in a share.
  static constexpr size_t kBytesPerId = 64;

  // By share of a table: how many occurrences it has. REQUIRES: the slots of all parts are valid.
  static std::vector<size_t> CountIds(uint16_t table, size_t shares, const Gradients& gradients);

  // For shares of up to so many occurrences. What it reserves is kept.
  void Reserve(size_t ids, int dim);
  // Valid until the next call. Allocates nothing. REQUIRES: the slots of all parts are valid, and Reserve.
  RowGradients Gather(const TableShare& share, const Gradients& gradients, const CachedTables& rows)
      DAMO_REQUIRES(store_mutex);
  size_t memory_bytes() const;

 private:
  std::vector<Slot> rows_;               // in order of first occurrence
  std::vector<uint32_t> begin_;          // [rows + 1]
  std::vector<Occurrence> occurrences_;  // by row
  std::vector<Slot> slots_;              // by position: what is gathered before it is grouped, and one more
  std::vector<Occurrence> gathered_;     // the same
  std::vector<uint32_t> row_of_;         // by position
  std::vector<uint32_t> hash_table_;     // row + 1, or 0
  std::vector<float> buffer_;
};

// Calls f(position of the id in its feature, its bag's position, scale) for the bags of `feature`: what one occurrence
// of an id adds to its row's gradient is scale times the gradient of its bag.
template <class F>
void ForEachOccurrence(const Lookup& lookup, const Feature& feature, F f) {
  const int64_t* offsets = lookup.bag_offsets(feature);
  const float* weights = lookup.batch.weights;
  for (size_t bag = 0; bag < lookup.bags(feature); ++bag) {
    float total = 1;
    if (feature.pooling == Pooling::kMean) {
      total = weights == nullptr ? static_cast<float>(offsets[bag + 1] - offsets[bag]) : 0;
      for (int64_t i = offsets[bag]; weights != nullptr && i < offsets[bag + 1]; ++i) total += weights[i];
    }
    const float unweighted = 1.0f / total;  // a bag without ids has no use for it
    for (int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
      const float scale = weights == nullptr ? unweighted : total == 0 ? 0.0f : weights[i] / total;
      f(static_cast<size_t>(i - offsets[0]), bag, scale);
    }
  }
}

// The first row whose summed gradient is not finite, in words, or an empty string. Raises `largest` to the largest
// absolute value of a sum.
std::string DescribeNonFinite(uint16_t table, const RowGradients& gradients, const CachedTables& rows, float* largest)
    DAMO_REQUIRES(store_mutex);

// An upper bound of the absolute values that summing the parts' gradients can give, infinite or NaN if there is none.
float GradientBound(std::span<const GradientPart> parts, float grad_scale, const CachedTables& rows,
                    const Compute& compute) DAMO_REQUIRES(store_mutex);

}  // namespace damo
