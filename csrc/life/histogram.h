// How many rows live, in cells: by class of update count (row/ladder.h), and by bucket of positions (row/position.h).
//
// Buckets are runs of consecutive positions that begin at 0; the last has no end yet. Nothing but the edges between
// them is known of the steps of a bucket's rows. Most have whole steps; one that brings many rows is divided.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "row/ladder.h"

namespace damo {

using Counter = std::atomic<uint64_t>;

struct Bucket {
  Position first;
  double time;  // of the last update before it: rows of earlier buckets have been idle at least since
  bool operator==(const Bucket&) const = default;
};

class Histogram {
 public:
  // REQUIRES: first positions ascend from 0; `most` is 2 to 65,535.
  Histogram(std::vector<Bucket> buckets, size_t most);

  size_t size() const { return buckets_.size(); }
  size_t most() const { return most_; }
  const Bucket& bucket(size_t b) const { return buckets_[b]; }
  size_t memory_bytes() const;

  // The bucket of a row.
  size_t Find(uint32_t step, int64_t id) const {
    if (step > last_step_) return buckets_.size() - 1;
    if (step < recent_from_) return FindOld(PositionOf(step, IdPart(id)));
    const Span& span = recent_[step % kRecent];
    return span.more == 0 ? span.first : FindIn(span, PositionOf(step, IdPart(id)));
  }
  // The bucket of a position: so many end there or earlier.
  size_t Find(Position position) const {
    const uint32_t step = StepOf(position);
    if (step > last_step_) return buckets_.size() - 1;
    return step < recent_from_ ? FindOld(position) : FindIn(recent_[step % kRecent], position);
  }

  // Thread-safe. Allocates only for the first row of a class, unless PrepareClasses has.
  Counter& Cell(size_t count_class, size_t b) {
    Counter* cells = cells_[count_class].load(std::memory_order_acquire);
    return (cells != nullptr ? cells : MakeClass(count_class))[b];
  }
  bool Has(size_t count_class) const { return cells_[count_class].load(std::memory_order_relaxed) != nullptr; }
  // Of the buckets `from` up to `to`.
  uint64_t Rows(size_t count_class, size_t from, size_t to) const;
  // The same, and has none there afterwards.
  uint64_t Take(size_t count_class, size_t from, size_t to) noexcept;

  // Before each update: allocates what its rows take, whose counts rise by 1, and its sightings.
  void PrepareClasses(bool sightings);
  // Allocates what so many buckets take.
  void Reserve(size_t buckets);
  // Ends the last bucket before `step`, and has as many as `parts` begin within it. `before`: the time of the last
  // update; `time`: that of this one. REQUIRES: there is room; `step` is above that of the last first; `parts` is a
  // power of two up to kIdParts.
  void Open(uint32_t step, size_t parts, double before, double time) noexcept;
  // Has the step begin at another time.
  void Retime(uint32_t step, double time) noexcept;

  // What lives of the positions of a bucket.
  struct Contents {
    uint64_t rows = 0, sightings = 0;
    bool empty() const { return rows == 0 && sightings == 0; }
  };
  // Two neighbours that could be one. What is in the first would go with the second.
  struct Neighbours {
    Bucket first, end;  // begin of the first, and of what follows the second
    Contents earlier, later;
  };
  using Cost = std::function<double(const Neighbours&)>;  // at least 0
  // Merges those with the lowest costs, until at most `most` are left, the last of which stays as it is. Does nothing,
  // and returns false, if that takes costs above `dearest`, and when it throws.
  bool Merge(size_t most, const std::vector<Contents>& contents, const Cost& cost, double dearest);

 private:
  static constexpr size_t kRecent = 2048;

  // Of a step: the bucket in which it begins, and how many more begin within it.
  struct Span {
    uint16_t first, more;
  };
  struct Cells {
    Cells() = default;
    ~Cells();
    std::atomic<Counter*>& operator[](size_t count_class) { return of_class[count_class]; }
    const std::atomic<Counter*>& operator[](size_t count_class) const { return of_class[count_class]; }
    std::array<std::atomic<Counter*>, kLadderClasses> of_class{};
  };

  size_t FindOld(Position position) const;
  size_t FindIn(const Span& span, Position position) const {
    // Exact as long as none of them have been merged.
    size_t b = span.first + PartOf(position) * (size_t{span.more} + 1) / kIdParts;
    while (buckets_[b].first > position) --b;
    while (b < size_t{span.first} + span.more && buckets_[b + 1].first <= position) ++b;
    return b;
  }
  Counter* MakeCells(size_t count_class);
  Counter* MakeClass(size_t count_class);
  void NoteRecent() noexcept;
  // The first bucket that has positions of the last step of which any began.
  size_t NewestFrom() const { return recent_[last_step_ % kRecent].first; }
  std::vector<double> CostsOfMergers(const std::vector<Contents>& contents, const Cost& cost) const;
  // Of each bucket which it becomes, if no merger may cost more than `limit`.
  std::vector<uint16_t> PlanMerge(size_t most, const std::vector<Contents>& contents, const Cost& cost,
                                  double limit) const;
  void Apply(const std::vector<uint16_t>& becomes) noexcept;

  const size_t most_;
  size_t capacity_;
  std::vector<Bucket> buckets_;
  Cells cells_;  // each as many as capacity_; those behind the last bucket are 0

  uint32_t last_step_ = 0;    // in which the last bucket begins
  uint32_t recent_from_ = 0;  // since then, up to last_step_, steps have their buckets here
  std::array<Span, kRecent> recent_{};
};

}  // namespace damo
