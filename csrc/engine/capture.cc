#include "engine/capture.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace damo {

void Capture::Begin() {
  active_ = true;
  flag_ = journal_->Begin();
  for (uint32_t segment : cache_.SegmentsInUse()) {
    if (cache_.BeginCapture(segment, flag_)) segments_.push_back(segment);
  }
}

void Capture::Keep(std::span<const Slot> slots) {
  std::vector<Slot> needed;
  for (Slot slot : slots) {
    const uint8_t flags = RowFlags(cache_.Row(slot));
    if (cache_.InCapture(cache_.SegmentOf(slot)) && (flags & flag_) && !(flags & kKept)) needed.push_back(slot);
  }
  if (!needed.empty()) {
    RowCopies copies(*rows_, needed);
    const size_t bytes = copies.bytes();
    const MutexLock lock(&kept_mutex_);
    kept_.push_back(std::move(copies));
    kept_bytes_ += bytes;
  }
  for (Slot slot : slots) {
    char* row = cache_.Row(slot);
    if (cache_.InCapture(cache_.SegmentOf(slot))) SetRowFlags(row, RowFlags(row) | kKept);
  }
}

void Capture::AwaitRoom(size_t bytes) {
  const auto has_room = [&]() DAMO_REQUIRES(store_mutex) { return !keeps() || kept_bytes_ + bytes <= reserve_bytes_; };
  rows_->progress.Wait(rows_->mutex(), has_room);
}

void Capture::AwaitEnd() {
  rows_->progress.Wait(rows_->mutex(), [&]() DAMO_REQUIRES(store_mutex) { return !active_; });
}

void Capture::Hurry(uint32_t segment) {
  const auto found = std::find(segments_.begin(), segments_.end(), segment);
  if (found == segments_.end()) return;
  segments_.erase(found);
  segments_.push_front(segment);
}

void Capture::Write() {
  while (!kept_.empty() || !segments_.empty()) {
    if (!kept_.empty()) {
      WriteKept();
    } else {
      WriteSegment();
    }
    rows_->progress.NotifyAll();
  }
}

void Capture::WriteKept() {
  std::vector<RowCopies> copies = std::exchange(kept_, {});
  const size_t bytes = kept_bytes_;
  std::exception_ptr error;
  uint64_t rows = 0;
  {
    const MutexUnlock unlocked(rows_->mutex());
    try {
      for (const RowCopies& part : copies) {
        journal_->Add(part.all());
        rows += part.rows();
      }
    } catch (...) {
      error = std::current_exception();
    }
    copies.clear();
  }
  kept_bytes_ -= bytes;
  rows_written_ += rows;
  if (error) std::rethrow_exception(error);
}

void Capture::WriteSegment() {
  const uint32_t segment = segments_.front();
  segments_.pop_front();
  std::vector<Slot> slots;
  cache_.EndCapture(segment, flag_, &slots);
  if (slots.empty()) return;
  const RowCopies copies(*rows_, slots);
  {
    const MutexUnlock unlocked(rows_->mutex());
    journal_->Add(copies.all());
  }
  rows_written_ += slots.size();
}

void Capture::End(bool complete) {
  std::vector<Slot> unwritten;
  for (uint32_t segment : segments_) cache_.EndCapture(segment, flag_, &unwritten);
  journal_->End(complete);
  segments_.clear();
  kept_.clear();
  kept_bytes_ = 0;
  active_ = false;
  rows_->progress.NotifyAll();
}

}  // namespace damo
