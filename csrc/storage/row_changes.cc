#include "storage/row_changes.h"

#include "row/record.h"

namespace damo {

bool RowChanges::NextChanged(RowIterator* rows, int64_t* id, const char** payload) const {
  while (rows->Next(id, payload)) {
    if (PayloadHeader(*payload, layout()).last_step >= since_) return true;
  }
  return false;
}

bool RowChanges::NextDeleted(int64_t* id) {
  const char* payload;
  const auto advance = [&] {
    int64_t present;
    next_present_ = NextChanged(present_.get(), &present, &payload) ? std::optional(present) : std::nullopt;
  };
  if (deletions_ == nullptr) deletions_ = snapshot_->ScanDeletions(position_, since_);
  while (deletions_->Next(id, &payload)) {
    if (DecodeDeletion(payload) < since_) continue;
    if (present_ == nullptr) {
      present_ = snapshot_->Scan(position_, since_);
      advance();
    }
    while (next_present_ && *next_present_ < *id) advance();
    if (next_present_ != *id) return true;
  }
  return false;
}

}  // namespace damo
