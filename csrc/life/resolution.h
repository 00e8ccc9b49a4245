// How fine a histogram has to be, so that the options of a life take effect when they say: to a 256th of an idle rule's
// time, and to a 1,024th of the rows that there may be. Without a limit to rows, to a 256th of those that there are:
// one may come. A step that alone may bring more than a 16th of the rows that there may be, or without a limit a
// quarter of those that there are, is divided into parts of a 64th. Others are not: each row of a step that is divided
// has its bucket to be found by its id, at every update.
#pragma once

#include <cstdint>
#include <vector>

#include "life/histogram.h"
#include "life/life_clock.h"
#include "life/life_options.h"

namespace damo {

class Resolution {
 public:
  explicit Resolution(const LifeOptions& options);

  // A bucket ends when it has lasted for so long, of either, or would get more rows, of a table that has `rows`.
  uint64_t steps() const { return steps_; }
  double seconds() const { return seconds_; }
  uint64_t RowsOf(uint64_t rows) const { return rows_ == kNoLimit ? rows / static_cast<uint64_t>(kIdleParts) : rows_; }
  // Into how many parts a step is divided that brings `ids`: a power of two up to kIdParts.
  size_t PartsOf(size_t ids, uint64_t rows) const;
  // The times of idle rules, ascending.
  const std::vector<double>& times() const { return idle_seconds_; }

  // How much is lost if two buckets become one: at most 1 if the options take effect as finely as they should.
  double CostOf(const Histogram::Neighbours& buckets, uint32_t step, const LifeClock& clock, uint64_t rows) const;
  // Buckets of the steps before `end`, at most `most`, of a table whose rows are not known: the later, the finer.
  std::vector<Bucket> Divide(uint64_t end, size_t most) const;

 private:
  static constexpr double kIdleParts = 256, kRowParts = 1024;
  static constexpr uint64_t kWhole = 16, kWholeWithoutLimit = 4, kStepParts = 64, kFewRows = 4;

  std::vector<double> idle_steps_, idle_seconds_;  // of the rules, ascending
  uint64_t steps_, rows_, max_rows_;
  double seconds_;
};

}  // namespace damo
