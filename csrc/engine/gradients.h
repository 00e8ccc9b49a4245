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

// What the rows of one table get, grouped by row. One thread's, in cache lines of its own, and kept from call to call:
// the lower half is working memory.
struct alignas(64) RowGradients {
  std::vector<Slot> rows;               // distinct, in order of first occurrence
  std::vector<uint32_t> begin;          // [rows + 1], into occurrences
  std::vector<Occurrence> occurrences;  // by row, then in the order in which they are summed

  std::vector<Slot> slots;  // by position: what is gathered before it is grouped
  std::vector<Occurrence> gathered;
  std::vector<uint32_t> row_of;      // by position
  std::vector<uint32_t> hash_table;  // row + 1, or 0
  std::vector<float> buffer;         // for the kernels
};

// A share of a table's rows, so that several threads can work on one table.
struct TableShare {
  uint16_t table;
  size_t share;
  size_t shares;
};

// Groups by row what a share of a table gets from all parts, in the order (part, the table's features, sample,
// position), divided by `grad_scale`. REQUIRES: the slots of all parts are valid.
void GatherGradients(const TableShare& share, std::span<const PlacedGradient> parts, float grad_scale,
                     const CachedTables& rows, RowGradients* gradients) DAMO_REQUIRES(store_mutex);

// The first row whose summed gradient is not finite, in words, or an empty string. Raises `largest` to the largest
// absolute value of a sum.
std::string DescribeNonFinite(uint16_t table, const RowGradients& gradients, const CachedTables& rows, float* largest)
    DAMO_REQUIRES(store_mutex);

// An upper bound of the absolute values that summing the parts' gradients can give, infinite or NaN if there is none.
float GradientBound(std::span<const GradientPart> parts, float grad_scale, const CachedTables& rows,
                    const Compute& compute) DAMO_REQUIRES(store_mutex);

}  // namespace damo
