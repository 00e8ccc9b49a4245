#include "engine/open.h"

#include <utility>

#include "engine/budget.h"
#include "storage/memory_store.h"
#include "storage_rocksdb/rocksdb_exit.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {

std::unique_ptr<Store> OpenStore(const std::string& path, bool create, bool in_memory, const StoreOptions& options) {
  const BudgetShares shares = DivideBudget(options.memory_budget);
  std::unique_ptr<RowStore> rows;
  if (in_memory) {
    rows = OpenMemoryStore(path);
  } else {
    RocksDbOptions rocksdb;
    rocksdb.path = path;
    rocksdb.create = create;
    rocksdb.read_only = options.read_only;
    rocksdb.memory_bytes = shares.row_store;
    rocksdb.num_threads = options.num_threads;
    rocksdb.direct_io = options.direct_io;
    rows = OpenRocksDbStore(rocksdb);
    LeaveForkedChildrenAtExit();
  }
  return std::make_unique<Store>(std::move(rows), shares, options);
}

}  // namespace damo
