#include "life/life_options.h"

#include <bit>
#include <cmath>
#include <string>

#include "base/status.h"

namespace damo {
namespace {

void Require(bool holds, const std::string& option, const std::string& expected, const std::string& received) {
  if (holds) return;
  throw Error(ErrorCode::kInvalidArgument, option + ": expected " + expected + ", got " + received);
}

void CheckIdleRule(const IdleRule& rule, size_t i) {
  const std::string name = "expire[" + std::to_string(i) + "]";
  const bool has_seconds = rule.seconds != 0;
  Require((rule.steps > 0) != has_seconds, name, "either steps or a time", has_seconds ? "both" : "none, or 0 of them");
  Require(!has_seconds || (rule.seconds > 0 && std::isfinite(rule.seconds)), name, "a positive time",
          std::to_string(rule.seconds) + " seconds");
  Require(rule.below_count == 0 || (std::has_single_bit(rule.below_count) && rule.below_count <= kMostBelowCount),
          name + ".below_count", "a power of two up to " + std::to_string(kMostBelowCount),
          std::to_string(rule.below_count));
}

}  // namespace

void CheckLifeOptions(const LifeOptions& options) {
  Require(options.sightings > 0, "admit.sightings", "at least 1", "0");
  Require(options.probability > 0 && options.probability <= 1, "admit.probability", "a number above 0, at most 1",
          std::to_string(options.probability));
  for (size_t i = 0; i < options.idle.size(); ++i) CheckIdleRule(options.idle[i], i);
  const bool is_limited = options.max_rows != kNoLimit;
  Require(options.max_rows > 0, "max_rows", "at least 1", "0");
  Require(options.keep_rows > 0, "keep_rows", "at least 1", "0");
  Require(options.keep_rows <= options.max_rows, "keep_rows", "at most max_rows, " + std::to_string(options.max_rows),
          std::to_string(options.keep_rows));
  Require(is_limited || options.keep_rows == kNoLimit, "keep_rows", "none without max_rows",
          std::to_string(options.keep_rows));
  Require(is_limited || options.credit == 0, "credit", "none without max_rows", std::to_string(options.credit));
  Require(options.min_rows <= options.max_rows, "min_rows", "at most max_rows, " + std::to_string(options.max_rows),
          std::to_string(options.min_rows));
}

}  // namespace damo
