#include "engine/capture.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <utility>

namespace damo {

void Capture::Begin() {
  const std::vector<uint32_t> in_use = cache_.SegmentsInUse();
  segments_.reserve(in_use.size());
  active_ = true;
  flag_ = journal_->Begin();
  std::copy_if(in_use.rbegin(), in_use.rend(), std::back_inserter(segments_),
               [&](uint32_t segment) DAMO_REQUIRES(store_mutex) { return cache_.BeginCapture(segment, flag_); });
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
  std::rotate(found, found + 1, segments_.end());
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
  const uint32_t segment = segments_.back();
  std::vector<Slot> slots;
  cache_.CollectCaptured(segment, flag_, &slots);
  const RowCopies copies(*rows_, slots);
  segments_.pop_back();
  cache_.EndCapture(segment, flag_);
  if (slots.empty()) return;
  {
    const MutexUnlock unlocked(rows_->mutex());
    journal_->Add(copies.all());
  }
  rows_written_ += slots.size();
}

void Capture::End(bool complete) {
  for (uint32_t segment : segments_) cache_.EndCapture(segment, flag_);
  journal_->End(complete);
  segments_.clear();
  kept_.clear();
  kept_bytes_ = 0;
  active_ = false;
  rows_->progress.NotifyAll();
}

}  // namespace damo
