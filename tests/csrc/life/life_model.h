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

  void BeginStep(uint32_t step, size_t ids, double clock) {
    PassTime(clock);
    parts_.emplace(step, PartsFor(ids));
    begun_[step] = gaps_.size();
    iter = step;
  }
  // An update that fails.
  void BeginInVain(uint32_t step, size_t ids) { parts_.emplace(step, PartsFor(ids)); }
  void PassTime(double clock) {
    double least = std::numeric_limits<double>::infinity();
    for (const IdleRule& rule : options_.idle) {
      if (rule.steps == 0) least = std::min(least, rule.seconds);
    }
    const double gap = std::max(clock - clock_, 0.0);
    if (gap > 0) gaps_.push_back({gap, gap > least / 2});
    if (clock > clock_ || clock_ - clock > least / 2) clock_ = clock;
  }

  void EndStep() {
    for (size_t i = 0; i < options_.idle.size(); ++i) expired[i] += Expire(options_.idle[i]);
    if (rows.size() > options_.max_rows) cut += Cut();
    if (options_.within_steps == 0) return;
    std::erase_if(sightings,
                  [&](const auto& s) { return s.second.last_step + uint64_t{options_.within_steps} < iter; });
  }

  // Seconds that a row has been idle by a rule: of each gap at most half of the rule's, if some rule had told it for a
  // leap then.
  double IdleTime(RowHeader row, double rule) const {
    double idle = 0;
    for (size_t i = begun_.at(row.last_step); i < gaps_.size(); ++i) {
      idle += gaps_[i].is_leap ? std::min(gaps_[i].seconds, rule / 2) : gaps_[i].seconds;
    }
    return idle;
  }

 private:
  struct Gap {
    double seconds;
    bool is_leap;
  };

  // A step with more ids than a 16th of the limit, or a quarter of the rows where there is none, is divided so that no
  // part has more than a 64th.
  uint32_t PartsFor(size_t ids) const {
    const uint64_t table = std::min<uint64_t>(options_.max_rows, std::max(rows.size(), ids));
    const uint64_t part = std::max<uint64_t>(4, table / 64);
    uint32_t parts = 1;
    const bool limited = options_.max_rows != kNoLimit;
    if (ids <= 4 || ids <= (limited ? options_.max_rows / 16 : table / 4)) return parts;
    while (parts < 256 && parts * part < ids) parts *= 2;
    return parts;
  }
  // The end of what goes together with a row.
  Position EndOfPart(int64_t id, RowHeader row) const {
    const uint32_t ids = 256 / parts_.at(row.last_step);
    return PositionOf(row.last_step) + (IdPart(id) / ids + 1) * ids;
  }

  // The oldest first.
  uint64_t Expire(const IdleRule& rule) {
    uint64_t gone = 0;
    std::map<Position, std::vector<int64_t>> parts;
    for (const auto& [id, row] : rows) {
      if (rule.below_count == 0 || row.count < rule.below_count) parts[EndOfPart(id, row)].push_back(id);
    }
    for (const auto& [end, ids] : parts) {
      const RowHeader row = rows.at(ids[0]);
      const bool is_due = rule.steps > 0 ? row.last_step + uint64_t{rule.steps} < iter
                                         : row.last_step < iter && IdleTime(row, rule.seconds) >= rule.seconds;
      if (!is_due || (options_.min_rows > 0 && rows.size() < options_.min_rows + ids.size())) break;
      for (int64_t id : ids) rows.erase(id);
      gone += ids.size();
    }
    return gone;
  }

  // Rows that were set are known by their ids' own parts.
  Position PlaceOf(int64_t id, RowHeader row) const {
    const Position end = row.count == 0 ? PositionOf(row.last_step, IdPart(id)) + 1 : EndOfPart(id, row);
    return end + PositionOf(uint64_t{options_.credit} * CountClass(row.count));
  }

  // Tries one cut after the other: at the place of each row.
  uint64_t Cut() {
    const uint64_t before = rows.size();
    std::set<Position> places;
    for (const auto& [id, row] : rows) {
      if (row.last_step < iter) places.insert(PlaceOf(id, row));
    }
    for (Position place : places) {
      if (rows.size() <= options_.keep_rows) break;
      std::erase_if(rows, [&](const auto& row) {
        return row.second.last_step < iter && PlaceOf(row.first, row.second) <= place;
      });
    }
    return before - rows.size();
  }

  LifeOptions options_;
  double clock_ = 0;
  std::vector<Gap> gaps_;
  std::map<uint32_t, size_t> begun_{{0, 0}};    // at which gap each step began
  std::map<uint32_t, uint32_t> parts_{{0, 1}};  // of each step
};

}  // namespace damo::testing
