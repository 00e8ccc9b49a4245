// On which of several ranks an id's row lives. damo_torchrec/distributed/mixing.py says the same, for all time.
#pragma once

#include <cstdint>

namespace damo {

// What one rank of several has.
struct RankShare {
  uint64_t rank = 0, world_size = 1;

  bool Has(int64_t id) const {
    uint64_t mixed = static_cast<uint64_t>(id);  // by the finaliser of SplitMix64
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return (mixed ^ (mixed >> 31)) % world_size == rank;
  }
};

}  // namespace damo
