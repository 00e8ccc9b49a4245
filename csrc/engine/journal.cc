#include "engine/journal.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "base/status.h"
#include "row/row.h"

namespace damo {
namespace {

// A journal keeps old versions of rows, which take room on disk and time when a checkpoint is opened: with those of the
// checkpoint that finds it too large, twice as many as its first checkpoint had rows, and some more where those were
// few.
constexpr uint64_t kMoreBytes = uint64_t{32} << 20;
constexpr size_t kMostFiles = 64;

}  // namespace

bool Journal::TooLarge() const {
  const JournalSize size = rows_->journal_size();
  return size.bytes > 2 * first_bytes_ + kMoreBytes || size.files >= kMostFiles;
}

uint8_t Journal::Begin() {
  if (whole_ && TooLarge()) Clear();
  return whole_ ? kChanged : kDirty;
}

void Journal::End(bool complete) {
  if (!complete) return Clear();
  if (!whole_ || first_bytes_ == 0) first_bytes_ = rows_->journal_size().bytes;
  whole_ = true;
}

void Journal::NoteWritten(std::span<const RowWrite> rows) {
  if (!whole_ || rows_->journal_size().bytes == 0) return;
  try {
    std::vector<RowWrite> changed;
    std::copy_if(rows.begin(), rows.end(), std::back_inserter(changed),
                 [](const RowWrite& row) { return row.changed; });
    if (changed.empty()) return;
    if (TooLarge()) return Clear();
    rows_->AddToJournal(changed);
  } catch (...) {  // the next checkpoint does without it, or meets the same
    Clear();
  }
}

void Journal::Clear(bool all_written) {
  rows_->ClearJournal();
  whole_ = all_written;
  first_bytes_ = 0;
}

}  // namespace damo
