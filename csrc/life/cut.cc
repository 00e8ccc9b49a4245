// How a table that has too many rows gets few enough, in one pass over the cells.
#include <algorithm>
#include <array>

#include "life/table_life.h"

namespace damo {

// How many buckets of a class end early enough to go with a cut.
size_t TableLife::EndedBy(Position cut, size_t count_class) const {
  const Position credit = PositionOf(uint64_t{options_.credit} * count_class);
  return cut < credit ? 0 : histogram_.Find(std::min(cut - credit, PositionOf(iter_)));
}

// Halves the range of cuts that may be the smallest. What is gone with the lower end is not counted again.
uint64_t TableLife::Cut() noexcept {
  FoldMixedSetSteps();
  const uint64_t excess = rows() - options_.keep_rows;
  const Position newest = PositionOf(iter_);
  std::array<size_t, kCountClasses> counted{}, ended;
  for (size_t c = 0; c < kCountClasses; ++c) counted[c] = histogram_.Find(ladder_.position(c));
  uint64_t gone = 0;
  Position low = 0;
  Position high = newest + PositionOf(uint64_t{options_.credit} * (kCountClasses - 1));  // all that may go
  while (high - low > 1) {
    const Position middle = low + (high - low) / 2;
    uint64_t more = set_steps_.Rows(std::min(low, newest), std::min(middle, newest));
    for (size_t c = 0; c < kCountClasses; ++c) {
      ended[c] = std::max(counted[c], EndedBy(middle, c));
      more += histogram_.Rows(c, counted[c], ended[c]);
    }
    if (gone + more >= excess) {
      high = middle;
    } else {
      low = middle;
      gone += more;
      counted = ended;
    }
  }
  return CutAt(high);
}

uint64_t TableLife::CutAt(Position cut) noexcept {
  uint64_t gone = 0;
  for (size_t c = 0; c < kCountClasses; ++c) {
    const size_t from = histogram_.Find(ladder_.position(c)), to = EndedBy(cut, c);
    if (to <= from) continue;
    gone += histogram_.Take(c, from, to);
    ladder_.Raise(c, histogram_.bucket(to).first);
  }
  const Position before = std::min(cut, PositionOf(iter_));
  if (const uint64_t set = set_steps_.Take(0, before)) {
    gone += set;
    const size_t b = EndedBy(cut, 0);
    ladder_.Raise(0, histogram_.Rows(0, b, b + 1) == 0 ? before : histogram_.bucket(b).first);
  }
  rows_.fetch_sub(gone, std::memory_order_relaxed);
  return gone;
}

}  // namespace damo
