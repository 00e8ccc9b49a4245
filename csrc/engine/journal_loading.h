// The journal of the checkpoint that a store goes on from, on its way into memory: its rows lie in the cache as they
// did in the store that made the checkpoint, dirty, so that nothing of it is written but what does not fit. The next
// checkpoint has them in a journal of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "engine/cached_tables.h"
#include "engine/compute.h"
#include "engine/making_room.h"
#include "storage/row_store.h"

namespace damo {

class JournalLoader {
 public:
  // The cache's number of the table with this one on disk, which it opens; none if its rows are not for the cache.
  using TableOf = std::function<std::optional<uint16_t>(uint32_t)>;

  // Asks `table_of` once for each table, when the first row of it comes.
  JournalLoader(TableOf table_of, CachedTables* rows, RowStore* store, RoomMaker* room, const Compute& compute);

  // Applies changes over those before them and over what the RowStore has. Rows that are not for the cache are written.
  // Throws kCorruption for a row that has not the size of its table's, and what writing and making room throw.
  // REQUIRES: no write is under way in the background.
  void Load(std::span<const RowWrite> rows) DAMO_REQUIRES(store_mutex);

 private:
  struct Target {
    std::optional<uint16_t> table;  // in the cache
    uint32_t tag;
  };

  std::optional<uint16_t> Find(uint32_t number);
  void Populate() DAMO_REQUIRES(store_mutex);
  void Put(const RowWrite& row, Target to) DAMO_REQUIRES(store_mutex);
  void Write(std::span<const RowWrite> rows, std::span<const Target> targets) DAMO_REQUIRES(store_mutex);

  const TableOf table_of_;
  Tables& tables_ DAMO_GUARDED_BY(store_mutex);
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  RowStore* const store_;
  RoomMaker* const room_;
  const Compute compute_;
  const char* populated_ = nullptr;                    // the cache's memory up to here
  std::map<uint32_t, std::optional<uint16_t>> found_;  // what table_of_ has said
  std::vector<Target> targets_;                        // of the rows at hand
};

}  // namespace damo
