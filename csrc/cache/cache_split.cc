#include "cache/cache_split.h"

#include <algorithm>
#include <bit>

#include "cache/hash_index.h"
#include "cache/replacement.h"

namespace damo {
namespace {

constexpr size_t kLargestSegment = size_t{1} << 20;
constexpr size_t kSmallestSegment = size_t{1} << 18;

}  // namespace

size_t ChooseSegmentBytes(size_t bytes) {
  return std::clamp(std::bit_floor(bytes / 256), kSmallestSegment, kLargestSegment);
}

CacheSplit SplitCache(size_t bytes, size_t segment_bytes, size_t min_stride) {
  const size_t rows = bytes / (min_stride + HashIndex::BytesFor(1000) / 1000 + GhostFilter::BytesFor(1));
  const size_t overhead = HashIndex::BytesFor(rows) + GhostFilter::BytesFor(rows);
  return {rows, segment_bytes, std::min(bytes / segment_bytes, (bytes - overhead) / segment_bytes)};
}

}  // namespace damo
