// What the lives of one table tell each other whose rows are spread over several stores, each with a part of them.
//
// All of them have the same edges, ladder and time, and each counts the rows of its own store. What depends on how many
// rows there are is decided by those of all, by each store for itself and therefore alike: so the same rows live
// whatever the number of stores, as long as ids are.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace damo {

// By what a step is prepared. Those of several stores are added up.
struct LifeCensus {
  uint64_t ids = 0;     // at most so many rows and sightings are going to have the step as their last
  uint64_t rows = 0;    // that live
  uint64_t newest = 0;  // of those, in the newest bucket
  bool operator==(const LifeCensus&) const = default;
};

// Hands this store's life, as TableLife::Serialize has it, to the other stores, and returns those of all, this one's
// among them, in the same order everywhere. It is called by all of them or by none. May throw.
using LifeExchange = std::function<std::vector<std::string>(const std::string& own)>;

}  // namespace damo
