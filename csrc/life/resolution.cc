#include "life/resolution.h"

#include <algorithm>
#include <limits>

namespace damo {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Rows that no rule waits for are as if one did at so many times their age: a later one may.
constexpr double kLaterRule = 4;
constexpr uint64_t kLongestBucket = uint64_t{1} << 20;

// The next rule that rows of such an age are subject to; `otherwise` beyond the last.
double NextRule(const std::vector<double>& rules, double age, double otherwise) {
  const auto next = std::upper_bound(rules.begin(), rules.end(), age);
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
}

double Resolution::CostOf(const Histogram::Neighbours& buckets, const Bucket& now, uint64_t rows) const {
  if (buckets.earlier.empty()) return 0;
  const double most_rows = static_cast<double>(std::max<uint64_t>(RowsOf(rows), 1));
  double cost =
      buckets.earlier.rows == 0 ? 0 : static_cast<double>(buckets.earlier.rows + buckets.later.rows) / most_rows;
  if (!idle_steps_.empty()) {
    const double span = buckets.end.first - buckets.first.first, age = now.first - buckets.end.first;
    cost = std::max(cost, kIdleParts * span / NextRule(idle_steps_, age, kLaterRule * std::max(age, 1.0)));
  }
  if (!idle_seconds_.empty()) {
    const double span = buckets.end.time - buckets.first.time, age = now.time - buckets.end.time;
    cost = std::max(cost, kIdleParts * span / NextRule(idle_seconds_, age, kLaterRule * std::max(age, seconds_)));
  }
  return cost;
}

// From the newest step back, each as long as a part of its age, or of the next rule, if that is less.
std::vector<Bucket> Resolution::Divide(uint64_t end, size_t most, double time) const {
  std::vector<Bucket> buckets;
  for (double coarser = 1;; coarser *= 1.25) {
    buckets.clear();
    uint64_t step = end;
    while (step > 0 && buckets.size() <= most) {
      const double age = static_cast<double>(end - step), rule = NextRule(idle_steps_, age, kInfinity);
      const double wanted = std::min(age * coarser, rule * std::max(1.0, coarser / 64)) / kIdleParts;
      step -= std::min(step, std::max<uint64_t>(1, static_cast<uint64_t>(wanted)));
      buckets.push_back({static_cast<uint32_t>(step), time});
    }
    if (buckets.size() > most) continue;
    std::reverse(buckets.begin(), buckets.end());
    return buckets;
  }
}

}  // namespace damo
