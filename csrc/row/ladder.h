// When a row is dead: by what its header says, and its table's ladder.
//
// A ladder has a step for each class of update counts: 0, 1, 2 to 3, 4 to 7, ... A stored row whose last step is below
// that of its class is dead, and a dead row is no row. A ladder only ever rises, and never above the table's iteration:
// what is dead stays dead, so that it does not matter when, or whether, its bytes are reclaimed.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "row/row_header.h"

namespace damo {

constexpr size_t kCountClasses = 33;
// Sightings of ids that have no row yet (row/record.h) are a class of their own, whatever their number.
constexpr size_t kSightingClass = kCountClasses;
constexpr size_t kLadderClasses = kCountClasses + 1;

constexpr size_t CountClass(uint32_t count) { return static_cast<size_t>(std::bit_width(count)); }

// One of 256 parts that ids fall into, each with about as many: what divides rows that came in one step.
constexpr uint32_t kIdParts = 256;
constexpr uint32_t IdPart(int64_t id) {
  uint64_t hash = static_cast<uint64_t>(id);
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((hash ^ (hash >> 31)) >> 56);
}

class Ladder {
 public:
  uint32_t step(size_t count_class) const { return steps_[count_class]; }
  // Rows that were set and never updated may be many of one step: of those of step(0), the ids whose part is below this
  // are dead, too. It is 0 where step(0) is the table's iteration.
  uint32_t part() const { return part_; }
  // No row whose last step is this or later is dead, but for `part`: most rows need no more than one comparison.
  uint32_t highest() const { return highest_; }

  bool IsDead(RowHeader row, int64_t id) const {
    const size_t count_class = CountClass(row.count);
    if (row.last_step != steps_[count_class]) return row.last_step < steps_[count_class];
    return count_class == 0 && part_ > 0 && IdPart(id) < part_;
  }
  bool IsDeadSighting(RowHeader sighting) const { return sighting.last_step < steps_[kSightingClass]; }

  // Each class to `step`, unless it is higher already.
  void Raise(size_t count_class, uint32_t step) {
    if (step <= steps_[count_class]) return;
    steps_[count_class] = step;
    if (count_class == 0) part_ = 0;
    Update();
  }
  // The first class to `part` of `step`, unless it is higher already.
  void RaiseFirst(uint32_t step, uint32_t part) {
    Raise(0, step);
    if (step == steps_[0]) part_ = std::max(part_, part);
    Update();
  }

  bool operator==(const Ladder&) const = default;

 private:
  // Above a step whose rows are dead in part.
  void Update() {
    const uint32_t rows = *std::max_element(steps_.begin(), steps_.begin() + kCountClasses);
    highest_ = std::max(rows, part_ > 0 ? steps_[0] + 1 : 0);
  }

  std::array<uint32_t, kLadderClasses> steps_{};
  uint32_t part_ = 0;
  uint32_t highest_ = 0;
};

}  // namespace damo
