// Puts a store together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/options.h"
#include "engine/store.h"

namespace damo {

// What a checkpoint holds beside its table files.
struct CheckpointJournal {
  std::vector<std::string> logs;    // paths, the oldest first
  std::vector<TableSchema> tables;  // the checkpoint's
};

// Opens the rows in the directory `path` and a store over them, within its memory budget. `create`: makes a new
// database there; otherwise there has to be one. `in_memory`: rows are kept in memory, and begin with those of `path`,
// a checkpoint, or with none if it is empty. `journal`: changes that come over the rows in `path`; what of them does
// not fit into memory is written there, even if the store is read-only. Throws as OpenRocksDbStore, OpenMemoryStore,
// DivideBudget, ReadLogFile and Store::LoadJournal do, and kInvalidArgument for an instruction set that this machine
// does not have.
std::unique_ptr<Store> OpenStore(const std::string& path, bool create, bool in_memory, const StoreOptions& options,
                                 const CheckpointJournal& journal = {});

}  // namespace damo
