// A cache of a part of the rows, for finding out how often a cache of another size would have missed: miniature
// simulation (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", ATC 2017). Of rows it
// has what the policy asks for, which is the cache's own (cache/replacement.h); their bytes are counted, not there.
//
// Not thread-safe; different ones may be used at once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/cache_split.h"
#include "cache/replacement.h"
#include "row/row.h"

namespace damo {

// An id that a lookup has asked for.
struct Reference {
  uint32_t key;  // the id's number in the profile
  uint32_t tag;  // for the ghosts
  uint16_t table;
  uint32_t times;  // in the lookup
  RowHeader header;
  bool absent;  // there is no such row
};

// What it looks up in which tables.
struct ProfiledTable {
  size_t stride = 0;  // of a row, bytes
  uint32_t iter = 0;  // updates so far
};

// References that were not in memory.
struct Missed {
  uint64_t ids = 0;   // with their repetitions
  uint64_t rows = 0;  // each once a lookup

  Missed& operator+=(const Missed& other) {
    ids += other.ids;
    rows += other.rows;
    return *this;
  }
};

class MiniatureCache {
 public:
  // Simulates a cache that is divided like `split` on one of every `scale` ids.
  MiniatureCache(const CacheSplit& split, uint64_t scale);
  // The same, going on from what `other` holds. Rows get the key that `keys` has for theirs, or go, where that is
  // kNoKey.
  MiniatureCache(const CacheSplit& split, uint64_t scale, const MiniatureCache& other, std::span<const uint32_t> keys,
                 const std::vector<ProfiledTable>& tables);

  // Whether this lookup would have it evict something.
  bool NeedsEviction(std::span<const Reference> lookup, const std::vector<ProfiledTable>& tables) const;
  // One lookup. `training`: an update of its rows follows. Returns what it missed.
  Missed Look(std::span<const Reference> lookup, bool training, const std::vector<ProfiledTable>& tables);

  static constexpr uint32_t kNoKey = UINT32_MAX;

 private:
  // As the policy reads it, of a layout without weights and state: its id is the key.
  struct Row {
    alignas(8) std::array<char, 24> bytes{};
    uint32_t tag = 0;
    char* data() { return bytes.data(); }
    const char* data() const { return bytes.data(); }
  };
  struct Segment {
    std::vector<Row> rows;
    size_t bytes = 0;
  };
  struct Place {
    uint32_t segment = Replacement::kNoSegment;
    uint32_t row = 0;
  };

  size_t Limit() const;
  size_t MissingBytes(std::span<const Reference> lookup, const std::vector<ProfiledTable>& tables) const;
  bool IsThere(uint32_t key) const { return key < places_.size() && places_[key].segment != Replacement::kNoSegment; }
  Row& Append(Replacement::Queue queue, const Row& row, size_t stride);
  void MakeRoom(size_t bytes, const std::vector<ProfiledTable>& tables);
  void Evict(uint32_t segment, const std::vector<ProfiledTable>& tables);

  CacheSplit split_;
  uint64_t scale_;
  size_t segment_bytes_ = 0;
  std::vector<Segment> segments_;
  Replacement replacement_;
  std::vector<uint32_t> free_;
  std::vector<Place> places_;  // by key
  size_t used_ = 0;            // bytes of rows in segments
};

}  // namespace damo
