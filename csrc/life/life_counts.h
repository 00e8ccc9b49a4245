// What a life has counted.
#pragma once

#include <cstdint>
#include <vector>

namespace damo {

// What has left, and come, since the life began.
struct LifeCounts {
  uint64_t created = 0;           // by updates, and what CountCreated was told of
  std::vector<uint64_t> expired;  // by each rule of LifeOptions::idle, as they are now
  uint64_t cut = 0;               // by max_rows
  uint64_t forgotten_sightings = 0;
  bool operator==(const LifeCounts&) const = default;
};

}  // namespace damo
