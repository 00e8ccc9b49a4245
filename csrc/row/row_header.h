// What a table knows of a row besides its weights and optimizer state: the last fields of its payload (row/row.h), in
// memory and on disk. Another field is another format (kRecordVersion).
#pragma once

#include <cstdint>

namespace damo {

struct RowHeader {
  uint32_t last_step;  // the table's iteration at the row's last update
  uint32_t count;      // of its updates; it stays at its maximum instead of wrapping
};

}  // namespace damo
