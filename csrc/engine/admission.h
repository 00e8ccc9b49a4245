// Who gets a row: ids that have been seen often enough. Until then what is known of an id lies in the header of its
// absent row: how often it was seen, and at which iteration last.
#pragma once

#include <cstdint>

#include "engine/table.h"
#include "life/life_tally.h"
#include "row/row.h"

namespace damo {

// Says what an update, the table's `iter`th, does to a row that occurs so often in it, before it does: tells the
// table's life by `tally`, and returns whether the row is updated. If not, it stays absent, and its sightings are
// noted. Thread-safe for different rows and tallies. REQUIRES: the table has a life, whose step has begun; the row is
// not dead.
bool Admit(const Table& table, char* row, uint32_t occurrences, uint32_t iter, LifeTally* tally);

}  // namespace damo
