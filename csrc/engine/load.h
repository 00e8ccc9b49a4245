// Rows on their way into the cache. Until the load ends they are in the cache's index, flagged kLoading, and their
// segments are pinned.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/store.h"
#include "row/row.h"

namespace damo {

// The rows of one table.
struct Store::LoadRun {
  uint16_t index;  // of the table
  const Table* table;
  float initial_state;       // of rows that are new
  std::vector<int64_t> ids;  // ascending, distinct
  size_t first = 0;          // of slots, payloads and found
};

struct Store::Load {
  std::vector<LoadRun> runs;
  std::vector<Slot> slots;
  std::vector<char*> payloads;
  std::vector<uint8_t> found;      // whether the RowStore had them
  std::vector<uint32_t> segments;  // one pin for each
  bool awaited;                    // by a call to come
  bool waits;                      // whether reads wait for a disk
};

}  // namespace damo
