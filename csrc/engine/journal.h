// What checkpoints hold beside the rows that were written: when rows go to the RowStore's journal, and when it is begun
// anew.
//
// A checkpoint needs every row as it is, but most of the changed ones, those used often, change again before the next
// checkpoint. So it adds what has changed since the one before to the journal, which is far cheaper than writing it,
// and the rows stay dirty until they are evicted. The journal comes before what was written: a row that is written
// after it has changed is added as well, or an older one in the journal would take its place.
#pragma once

#include <cstdint>
#include <span>

#include "engine/disk_budget.h"
#include "storage/row_store.h"

namespace damo {

// One call at a time.
class Journal {
 public:
  Journal(RowStore* rows, DiskBudget* disk) : rows_(rows), disk_(disk) {}

  // A checkpoint begins: returns the flag of the rows to Add, kChanged or, for a new journal, kDirty. From then on no
  // row is written until End.
  uint8_t Begin();
  // Throws kOutOfSpace or kIo.
  void Add(std::span<const RowWrite> rows) {
    disk_->RequireRoom();
    rows_->AddToJournal(rows);
  }
  // Whether all rows of the flag were added, and are no longer kChanged.
  void End(bool complete);

  // These rows have been written, or deleted. Does not throw: where they cannot be added the journal is begun anew.
  void NoteWritten(std::span<const RowWrite> rows);
  // Empties it, for a new one with the next checkpoint; with `all_written`, no row is dirty.
  void Clear(bool all_written = false);

 private:
  bool TooLarge() const;

  RowStore* const rows_;
  DiskBudget* const disk_;
  // Dirty rows that are not kChanged are in it.
  bool whole_ = true;
  uint64_t first_bytes_ = 0;  // of its first checkpoint
};

}  // namespace damo
