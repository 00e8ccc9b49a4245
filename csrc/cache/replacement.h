// Which rows stay in memory: S3-FIFO (Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023), whose
// queues are of segments of rows here.
//
// A row arrives in the queue `probation`; one that is worth keeping moves to the queue `main`. Rows are added to a
// queue's newest segment, the open one, and an eviction takes its oldest: rows worth keeping are copied to main, the
// rest are dropped. Segments of probation go first, down to its share of all. A filter remembers rows that were dropped
// from probation (the paper's ghost queue): those arrive in main when they come back.
//
// A row is worth keeping if it was used again lately (in probation once; in main twice, where each eviction it survives
// takes back one use), or if it is updated frequently: the count in a row, which comes back with it from disk, tells
// that from its first moment in memory. How frequent is enough is set so that each eviction from main frees some of a
// segment.
//
// The policy decides; the cache (row_cache.h) asks it, and moves the bytes. What the policy notes about a row is the
// row's touch byte, what it notes about a segment is where that stands in the queues.
//
// Nothing but the constructor and what returns a vector allocates memory: an eviction, once begun, cannot fail.
//
// Not thread-safe, but for Touch and Prefetch, which may run concurrently with each other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "row/row.h"

namespace damo {

// Rows that were dropped from probation, by the tags of their keys (hash_index.h). It forgets a row when another takes
// its place, and now and then takes one row for another.
class GhostFilter {
 public:
  // Without room for any: REQUIRES no call but for assignment.
  GhostFilter() = default;
  // Room for `rows`, and none of them there.
  explicit GhostFilter(size_t rows) : fingerprints_(rows + 1, 0) {}

  static size_t BytesFor(size_t rows) { return rows * sizeof(uint16_t); }

  void Prefetch(uint32_t tag) const { __builtin_prefetch(&fingerprints_[Place(tag)], 1); }
  void Remember(uint32_t tag) { fingerprints_[Place(tag)] = Fingerprint(tag); }
  // Whether the row was remembered; it no longer is.
  bool Forget(uint32_t tag) {
    uint16_t& fingerprint = fingerprints_[Place(tag)];
    if (fingerprint != Fingerprint(tag)) return false;
    fingerprint = 0;
    return true;
  }
  size_t memory_bytes() const { return fingerprints_.size() * sizeof(uint16_t); }

 private:
  static uint16_t Fingerprint(uint32_t tag) { return static_cast<uint16_t>(tag | 1); }  // 0 is nobody's
  size_t Place(uint32_t tag) const { return (uint64_t{tag} * fingerprints_.size()) >> 32; }

  std::vector<uint16_t> fingerprints_;
};

class Replacement {
 public:
  enum class Queue : uint8_t { kProbation, kMain };
  static constexpr uint32_t kNoSegment = UINT32_MAX;
  static constexpr uint64_t kNoArrival = UINT64_MAX;

  // For segments with the numbers below `segments`, none of them in a queue yet.
  explicit Replacement(size_t segments);

  // REQUIRES: SetGhosts before the first row.
  void SetGhosts(GhostFilter ghosts) { ghosts_ = std::move(ghosts); }
  const GhostFilter& ghosts() const { return ghosts_; }
  // Takes over how frequent is enough, and what the touch bytes of rows mean.
  void GoOnAs(const Replacement& other) {
    operation_ = other.operation_;
    frequent_ = other.frequent_;
  }

  // ---- uses

  // Until the next call, several touches of a row are one use.
  void BeginOperation() { operation_ = static_cast<uint8_t>((operation_ + 1) % kOperations); }

  // Notes a use. Counts one use per operation, at most 3 in all. Returns whether it is the first of an awaited row.
  bool Touch(char* row) const {
    std::atomic_ref<uint8_t> touch(*RowTouch(row));
    const uint8_t old = touch.load(std::memory_order_relaxed);
    if (old >> kUseBits == operation_) return false;
    const bool awaited = old >> kUseBits == kAwaited;
    const int uses = awaited ? 0 : std::min(Uses(old) + 1, kMostUses);
    touch.store(static_cast<uint8_t>(operation_ << kUseBits | uses), std::memory_order_relaxed);
    return awaited;
  }

  // ---- arrivals

  // The queue for a row that is added.
  Queue Admit(uint32_t tag) { return ghosts_.Forget(tag) ? Queue::kMain : Queue::kProbation; }
  // A row that was added is used by the operation under way, or, with `awaited`, for the first time by one to come.
  void NoteArrival(char* row, bool awaited) const {
    *RowTouch(row) = static_cast<uint8_t>((awaited ? kAwaited : operation_) << kUseBits);
  }

  // The segment that rows are added to; kNoSegment while the queue is empty.
  uint32_t open_segment(Queue queue) const { return Of(queue).empty() ? kNoSegment : Of(queue).back(); }
  // `segment`, in no queue so far, becomes the one that rows are added to.
  void Open(Queue queue, uint32_t segment);
  // Of a segment that is in one.
  Queue queue(uint32_t segment) const { return places_[segment].queue; }
  // Probation's, then main's, each from the oldest.
  std::vector<uint32_t> SegmentsInUse() const;

  // Where in the order of arrivals the next row will stand.
  uint64_t arrival() const { return probation_.empty() ? arrivals_ + 1 : places_[probation_.back()].arrival; }
  // From which arrival on rows in probation are awaited: they are evicted last of all. kNoArrival for none.
  void KeepArrivals(uint64_t from) { awaited_from_ = from; }

  // ---- eviction

  // The segments that should be evicted next, in order, at most `n`, and none that is open.
  std::vector<uint32_t> NextVictims(size_t n) const;
  // How many segments NextVictims has before it comes to rows that are awaited.
  size_t spare_segments() const;

  // Whether an eviction of `segment` now would keep the row. `iter`: how many updates its table has had.
  bool WouldKeep(const char* row, const RowLayout& layout, uint32_t iter, uint32_t segment) const {
    return WorthKeeping(row, layout, iter, places_[segment].queue);
  }

  // The eviction of a segment: Begin; for each of its rows Keeps, unless it must stay anyway, then Moved or Dropped;
  // End.
  struct Eviction {
    Queue from;
    size_t rows = 0;
    size_t kept = 0;
  };
  // Takes the segment from its queue.
  Eviction Begin(uint32_t segment);
  bool Keeps(const char* row, const RowLayout& layout, uint32_t iter, Eviction* eviction) const {
    const bool keeps = WorthKeeping(row, layout, iter, eviction->from);
    ++eviction->rows;
    eviction->kept += keeps ? 1 : 0;
    return keeps;
  }
  // `copy`: of the row, in main.
  void Moved(char* copy, const Eviction& eviction) const {
    uint8_t* touch = RowTouch(copy);
    const int uses = eviction.from == Queue::kMain ? std::max(Uses(*touch) - 1, 0) : 0;
    *touch = static_cast<uint8_t>((*touch & ~kMostUses) | uses);
  }
  void Dropped(const char* row, uint32_t tag, const Eviction& eviction) {
    if (eviction.from == Queue::kProbation && !(RowFlags(row) & kAbsent)) ghosts_.Remember(tag);
  }
  void End(const Eviction& eviction);

 private:
  using Segments = std::vector<uint32_t>;  // oldest first; the last one is open. Has room for all segments
  struct Place {
    Queue queue = Queue::kProbation;
    uint64_t arrival = 0;
  };

  // A touch byte: the uses in the lower bits; above them the operation that used the row last, or kAwaited before the
  // first.
  static constexpr int kUseBits = 2;
  static constexpr int kMostUses = 3;
  static constexpr int kOperations = 63;
  static constexpr uint8_t kAwaited = 63;
  static int Uses(uint8_t touch) { return touch & kMostUses; }

  bool WorthKeeping(const char* row, const RowLayout& layout, uint32_t iter, Queue queue) const {
    return Uses(RowTouch(row)) >= (queue == Queue::kMain ? 2 : 1) || Frequent(row, layout, iter);
  }
  // By its share of the table's updates so far, unless it has had none for four times as long as that lets expect.
  bool Frequent(const char* row, const RowLayout& layout, uint32_t iter) const {
    const auto [last_step, count] = PayloadHeader(row + kPayloadOffset, layout);
    const double rate = static_cast<double>(count) / std::max(iter, 1u);
    return rate >= frequent_ && rate * (static_cast<double>(iter) - last_step) < 4;
  }

  Segments& Of(Queue queue) { return queue == Queue::kMain ? main_ : probation_; }
  const Segments& Of(Queue queue) const { return queue == Queue::kMain ? main_ : probation_; }
  size_t awaited_segments() const;

  uint8_t operation_ = 0;
  double frequent_ = 1e-4;  // updates per step from which on a row is worth a place in main
  uint64_t arrivals_ = 0;   // of segments
  uint64_t awaited_from_ = kNoArrival;
  Segments probation_;
  Segments main_;
  std::vector<Place> places_;  // by segment
  GhostFilter ghosts_;
};

}  // namespace damo
