// How rows that were set come from their steps to cells.
//
// A cell has rows of any of its bucket's positions: the ladder's first class stands within a bucket only if none of its
// rows are in a cell.
#include "life/table_life.h"

namespace damo {

// Where its rows are in cells if they are.
TableLife::Buckets TableLife::BucketsOf(const SetSteps::Step& step) const {
  const Position first = PositionOf(step.step);
  return {histogram_.Find(first), histogram_.Find(first + kIdParts - 1) + 1};
}

// Those that share buckets with the fewest rows, if there are too many steps.
void TableLife::FoldSetSteps() noexcept {
  if (set_steps_.size() <= limits_.set_steps && !set_steps_.overflowed()) return;
  set_steps_.Sort();
  if (set_steps_.size() <= limits_.set_steps && !set_steps_.overflowed()) return;
  const size_t most = set_steps_.overflowed() ? 0 : limits_.set_steps * 3 / 4;
  set_steps_.SetFirst(iter_);
  while (set_steps_.size() > most) {
    size_t least_begin = 0, least_end = 0;
    uint64_t least = ~uint64_t{0};
    for (size_t begin = 0, end; begin < set_steps_.size(); begin = end) {
      uint64_t rows = set_steps_[begin].rows();
      for (end = begin + 1; end < set_steps_.size(); ++end) {
        if (BucketsOf(set_steps_[end]).begin >= BucketsOf(set_steps_[end - 1]).end) break;
        rows += set_steps_[end].rows();
      }
      if (rows >= least) continue;
      least = rows;
      least_begin = begin;
      least_end = end;
    }
    Fold(least_begin, least_end);
  }
  set_steps_.ClearOverflow();
}

// Those in whose buckets cells have rows already.
void TableLife::FoldMixedSetSteps() noexcept {
  for (size_t i = 0; i < set_steps_.size();) {
    const Buckets buckets = BucketsOf(set_steps_[i]);
    if (histogram_.Rows(0, buckets.begin, buckets.end) == 0) {
      ++i;
    } else {
      Fold(i, i + 1);
      i = 0;
    }
  }
}

// The cells exist: see BeginStep.
void TableLife::Fold(size_t begin, size_t end) noexcept {
  for (size_t i = begin; i < end; ++i) {
    const SetSteps::Step& step = set_steps_[i];
    for (uint32_t part = 0; part < kIdParts; ++part) {
      const uint64_t rows = step.parts[part].exchange(0, std::memory_order_relaxed);
      if (rows == 0) continue;
      histogram_.Cell(0, histogram_.Find(PositionOf(step.step, part))).fetch_add(rows, std::memory_order_relaxed);
    }
  }
  set_steps_.Sort();
  set_steps_.SetFirst(iter_);
}

}  // namespace damo
