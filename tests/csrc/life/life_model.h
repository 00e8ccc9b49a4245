// The life of a table's rows as a plain model has it: a map of rows, of which each rule looks at every one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

#include "life/life_options.h"
#include "row/ladder.h"

namespace damo::testing {

class LifeModel {
 public:
  explicit LifeModel(const LifeOptions& options) : options_(options), expired(options.idle.size()) {}

  std::map<int64_t, RowHeader> rows, sightings;
  uint32_t iter = 0;

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

  bool GoesWith(uint64_t cut, uint32_t part, int64_t id, RowHeader row) const {
    const uint64_t place = row.last_step + uint64_t{options_.credit} * CountClass(row.count);
    return row.last_step < iter && (place < cut || (place == cut && row.count == 0 && IdPart(id) < part));
  }

  // Tries one cut after the other.
  uint64_t Cut() {
    const uint64_t last = iter + uint64_t{options_.credit} * kCountClasses;
    uint64_t before = rows.size();
    for (uint64_t cut = 0;; ++cut) {
      std::vector<uint64_t> parts(kIdParts);
      uint64_t gone = 0;
      for (const auto& [id, row] : rows) {
        gone += GoesWith(cut, 0, id, row) ? 1 : 0;
        if (row.count == 0 && row.last_step == cut && row.last_step < iter) ++parts[IdPart(id)];
      }
      uint32_t part = 0;
      for (; part < kIdParts && before - gone > options_.keep_rows; ++part) gone += parts[part];
      if (before - gone > options_.keep_rows && cut < last) continue;
      if (part == kIdParts) part = 0, ++cut;  // all of the step
      std::erase_if(rows, [&](const auto& row) { return GoesWith(cut, part, row.first, row.second); });
      return before - rows.size();
    }
  }

  LifeOptions options_;
  double time_ = 0, clock_ = 0;
  std::map<uint32_t, double> times_{{0, 0.0}};

 public:
  std::vector<uint64_t> expired;
  uint64_t cut = 0;
};

}  // namespace damo::testing
