// Rows in an ordered map in memory, for tests and for sanitizer builds that must not see RocksDB.
#pragma once

#include <memory>
#include <string>

#include "storage/row_store.h"

namespace damo {

// Starts empty, or from a directory that a memory store's Checkpoint wrote. Nothing bounds its memory; a snapshot
// copies its tables. Throws kIo or kCorruption.
std::unique_ptr<RowStore> OpenMemoryStore(const std::string& checkpoint = {});

}  // namespace damo
