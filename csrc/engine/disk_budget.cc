#include "engine/disk_budget.h"

#include <utility>

#include "base/files.h"
#include "base/status.h"

namespace damo {

DiskBudget::DiskBudget(uint64_t limit, std::string directory, const RowStore* rows)
    : limit_(limit), directory_(std::move(directory)), rows_(rows) {
  if (limit_ == 0) return;
  const MutexLock lock(&mutex_);
  Measure();
}

bool DiskBudget::IsFull() {
  if (limit_ == 0) return false;
  const uint64_t written = rows_->Stats().bytes_written;
  const MutexLock lock(&mutex_);
  const uint64_t since = written - written_, most = used_ + since;
  if (most >= limit_ || (most >= limit_ / 10 * 9 && since >= limit_ / 100)) Measure();
  return used_ >= limit_;
}

void DiskBudget::RequireRoom() {
  if (IsFull()) Refuse();
}

void DiskBudget::Refuse() {
  throw Error(ErrorCode::kOutOfSpace, "the files in " + directory_ + " take " + std::to_string(used()) +
                                          " bytes of the disk_budget of " + std::to_string(limit_) +
                                          ": no new rows and no checkpoints until there is space. Remove checkpoints " +
                                          "(prune), or open the store with a larger disk_budget");
}

uint64_t DiskBudget::used() const {
  const MutexLock lock(&mutex_);
  return used_;
}

void DiskBudget::Measure() {
  written_ = rows_->Stats().bytes_written;
  used_ = BytesOfFiles(directory_);
}

}  // namespace damo
