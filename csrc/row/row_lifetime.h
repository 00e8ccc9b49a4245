// Which rows of a table are of use, by what their headers say: those that an export takes.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>

#include "row/row.h"

namespace damo {

// Rows with at least so many updates, the last of them at this iteration or later, and of those the `top_n` with the
// most; of rows with as many those that come first.
struct RowFilter {
  uint64_t min_count = 0;
  uint64_t min_last_step = 0;
  std::optional<uint64_t> top_n;

  bool any() const { return min_count > 0 || min_last_step > 0 || top_n.has_value(); }
};

// Chooses in two passes over the same rows in the same order: first Count for each, then, after Choose, Takes for each.
class RowSelection {
 public:
  explicit RowSelection(const RowFilter& filter) : filter_(filter) {}

  void Count(RowHeader row) {
    if (Passes(row)) ++rows_with_count_[row.count];
  }

  // How many rows Takes will take.
  uint64_t Choose() {
    const uint64_t most = filter_.top_n.value_or(std::numeric_limits<uint64_t>::max());
    uint64_t above = 0;
    for (auto entry = rows_with_count_.rbegin(); entry != rows_with_count_.rend(); ++entry) {
      least_count_ = entry->first;
      if (entry->second >= most - above) {
        ties_ = most - above;
        return most;
      }
      above += entry->second;
    }
    ties_ = above;
    return above;
  }

  bool Takes(RowHeader row) {
    if (!Passes(row) || row.count < least_count_) return false;
    if (row.count > least_count_) return true;
    if (ties_ == 0) return false;
    --ties_;
    return true;
  }

 private:
  bool Passes(RowHeader row) const { return row.count >= filter_.min_count && row.last_step >= filter_.min_last_step; }

  const RowFilter filter_;
  // Small: n different counts take n^2 / 2 updates.
  std::map<uint32_t, uint64_t> rows_with_count_;
  uint32_t least_count_ = 0;
  uint64_t ties_ = 0;  // rows of the least count that are still to be taken
};

}  // namespace damo
