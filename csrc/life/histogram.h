// How many rows live, in cells: by class of update count (row/ladder.h), and by bucket of last steps.
//
// Buckets are runs of consecutive steps that begin at 0; the last has no end yet. Nothing but the edges between them is
// known of the steps of a bucket's rows.
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
  uint32_t first;  // step
  double time;     // of the last update before it: rows of earlier buckets have been idle at least since
  bool operator==(const Bucket&) const = default;
};

class Histogram {
 public:
  // REQUIRES: first steps ascend from 0; `most` is 2 to 65,535.
  Histogram(std::vector<Bucket> buckets, size_t most);

  size_t size() const { return buckets_.size(); }
  bool is_full() const { return size() >= most_; }
  const Bucket& bucket(size_t b) const { return buckets_[b]; }
  size_t memory_bytes() const;

  // The bucket of a step.
  size_t Find(uint32_t step) const {
    if (step >= last_first_) return buckets_.size() - 1;
    return step >= recent_from_ ? recent_[step % kRecent] : FindOld(step);
  }
  // Of steps so far away that they are none, too: how many buckets end at `step` or earlier.
  size_t EndedBy(uint64_t step) const { return step >= last_first_ ? size() - 1 : Find(static_cast<uint32_t>(step)); }

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
  // Ends the last bucket. REQUIRES: there is room; `step` is above the last first.
  void Open(uint32_t step, double time) noexcept;

  // What lives of the steps of a bucket.
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
  static constexpr size_t kRecent = 4096;

  struct Cells {
    Cells() = default;
    ~Cells();
    std::atomic<Counter*>& operator[](size_t count_class) { return of_class[count_class]; }
    const std::atomic<Counter*>& operator[](size_t count_class) const { return of_class[count_class]; }
    std::array<std::atomic<Counter*>, kLadderClasses> of_class{};
  };

  size_t FindOld(uint32_t step) const;
  Counter* MakeCells(size_t count_class);
  Counter* MakeClass(size_t count_class);
  void NoteRecent() noexcept;
  // Of each bucket which it becomes, if no merger may cost more than `limit`.
  std::vector<uint16_t> PlanMerge(size_t most, const std::vector<Contents>& contents, const Cost& cost,
                                  double limit) const;
  void Apply(const std::vector<uint16_t>& becomes) noexcept;

  const size_t most_;
  size_t capacity_;
  std::vector<Bucket> buckets_;
  Cells cells_;  // each as many as capacity_; those behind the last bucket are 0

  uint32_t last_first_ = 0;   // of the last bucket
  uint32_t recent_from_ = 0;  // since then, up to last_first_, steps have their buckets here
  std::array<uint16_t, kRecent> recent_{};
};

}  // namespace damo
