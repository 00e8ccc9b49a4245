// Rows that were prefetched for a forward which has not come: they are evicted after all others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "engine/batch.h"
#include "engine/cached_tables.h"

namespace damo {

class AwaitedRows {
 public:
  explicit AwaitedRows(CachedTables* rows) : cache_(rows->cache) {}

  size_t bytes() const DAMO_REQUIRES(store_mutex);

  // A prefetch of `lookup` loads so many bytes of rows, perhaps none; `arrival` is where in the cache's order of
  // arrivals the first of them stands. REQUIRES: it has features.
  void Add(const Lookup& lookup, size_t bytes, uint64_t arrival) DAMO_REQUIRES(store_mutex);
  // Takes back the last Add.
  void RemoveLast() DAMO_REQUIRES(store_mutex);
  // The forward that the oldest prefetch of this collection was for has come.
  void End(const Lookup& lookup) DAMO_REQUIRES(store_mutex);
  void ForgetAll() DAMO_REQUIRES(store_mutex);

 private:
  struct Prefetch {
    uint16_t table;  // the first one of its features: two collections have no table in common
    size_t bytes;
    uint64_t arrival;
    uint64_t call;
  };

  void NoteCall() DAMO_REQUIRES(store_mutex);

  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  std::deque<Prefetch> prefetches_ DAMO_GUARDED_BY(store_mutex);  // oldest first
  uint64_t calls_ DAMO_GUARDED_BY(store_mutex) = 0;               // of the methods above
};

}  // namespace damo
