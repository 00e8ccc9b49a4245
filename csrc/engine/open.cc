#include "engine/open.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "engine/budget.h"
#include "storage/memory_store.h"
#include "storage_rocksdb/rocksdb_exit.h"
#include "storage_rocksdb/rocksdb_log_reader.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {

std::unique_ptr<Store> OpenStore(const std::string& path, bool create, bool in_memory, const StoreOptions& options,
                                 const CheckpointJournal& journal) {
  const BudgetShares shares = DivideBudget(options.memory_budget);
  std::unique_ptr<RowStore> rows;
  if (in_memory) {
    rows = OpenMemoryStore(path);
  } else {
    RocksDbOptions rocksdb;
    rocksdb.path = path;
    rocksdb.create = create;
    rocksdb.read_only = options.read_only && journal.logs.empty();
    rocksdb.memory_bytes = shares.row_store;
    rocksdb.num_threads = options.num_threads;
    rocksdb.direct_io = options.direct_io;
    // Where a journal is read over them, they are those of a checkpoint that stays as it is.
    rocksdb.table_files = options.read_only && !rocksdb.read_only ? Links::kFollow : Links::kRefuse;
    rows = OpenRocksDbStore(rocksdb);
    LeaveForkedChildrenAtExit();
  }
  auto store = std::make_unique<Store>(std::move(rows), shares, options);
  store->LoadJournal(journal.tables, [&](const auto& apply) {
    std::optional<uint64_t> sequence;  // of one log goes on in the next
    for (const std::string& log : journal.logs) sequence = ReadLogFile(log, apply, sequence);
  });
  return store;
}

}  // namespace damo
