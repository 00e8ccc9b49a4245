#include "engine/capture.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace damo {

void Snapshot::Begin() {
  active_ = true;
  flag_ = journal_->Begin();
  for (uint32_t segment : cache_->SegmentsInUse()) {
    if (cache_->BeginSnapshot(segment, flag_)) segments_.push_back(segment);
  }
}

void Snapshot::Keep(std::span<const Slot> slots) {
  std::vector<Slot> needed;
  for (Slot slot : slots) {
    if (!cache_->InSnapshot(cache_->SegmentOf(slot))) continue;
    char* row = cache_->Row(slot);
    if (RowFlags(row) & kKept) continue;
    if (RowFlags(row) & flag_) needed.push_back(slot);
    SetRowFlags(row, RowFlags(row) | kKept);
  }
  if (needed.empty()) return;
  RowCopies copies(*cache_, *tables_, needed);
  const std::lock_guard lock(kept_mutex_);
  kept_bytes_ += copies.bytes();
  kept_.push_back(std::move(copies));
}

void Snapshot::Hurry(uint32_t segment) {
  const auto found = std::find(segments_.begin(), segments_.end(), segment);
  if (found == segments_.end()) return;
  segments_.erase(found);
  segments_.push_front(segment);
}

void Snapshot::Write(std::unique_lock<std::mutex>& lock) {
  while (!kept_.empty() || !segments_.empty()) {
    if (!kept_.empty()) {
      WriteKept(lock);
    } else {
      WriteSegment(lock);
    }
    progress_->notify_all();
  }
}

void Snapshot::WriteKept(std::unique_lock<std::mutex>& lock) {
  std::vector<RowCopies> copies = std::exchange(kept_, {});
  const size_t bytes = kept_bytes_;
  lock.unlock();
  std::exception_ptr error;
  uint64_t rows = 0;
  try {
    for (const RowCopies& part : copies) {
      journal_->Add(part.all());
      rows += part.rows();
    }
  } catch (...) {
    error = std::current_exception();
  }
  copies.clear();
  lock.lock();
  kept_bytes_ -= bytes;
  rows_written_ += rows;
  if (error) std::rethrow_exception(error);
}

void Snapshot::WriteSegment(std::unique_lock<std::mutex>& lock) {
  const uint32_t segment = segments_.front();
  segments_.pop_front();
  std::vector<Slot> slots;
  cache_->EndSnapshot(segment, flag_, &slots);
  if (slots.empty()) return;
  const RowCopies copies(*cache_, *tables_, slots);
  lock.unlock();
  std::exception_ptr error;
  try {
    journal_->Add(copies.all());
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  if (error) std::rethrow_exception(error);
  rows_written_ += slots.size();
}

void Snapshot::End(bool complete) {
  std::vector<Slot> unwritten;
  for (uint32_t segment : segments_) cache_->EndSnapshot(segment, flag_, &unwritten);
  journal_->End(complete);
  segments_.clear();
  kept_.clear();
  kept_bytes_ = 0;
  active_ = false;
  progress_->notify_all();
}

}  // namespace damo
