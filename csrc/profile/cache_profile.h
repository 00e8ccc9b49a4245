// What a store's cache would miss if it had another size: of a sample of the ids, miniatures of caches of many sizes
// (miniature_cache.h) are held beside the real one, and shown what it is asked for.
//
// Ids are sampled by a hash, at a rate that halves as there come to be more of them. Four samples, by another part of
// the hash, say by how much they differ what the estimate is good for. Misses are divided by all ids that were looked
// up, not by those of the sample: which of the few most popular ids are in it would decide otherwise (SHARDS-adj,
// Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015).
//
// Counts are of the latter half or more of what was looked up, so that the caches have been filled.
//
// Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/thread_pool.h"
#include "cache/cache_split.h"
#include "profile/miniature_cache.h"

namespace damo {

constexpr size_t kProfileSamples = 4;
// Training, and all else.
constexpr size_t kProfileUses = 2;

using MissedByUse = std::array<Missed, kProfileUses>;

// Figures of the sample are scaled to all ids.
struct CacheProfileCounts {
  std::array<uint64_t, kProfileUses> ids{};      // looked up, with their repetitions
  std::array<uint64_t, kProfileUses> lookups{};  // calls
  // By sample: of ids that had no row; and of those that had one, and came for the first time since the profile began.
  std::array<MissedByUse, kProfileSamples> fresh{};
  std::array<MissedByUse, kProfileSamples> first{};
  // By size and sample. Larger sizes than these never had to evict: they miss what the last one here does.
  std::vector<std::array<MissedByUse, kProfileSamples>> missed;

  CacheProfileCounts& operator+=(const CacheProfileCounts& other);
};

// An id of the sample.
struct SampledId {
  uint64_t hash;
  int64_t id;
  uint16_t table;
  bool absent = false;     // it has no row
  uint32_t times = 1;      // that it was looked up
  RowHeader header{0, 0};  // of its row
};
// Has each id be there once.
void MergeSampled(std::vector<SampledId>* sampled);

class CacheProfile {
 public:
  // Of caches of so many bytes in all, ascending. Ids are sampled at 1 / 2^shift to begin with.
  CacheProfile(std::vector<size_t> sizes, int shift, ThreadPool* threads);

  // Bytes of a row of a table, and how many updates it has had. REQUIRES: before its ids are noted.
  void SetTable(uint16_t table, size_t stride, uint32_t iter);

  static uint64_t Hash(uint16_t table, int64_t id);
  bool Samples(uint64_t hash) const { return (hash & mask_) == 0; }

  // One lookup of `ids` ids, of which the sample has these. REQUIRES: MergeSampled.
  void Note(size_t use, uint64_t ids, std::span<const SampledId> sampled);

  // What was counted lately: of the latter half or more, once there is enough of it (`warm`), else of all.
  CacheProfileCounts Recent() const;
  bool warm() const { return rolled_; }
  int shift() const { return shift_; }
  size_t sampled_ids() const;

 private:
  struct Sample {
    std::unordered_map<uint64_t, uint32_t> keys;  // by hash
    std::vector<MiniatureCache> caches;           // by size
  };

  static size_t SampleOf(uint64_t hash) { return static_cast<size_t>(hash >> 62); }
  uint64_t scale() const { return kProfileSamples << shift_; }
  CacheSplit SplitOf(size_t size) const;
  void Count(size_t use, uint64_t hash, Reference* reference);
  void LookUp(size_t use, uint64_t ids, const std::array<std::vector<Reference>, kProfileSamples>& references);
  void AddSizes(const std::array<std::vector<Reference>, kProfileSamples>& references);
  void Rebuild();
  void Thin();

  const std::vector<size_t> sizes_;
  ThreadPool* const threads_;
  int shift_;
  uint64_t mask_;
  size_t min_stride_ = 0;
  std::vector<ProfiledTable> tables_;
  std::array<Sample, kProfileSamples> samples_;
  CacheProfileCounts kept_;
  CacheProfileCounts current_;
  uint64_t all_ids_ = 0;
  uint64_t next_roll_;
  bool rolled_ = false;
};

}  // namespace damo
