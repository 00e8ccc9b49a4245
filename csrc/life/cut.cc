// How a table that has too many rows gets few enough, in one pass over the cells.
#include <algorithm>
#include <array>

#include "life/table_life.h"

namespace damo {

// How many buckets of a class end early enough to go with a cut.
size_t TableLife::EndedBy(uint64_t cut, size_t count_class) const {
  const uint64_t credit = uint64_t{options_.credit} * count_class;
  return cut < credit ? 0 : histogram_.EndedBy(cut - credit);
}

// Halves the range of cuts that may be the smallest. What is gone with the lower end is not counted again.
uint64_t TableLife::Cut() noexcept {
  FoldMixedSetSteps();
  const uint64_t excess = rows() - options_.keep_rows;
  std::array<size_t, kCountClasses> counted{}, ended;
  for (size_t c = 0; c < kCountClasses; ++c) counted[c] = histogram_.Find(ladder_.step(c));
  uint64_t low = 0, gone = 0;
  uint64_t high = uint64_t{iter_} + uint64_t{options_.credit} * (kCountClasses - 1);  // all that may go
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    uint64_t more = set_steps_.Rows(low, std::min<uint64_t>(middle, iter_));
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
  // Of rows that were set in the step between the two, some may do.
  const uint32_t step = static_cast<uint32_t>(low);
  const uint32_t part = low < iter_ ? set_steps_.LeastPart(step, excess - gone) : kIdParts;
  if (part == kIdParts) return CutAt(high);
  const uint64_t cut = CutAt(low);
  const uint64_t in_part = set_steps_.TakeParts(step, part);
  ladder_.RaiseFirst(step, part);
  rows_.fetch_sub(in_part, std::memory_order_relaxed);
  return cut + in_part;
}

uint64_t TableLife::CutAt(uint64_t cut) noexcept {
  uint64_t gone = 0;
  for (size_t c = 0; c < kCountClasses; ++c) {
    const size_t from = histogram_.Find(ladder_.step(c)), to = EndedBy(cut, c);
    if (to <= from) continue;
    gone += histogram_.Take(c, from, to);
    ladder_.Raise(c, histogram_.bucket(to).first);
  }
  const uint64_t before = std::min<uint64_t>(cut, iter_);
  if (const auto last = set_steps_.LastBefore(before)) {
    gone += set_steps_.Take(0, before);
    ladder_.Raise(0, *last + 1);
  }
  rows_.fetch_sub(gone, std::memory_order_relaxed);
  return gone;
}

// ---- rows that were set, from their steps to cells
//
// A cell has rows of any of its bucket's steps: the ladder's first class stands within a bucket only if none of its
// rows are in a cell.

// Those of buckets with the fewest, if there are too many steps.
void TableLife::FoldSetSteps() noexcept {
  if (set_steps_.size() <= limits_.set_steps && !set_steps_.overflowed()) return;
  set_steps_.Sort();
  if (set_steps_.size() <= limits_.set_steps && !set_steps_.overflowed()) return;
  const size_t most = set_steps_.overflowed() ? 0 : limits_.set_steps * 3 / 4;
  set_steps_.SetFirst(iter_);
  while (set_steps_.size() > most) {
    size_t least_bucket = 0;
    uint64_t least = ~uint64_t{0};
    for (size_t i = 0; i < set_steps_.size();) {
      const size_t b = histogram_.Find(set_steps_[i].step);
      uint64_t rows = 0;
      for (; i < set_steps_.size() && histogram_.Find(set_steps_[i].step) == b; ++i) rows += set_steps_[i].rows();
      if (rows >= least) continue;
      least = rows;
      least_bucket = b;
    }
    FoldSetStepsOf(least_bucket);
  }
  set_steps_.ClearOverflow();
}

void TableLife::FoldMixedSetSteps() noexcept {
  for (size_t i = 0; i < set_steps_.size();) {
    const size_t b = histogram_.Find(set_steps_[i].step);
    if (histogram_.Rows(0, b, b + 1) == 0) {
      ++i;
    } else {
      FoldSetStepsOf(b);
      i = 0;
    }
  }
}

void TableLife::FoldSetStepsOf(size_t b) noexcept {
  const bool is_last = b + 1 == histogram_.size();
  const uint64_t rows = set_steps_.Take(histogram_.bucket(b).first, is_last ? kAfterAll : EndOf(b));
  histogram_.Cell(0, b).fetch_add(rows, std::memory_order_relaxed);  // exists: see BeginStep
  set_steps_.SetFirst(iter_);
}

}  // namespace damo
