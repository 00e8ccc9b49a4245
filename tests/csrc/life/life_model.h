// The life of a table's rows as a plain model has it: a map of rows, of which each rule looks at every one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "life/life_options.h"
#include "row/ladder.h"

namespace damo::testing {

class LifeModel {
 public:
  explicit LifeModel(const LifeOptions& options) : expired(options.idle.size()), options_(options) {}

  std::map<int64_t, RowHeader> rows, sightings;
  uint32_t iter = 0;
  std::vector<uint64_t> expired;
  uint64_t cut = 0;

  const LifeOptions& options() const { return options_; }
  void SetOptions(const LifeOptions& options) {
    options_ = options;
    expired.assign(options.idle.size(), 0);
  }

  void BeginStep(uint32_t step, double clock) {
    double least = std::numeric_limits<double>::infinity();
    for (const IdleRule& rule : options_.idle) {
      if (rule.steps == 0) least = std::min(least, rule.seconds);
    }
    if (clock > clock_) time_ += std::min(clock - clock_, least / 2);
    if (clock > clock_ || clock_ - clock > least / 2) clock_ = clock;
    iter = step;
    times_[step] = time_;
  }

  void EndStep() {
    for (size_t i = 0; i < options_.idle.size(); ++i) expired[i] += Expire(options_.idle[i]);
    if (rows.size() > options_.max_rows) cut += Cut();
    if (options_.within_steps == 0) return;
    std::erase_if(sightings,
                  [&](const auto& s) { return s.second.last_step + uint64_t{options_.within_steps} < iter; });
  }

  // Seconds that a row has been idle.
  double IdleTime(RowHeader row) const { return time_ - times_.at(row.last_step); }

 private:
  // By steps, the oldest first.
  uint64_t Expire(const IdleRule& rule) {
    uint64_t gone = 0;
    std::map<uint32_t, std::vector<int64_t>> steps;
    for (const auto& [id, row] : rows) {
      if (rule.below_count == 0 || row.count < rule.below_count) steps[row.last_step].push_back(id);
    }
    for (const auto& [step, ids] : steps) {
      const bool is_due =
          rule.steps > 0 ? step + uint64_t{rule.steps} < iter : step < iter && time_ - times_.at(step) >= rule.seconds;
      if (!is_due || (options_.min_rows > 0 && rows.size() < options_.min_rows + ids.size())) break;
      for (int64_t id : ids) rows.erase(id);
      gone += ids.size();
    }
    return gone;
  }

  uint64_t PlaceOf(RowHeader row) const { return row.last_step + uint64_t{options_.credit} * CountClass(row.count); }
  bool GoesWith(uint64_t cut, uint32_t part, int64_t id, RowHeader row) const {
    const uint64_t place = PlaceOf(row);
    return row.last_step < iter && (place < cut || (place == cut && row.count == 0 && IdPart(id) < part));
  }

  // Tries one cut after the other: at the place of each row.
  uint64_t Cut() {
    const uint64_t before = rows.size();
    std::set<uint64_t> places;
    for (const auto& [id, row] : rows) places.insert(PlaceOf(row));
    for (uint64_t place : places) {
      if (CutAt(place, false) || CutAt(place, true)) return before - rows.size();
    }
    std::erase_if(rows, [&](const auto& row) { return row.second.last_step < iter; });
    return before - rows.size();
  }

  // Whether it does to have go what is before a place, and of rows there, that were set, some, or, if `all`, all rows.
  bool CutAt(uint64_t place, bool all) {
    for (uint32_t part = all ? kIdParts : 0; part < kIdParts + (all ? 1 : 0); ++part) {
      const auto goes = [&](const auto& row) {
        return GoesWith(place + (all ? 1 : 0), all ? 0 : part, row.first, row.second);
      };
      if (rows.size() - static_cast<size_t>(std::count_if(rows.begin(), rows.end(), goes)) > options_.keep_rows)
        continue;
      std::erase_if(rows, goes);
      return true;
    }
    return false;
  }

  LifeOptions options_;
  double time_ = 0, clock_ = 0;
  std::map<uint32_t, double> times_{{0, 0.0}};
};

}  // namespace damo::testing
