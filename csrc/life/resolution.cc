#include "life/resolution.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace damo {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Rows that no rule waits for are as if one did at so many times their age: a later one may.
constexpr double kLaterRule = 4;
constexpr uint64_t kLongestBucket = uint64_t{1} << 20;

// The first rule that is not satisfied by the age that it finds rows to have; `otherwise` beyond the last.
template <class AgeBy>
double NextRule(const std::vector<double>& rules, AgeBy age_by, double otherwise) {
  const auto next = std::find_if(rules.begin(), rules.end(), [&](double rule) { return age_by(rule) < rule; });
  return next != rules.end() ? *next : otherwise;
}

}  // namespace

Resolution::Resolution(const LifeOptions& options) {
  for (const IdleRule& rule : options.idle) {
    rule.steps > 0 ? idle_steps_.push_back(rule.steps) : idle_seconds_.push_back(rule.seconds);
  }
  if (options.within_steps > 0) idle_steps_.push_back(options.within_steps);
  std::sort(idle_steps_.begin(), idle_steps_.end());
  std::sort(idle_seconds_.begin(), idle_seconds_.end());
  steps_ =
      idle_steps_.empty() ? kLongestBucket : std::max<uint64_t>(1, static_cast<uint64_t>(idle_steps_[0] / kIdleParts));
  steps_ = std::min(steps_, kLongestBucket);
  seconds_ = idle_seconds_.empty() ? kInfinity : idle_seconds_[0] / kIdleParts;
  rows_ = options.max_rows == kNoLimit
              ? kNoLimit
              : std::min(options.max_rows / static_cast<uint64_t>(kRowParts), options.keep_rows);
  max_rows_ = options.max_rows;
}

size_t Resolution::PartsOf(size_t ids, uint64_t rows) const {
  const uint64_t there = std::max<uint64_t>(rows, ids);
  const uint64_t whole = max_rows_ == kNoLimit ? there / kWholeWithoutLimit : max_rows_ / kWhole;
  if (ids <= std::max(whole, kFewRows)) return 1;
  const uint64_t part = std::max(std::min(max_rows_, there) / kStepParts, kFewRows);
  return std::bit_ceil(std::clamp<uint64_t>((ids + part - 1) / part, 1, kIdParts));
}

double Resolution::CostOf(const Histogram::Neighbours& buckets, uint32_t step, const LifeClock& clock,
                          uint64_t rows) const {
  if (buckets.earlier.empty()) return 0;
  const double most_rows = static_cast<double>(std::max<uint64_t>(RowsOf(rows), 1));
  double cost =
      buckets.earlier.rows == 0 ? 0 : static_cast<double>(buckets.earlier.rows + buckets.later.rows) / most_rows;
  if (!idle_steps_.empty()) {
    // A merger within one step delays nothing.
    const uint32_t first = StepOf(buckets.first.first), last = StepOf(buckets.end.first - 1);
    const double span = last == first ? 0 : last - first + 1.0, age = step - last - 1.0;
    const double rule = NextRule(idle_steps_, [&](double) { return age; }, kLaterRule * std::max(age, 1.0));
    cost = std::max(cost, kIdleParts * span / rule);
  }
  if (!idle_seconds_.empty()) {
    const double span = buckets.end.time - buckets.first.time, age = clock.time() - buckets.end.time;
    const double rule = NextRule(
        idle_seconds_, [&](double r) { return clock.IdleTime(buckets.end.time, r); },
        kLaterRule * std::max(age, seconds_));
    cost = std::max(cost, kIdleParts * span / rule);
  }
  return cost;
}

// From the newest step back, each as long as a part of its age, or of the next rule, if that is less.
std::vector<Bucket> Resolution::Divide(uint64_t end, size_t most) const {
  std::vector<Bucket> buckets;
  for (double coarser = 1;; coarser *= 1.25) {
    buckets.clear();
    uint64_t step = end;
    while (step > 0 && buckets.size() <= most) {
      const double age = static_cast<double>(end - step);
      const double rule = NextRule(idle_steps_, [&](double) { return age; }, kInfinity);
      const double wanted = std::min(age * coarser, rule * std::max(1.0, coarser / 64)) / kIdleParts;
      step -= std::min(step, std::max<uint64_t>(1, static_cast<uint64_t>(wanted)));
      buckets.push_back({PositionOf(step), 0});
    }
    if (buckets.size() > most) continue;
    std::reverse(buckets.begin(), buckets.end());
    return buckets;
  }
}

}  // namespace damo
