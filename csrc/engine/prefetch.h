// Begins to read the rows of a batch to come.
#pragma once

#include "engine/awaited_rows.h"
#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/forecast.h"
#include "engine/loading.h"
#include "engine/lookup.h"
#include "engine/making_room.h"

namespace damo {

class Prefetcher {
 public:
  Prefetcher(CachedTables* rows, RowFinder* finder, RoomMaker* room, Loader* loader, AwaitedRows* awaited)
      : cache_(rows->cache), finder_(finder), room_(room), loader_(loader), awaited_(awaited) {}

  // See Store::Prefetch.
  void Prefetch(Lookup* lookup) DAMO_REQUIRES(store_mutex);

 private:
  void PrefetchAtOnce(Lookup* lookup) DAMO_REQUIRES(store_mutex);

  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  RowFinder* const finder_;
  RoomMaker* const room_;
  Loader* const loader_;
  AwaitedRows* const awaited_;
  Forecast forecast_ DAMO_GUARDED_BY(store_mutex);
};

}  // namespace damo
