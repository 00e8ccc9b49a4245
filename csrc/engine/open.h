// Puts a store together.
#pragma once

#include <memory>
#include <string>

#include "engine/options.h"
#include "engine/store.h"

namespace damo {

// Opens the rows in the directory `path` and a store over them, within its memory budget. `create`: makes a new
// database there; otherwise there has to be one. `in_memory`: rows are kept in memory, and begin with those of `path`,
// a checkpoint, or with none if it is empty. Throws as OpenRocksDbStore, OpenMemoryStore and DivideBudget do, and
// kInvalidArgument for an instruction set that this machine does not have.
std::unique_ptr<Store> OpenStore(const std::string& path, bool create, bool in_memory, const StoreOptions& options);

}  // namespace damo
