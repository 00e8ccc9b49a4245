// How the memory of a cache is divided between its index, its filter and its segments of rows.
#pragma once

#include <cstddef>

namespace damo {

struct CacheSplit {
  size_t rows;           // that index and filter have room for: a cache full of the smallest
  size_t segment_bytes;  // a power of two
  size_t segments;       // those in the reserve among them

  size_t row_bytes() const { return segments * segment_bytes; }
};

// Segments kept free beyond what was asked for: eviction copies survivors before it frees what they came from.
constexpr size_t kReservedSegments = 2;

// Rows begin at multiples of 1 << kLeastUnitShift bytes, or, in an arena of 32 GiB or more, of more.
constexpr int kLeastUnitShift = 3;
inline size_t RowStride(size_t row_size, int unit_shift) {
  const size_t unit = size_t{1} << unit_shift;
  return (row_size + unit - 1) / unit * unit;
}

// The size of the segments of a cache of `bytes` in all.
size_t ChooseSegmentBytes(size_t bytes);
// `min_stride`: bytes of the smallest row. REQUIRES: segment_bytes is a power of two.
CacheSplit SplitCache(size_t bytes, size_t segment_bytes, size_t min_stride);

}  // namespace damo
