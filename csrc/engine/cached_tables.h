// The open tables of a store with those of their rows that are in memory, and the mutex that guards both.
#pragma once

#include <deque>

#include "base/mutex.h"
#include "cache/row_cache.h"
#include "engine/table.h"

namespace damo {

// Clang knows a mutex by the expression that names it, and the parts of a store each reach the same one through a
// pointer of their own. So all of them say `store_mutex`: that of the store at hand.
class DAMO_CAPABILITY("mutex") MutexName {};
inline constexpr MutexName store_mutex;

using Tables = std::deque<Table>;  // by the cache's table number

class CachedTables {
 public:
  explicit CachedTables(const RowCacheOptions& options) : cache(options) {}

  Mutex* mutex() DAMO_RETURN_CAPABILITY(store_mutex) { return &mutex_; }
  // Notified when rows have been read or written, and when a capture ends.
  CondVar progress;

  // A call that runs loops over rows on several threads holds the mutex for all of them.
  Tables tables DAMO_GUARDED_BY(store_mutex);
  RowCache cache DAMO_GUARDED_BY(store_mutex);

 private:
  Mutex mutex_;
};

}  // namespace damo
