#include "engine/awaited_rows.h"

#include <algorithm>

namespace damo {
namespace {

// A prefetch whose forward has not come within so many calls is forgotten.
constexpr uint64_t kMostCalls = 128;

}  // namespace

size_t AwaitedRows::bytes() const {
  size_t bytes = 0;
  for (const Prefetch& prefetch : prefetches_) bytes += prefetch.bytes;
  return bytes;
}

void AwaitedRows::Add(const Lookup& lookup, size_t bytes, uint64_t arrival) {
  prefetches_.push_back({lookup.features[0].table, bytes, arrival, calls_});
  NoteCall();
}

void AwaitedRows::RemoveLast() {
  prefetches_.pop_back();
  NoteCall();
}

void AwaitedRows::End(const Lookup& lookup) {
  if (lookup.features.empty()) return;
  const auto found = std::find_if(prefetches_.begin(), prefetches_.end(),
                                  [&](const Prefetch& prefetch) { return prefetch.table == lookup.features[0].table; });
  if (found != prefetches_.end()) prefetches_.erase(found);
  NoteCall();
}

void AwaitedRows::ForgetAll() {
  prefetches_.clear();
  NoteCall();
}

void AwaitedRows::NoteCall() {
  ++calls_;
  std::erase_if(prefetches_, [calls = calls_](const Prefetch& prefetch) { return prefetch.call + kMostCalls < calls; });
  const auto oldest =
      std::find_if(prefetches_.begin(), prefetches_.end(), [](const Prefetch& prefetch) { return prefetch.bytes > 0; });
  cache_.KeepArrivals(oldest == prefetches_.end() ? RowCache::kNoArrival : oldest->arrival);
}

}  // namespace damo
