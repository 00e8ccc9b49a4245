// What changed in a table since a step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "storage/row_snapshot.h"

namespace damo {

// Rows whose last step is `since` or later, and ids whose row was deleted at `since` or later and is not there, each in
// ascending order. A row that was set rather than updated has the step of the update before.
class RowChanges {
 public:
  RowChanges(const RowSnapshot* snapshot, size_t position, uint32_t since)
      : snapshot_(snapshot), position_(position), since_(since), rows_(snapshot->Scan(position, since)) {}

  const RowLayout& layout() const { return snapshot_->tables()[position_].layout; }

  // See RowIterator::Next.
  bool NextRow(int64_t* id, const char** payload) { return NextChanged(rows_.get(), id, payload); }
  bool NextDeleted(int64_t* id);

 private:
  bool NextChanged(RowIterator* rows, int64_t* id, const char** payload) const;

  const RowSnapshot* const snapshot_;
  const size_t position_;
  const uint32_t since_;
  std::unique_ptr<RowIterator> rows_;
  // A second time beside the deletions: a row that came back has changed, too.
  std::unique_ptr<RowIterator> deletions_;
  std::unique_ptr<RowIterator> present_;
  std::optional<int64_t> next_present_;
};

}  // namespace damo
