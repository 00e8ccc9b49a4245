// What decides how long rows live, and which ids get one: a table's options, which no row and no schema depends on.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace damo {

constexpr uint64_t kMostBelowCount = uint64_t{1} << 32;  // more updates than any row counts

// Rows that have not been updated for so long go.
struct IdleRule {
  uint32_t steps = 0;        // of the table, or, if 0,
  double seconds = 0;        // of its clock
  uint64_t below_count = 0;  // only rows with fewer updates, a power of two; 0 for all
  bool operator==(const IdleRule&) const = default;
};

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

struct LifeOptions {
  // An id gets its row at the update by which it was seen so often: its occurrences in applied backwards, each counted
  // with `probability`. What was seen of an id is forgotten when it was not seen for `within_steps`; 0 for never.
  uint32_t sightings = 1;
  double probability = 1;
  uint32_t within_steps = 0;

  std::vector<IdleRule> idle;
  uint64_t min_rows = 0;  // idle rules leave so many

  // A step that leaves more than `max_rows` cuts them to at most `keep_rows`; a row's place in that is its last step
  // and `credit` more for each time that its count has doubled.
  uint64_t max_rows = kNoLimit;
  uint64_t keep_rows = kNoLimit;
  uint32_t credit = 0;
};

// Throws kInvalidArgument, naming the option.
void CheckLifeOptions(const LifeOptions& options);

}  // namespace damo
