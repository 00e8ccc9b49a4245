// Finds rows: from the ids of a batch to slots in the cache, which has what is not there loaded; and pools them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/capture.h"
#include "engine/compute.h"
#include "engine/forecast.h"
#include "engine/loading.h"
#include "engine/making_room.h"
#include "engine/windows.h"

namespace damo {

class RowFinder {
 public:
  // `work_bytes`: of memory that a call may work with.
  RowFinder(CachedTables* rows, const Compute& compute, Loader* loader, RoomMaker* room, Capture* capture,
            size_t work_bytes);

  // These let go of the mutex while they load rows, and throw what loading them and making room for them throws. Rows
  // that they find dead are absent from then on.

  // See Store::Forward. Leaves slots in lookups that keep them.
  void Pool(Lookup* lookup, float* out, size_t stride) DAMO_REQUIRES(store_mutex);
  // Finds, and loads where needed, the rows of every id of `lookups`, so that all slots are valid at once.
  // REQUIRES: Keeps slots of each, or few ids.
  void ResolveAll(std::span<Lookup* const> lookups) DAMO_REQUIRES(store_mutex);
  // Has all rows of `lookups` in the cache at once, pinned, without slots of all ids. Whether it throws or not, the
  // caller unpins all rows of the cache when it is done.
  void PinAll(std::span<Lookup* const> lookups) DAMO_REQUIRES(store_mutex);

  // Whether a lookup's slots are kept from its forward to its backward. Where there are too many, calls go through it
  // in windows.
  bool KeepsSlots(const Lookup& lookup) const { return lookup.num_slots <= most_slots_; }
  // Calls f(window) for windows of a feature whose rows take a part of the cache, until one returns false; the windows'
  // slots are there, but not found.
  template <class F>
  bool InWindows(const Lookup& lookup, size_t feature, F f) DAMO_REQUIRES(store_mutex) {
    const size_t rows = cache_.row_capacity_bytes() / 4 / cache_.stride(lookup.features[feature].table);
    return ForEachWindow(lookup, feature, std::max<size_t>(std::min(rows, most_ids_per_window_), 1),
                         [&](const Window& window) DAMO_REQUIRES(store_mutex) {
                           window.lookup->slots.resize(window.lookup->num_slots);
                           return f(window);
                         });
  }

  // Finds what is in the cache already, and notes no use of it.
  void Peek(std::span<Unit> units) DAMO_REQUIRES(store_mutex);

 private:
  void PoolAtOnce(Lookup* lookup, float* out, size_t stride) DAMO_REQUIRES(store_mutex);
  size_t BytesOfRows(std::span<Lookup* const> lookups) const DAMO_REQUIRES(store_mutex);
  template <bool kUse>
  void Resolve(Unit* unit) DAMO_REQUIRES(store_mutex);
  void Revalidate(Unit* unit) DAMO_REQUIRES(store_mutex);
  void ResolveMissing(Unit* unit) DAMO_REQUIRES(store_mutex);
  void Bury(std::span<Unit* const> units) DAMO_REQUIRES(store_mutex);
  void LoadMissing(std::span<const Unit> units) DAMO_REQUIRES(store_mutex);
  template <class F>
  void LoadWaiting(std::vector<Unit>* units, F use) DAMO_REQUIRES(store_mutex);

  CachedTables* const rows_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex);
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  const Compute compute_;
  Loader* const loader_;
  RoomMaker* const room_;
  Capture* const capture_;
  const size_t most_slots_;
  const size_t most_ids_per_window_;
  Forecast forecast_ DAMO_GUARDED_BY(store_mutex);
};

}  // namespace damo
