#include "life/resolution.h"

#include <algorithm>
#include <limits>

namespace damo {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr uint64_t kLongestBucket = uint64_t{1} << 20;

// The next rule that rows of such an age are subject to; beyond the last, their age.
double NextRule(const std::vector<double>& rules, double age, double least) {
  const auto next = std::upper_bound(rules.begin(), rules.end(), age);
  return next != rules.end() ? *next : std::max(age, least);
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

double Resolution::CostOf(const Histogram::Neighbours& buckets, const Bucket& now) const {
  if (buckets.earlier == 0) return 0;
  double cost = 0;
  if (!idle_steps_.empty() || (idle_seconds_.empty() && rows_ == kNoLimit)) {
    const double span = buckets.end.first - buckets.first.first, age = now.first - buckets.end.first;
    cost = std::max(cost, kIdleParts * span / NextRule(idle_steps_, age, 1));
  }
  if (!idle_seconds_.empty()) {
    const double span = buckets.end.time - buckets.first.time, age = now.time - buckets.end.time;
    cost = std::max(cost, kIdleParts * span / NextRule(idle_seconds_, age, seconds_));
  }
  if (rows_ != kNoLimit) {
    cost = std::max(
        cost, static_cast<double>(buckets.earlier + buckets.later) / static_cast<double>(std::max<uint64_t>(rows_, 1)));
  }
  return cost;
}

// From the newest step back: as fine as the next rule wants it, and those behind all rules evenly.
std::vector<Bucket> Resolution::Divide(uint64_t end, size_t most, double time) const {
  std::vector<Bucket> buckets;
  const double oldest = idle_steps_.empty() ? 0 : idle_steps_.back();
  for (double coarser = 1;; coarser *= 2) {
    buckets.clear();
    uint64_t step = end;
    while (step > 0 && static_cast<double>(end - step) < oldest && buckets.size() <= most / 2) {
      const double wanted = coarser * NextRule(idle_steps_, static_cast<double>(end - step), 1) / kIdleParts;
      step -= std::min(step, std::max<uint64_t>(1, static_cast<uint64_t>(wanted)));
      buckets.push_back({static_cast<uint32_t>(step), time});
    }
    if (buckets.size() > most / 2) continue;
    const uint64_t n = std::min<uint64_t>(most - buckets.size(), step);
    for (uint64_t i = n; i-- > 0;) buckets.push_back({static_cast<uint32_t>(i * step / n), time});
    std::reverse(buckets.begin(), buckets.end());
    return buckets;
  }
}

}  // namespace damo
