// Finds rows: from the ids of a batch to slots in the cache, which has what is not there loaded; and pools them.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/compute.h"
#include "engine/forecast.h"
#include "engine/loading.h"
#include "engine/making_room.h"

namespace damo {

class RowFinder {
 public:
  RowFinder(CachedTables* rows, const Compute& compute, Loader* loader, RoomMaker* room)
      : rows_(rows), tables_(rows->tables), cache_(rows->cache), compute_(compute), loader_(loader), room_(room) {}

  // These two let go of the mutex while they load rows, and throw what loading them and making room for them throws.

  // See Store::Forward.
  void Pool(Lookup* lookup, float* out, size_t stride) DAMO_REQUIRES(store_mutex);
  // Finds, and loads where needed, the rows of every id of `lookups`, so that all slots are valid at once.
  void ResolveAll(std::span<Lookup* const> lookups) DAMO_REQUIRES(store_mutex);

  // Finds what is in the cache already, and notes no use of it.
  void Peek(std::span<Unit> units) DAMO_REQUIRES(store_mutex);

 private:
  template <bool kUse>
  void Resolve(Unit* unit) DAMO_REQUIRES(store_mutex);
  void Revalidate(Unit* unit) DAMO_REQUIRES(store_mutex);
  void ResolveMissing(Unit* unit) DAMO_REQUIRES(store_mutex);
  void ReadAbsentAsZeros(const Unit& unit) DAMO_REQUIRES(store_mutex);
  void LoadMissing(std::span<const Unit> units) DAMO_REQUIRES(store_mutex);
  template <class F>
  void LoadWaiting(std::vector<Unit>* units, F use) DAMO_REQUIRES(store_mutex);

  CachedTables* const rows_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex);
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  const Compute compute_;
  Loader* const loader_;
  RoomMaker* const room_;
  Forecast forecast_ DAMO_GUARDED_BY(store_mutex);
};

}  // namespace damo
