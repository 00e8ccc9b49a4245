#include "storage_rocksdb/rocksdb_reclaimable.h"

#include <algorithm>
#include <utility>

namespace damo {

void ReclaimableRecords::Add(uint32_t table, const Reclaimable& reclaimable) {
  const MutexLock lock(&mutex_);
  Reclaimable& now = now_[table];
  now.ladder.RaiseTo(reclaimable.ladder);
  now.deletions_before = std::max(now.deletions_before, reclaimable.deletions_before);
}

std::shared_ptr<const void> ReclaimableRecords::Hold() {
  std::list<ReclaimableTables>::iterator held;
  {
    const MutexLock lock(&mutex_);
    held = held_.insert(held_.end(), now_);
  }
  return {this, [self = shared_from_this(), held](const void*) {
            const MutexLock lock(&self->mutex_);
            self->held_.erase(held);
          }};
}

bool ReclaimableRecords::held() const {
  const MutexLock lock(&mutex_);
  return !held_.empty();
}

ReclaimableTables ReclaimableRecords::Removable() const {
  const MutexLock lock(&mutex_);
  return held_.empty() ? now_ : held_.front();
}

}  // namespace damo
