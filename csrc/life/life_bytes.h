// A life as plain numbers, and their bytes (docs/format.md): what a checkpoint keeps of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "life/histogram.h"
#include "life/life_clock.h"
#include "life/life_counts.h"
#include "life/life_options.h"
#include "row/ladder.h"

namespace damo {

constexpr size_t kMostBuckets = 2048;

struct LifeState {
  struct Cell {
    uint32_t count_class, bucket;
    uint64_t rows;
    bool operator==(const Cell&) const = default;
  };
  struct Part {
    uint32_t step, part;
    uint64_t rows;
    bool operator==(const Part&) const = default;
  };

  uint32_t iter = 0;
  double time = 0, updated = 0;  // now, and at the last update
  double clock = 0;
  std::vector<LifeClock::Leap> leaps;
  Ladder ladder;
  LifeCounts counts;
  std::vector<IdleRule> rules;  // those that counts.expired is of
  std::vector<Bucket> buckets;
  // Those with rows, in ascending order.
  std::vector<Cell> cells;
  std::vector<Part> parts;  // of SetSteps
  uint32_t first_set_step = 0;
  bool too_many_set_steps = false;
  bool operator==(const LifeState&) const = default;
};

std::string EncodeLife(const LifeState& state);
// Throws kCorruption, saying what is wrong, for whatever no life can be; then takes no more memory than `bytes`.
LifeState DecodeLife(std::string_view bytes);

}  // namespace damo
