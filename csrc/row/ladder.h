// When a row is dead: by what its header says, its id, and its table's ladder.
//
// A ladder has a position (row/position.h) for each class of update counts: 0, 1, 2 to 3, 4 to 7, ... A stored row that
// stands before that of its class is dead, and a dead row is no row. A ladder only ever rises, and never above the
// table's newest step: what is dead stays dead, so that it does not matter when, or whether, its bytes are reclaimed.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "row/position.h"
#include "row/row_header.h"

namespace damo {

constexpr size_t kCountClasses = 33;
// Sightings of ids that have no row yet (row/record.h) are a class of their own, whatever their number.
constexpr size_t kSightingClass = kCountClasses;
constexpr size_t kLadderClasses = kCountClasses + 1;

constexpr size_t CountClass(uint32_t count) { return static_cast<size_t>(std::bit_width(count)); }

class Ladder {
 public:
  Position position(size_t count_class) const { return positions_[count_class]; }
  // No row whose last step is this or later is dead: most rows need no more than one comparison.
  uint64_t highest() const { return highest_; }

  bool IsDead(RowHeader row, int64_t id) const {
    const Position position = positions_[CountClass(row.count)];
    if (row.last_step != StepOf(position)) return row.last_step < StepOf(position);
    return PartOf(position) > 0 && IdPart(id) < PartOf(position);
  }
  // Sightings of one step go together.
  bool IsDeadSighting(RowHeader sighting) const { return sighting.last_step < StepOf(positions_[kSightingClass]); }

  // A class to `position`, unless it is higher already.
  void Raise(size_t count_class, Position position) {
    if (position <= positions_[count_class]) return;
    positions_[count_class] = position;
    const Position rows = *std::max_element(positions_.begin(), positions_.begin() + kCountClasses);
    highest_ = (rows + kIdParts - 1) / kIdParts;
  }
  // Each class as high as `other`, unless it is higher already.
  void RaiseTo(const Ladder& other) {
    for (size_t c = 0; c < kLadderClasses; ++c) Raise(c, other.position(c));
  }

  bool operator==(const Ladder&) const = default;

 private:
  std::array<Position, kLadderClasses> positions_{};
  uint64_t highest_ = 0;
};

}  // namespace damo
