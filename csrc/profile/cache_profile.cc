#include "profile/cache_profile.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace damo {
namespace {

// In a sample, before the rate halves.
constexpr size_t kMostIds = size_t{1} << 13;
// After which counts begin anew for the first time.
constexpr uint64_t kFirstRoll = uint64_t{1} << 16;

void Add(std::array<MissedByUse, kProfileSamples>* to, const std::array<MissedByUse, kProfileSamples>& more) {
  for (size_t sample = 0; sample < kProfileSamples; ++sample) {
    for (size_t use = 0; use < kProfileUses; ++use) (*to)[sample][use] += more[sample][use];
  }
}

}  // namespace

void MergeSampled(std::vector<SampledId>* sampled) {
  std::sort(sampled->begin(), sampled->end(), [](const auto& a, const auto& b) { return a.hash < b.hash; });
  size_t merged = 0;
  for (const SampledId& id : *sampled) {
    if (merged > 0 && (*sampled)[merged - 1].hash == id.hash) {
      ++(*sampled)[merged - 1].times;
    } else {
      (*sampled)[merged++] = id;
    }
  }
  sampled->resize(merged, {});
}

CacheProfileCounts& CacheProfileCounts::operator+=(const CacheProfileCounts& other) {
  for (size_t use = 0; use < kProfileUses; ++use) {
    ids[use] += other.ids[use];
    lookups[use] += other.lookups[use];
  }
  Add(&fresh, other.fresh);
  Add(&first, other.first);
  // What has no count of its own has missed what the last one that has one did.
  CacheProfileCounts more = other;
  const size_t sizes = std::max(missed.size(), more.missed.size());
  for (auto* counts : {&missed, &more.missed}) {
    counts->resize(sizes, counts->empty() ? std::array<MissedByUse, kProfileSamples>{} : counts->back());
  }
  for (size_t size = 0; size < sizes; ++size) Add(&missed[size], more.missed[size]);
  return *this;
}

CacheProfile::CacheProfile(std::vector<size_t> sizes, int shift, ThreadPool* threads)
    : sizes_(std::move(sizes)),
      threads_(threads),
      shift_(std::clamp(shift, 0, 40)),
      mask_((uint64_t{1} << shift_) - 1),
      next_roll_(kFirstRoll) {}

// Another mix than HashTag's, so that the sample is none of the index's tags.
uint64_t CacheProfile::Hash(uint16_t table, int64_t id) {
  uint64_t h = (static_cast<uint64_t>(id) ^ 0x5851F42D4C957F2Dull) + (uint64_t{table} + 1) * 0xA0761D6478BD642Full;
  h = (h ^ (h >> 32)) * 0xE7037ED1A0B428DBull;
  h = (h ^ (h >> 29)) * 0x8EBC6AF09C88C6E3ull;
  return h ^ (h >> 32);
}

CacheSplit CacheProfile::SplitOf(size_t size) const {
  return SplitCache(sizes_[size], ChooseSegmentBytes(sizes_[size]), min_stride_);
}

void CacheProfile::SetTable(uint16_t table, size_t stride, uint32_t iter) {
  if (table >= tables_.size()) tables_.resize(table + size_t{1});
  const bool smallest = min_stride_ == 0 || stride < min_stride_;
  tables_[table] = {stride, iter};
  if (!smallest) return;
  min_stride_ = stride;
  Rebuild();
}

// Of the sizes as they are now, from what the caches hold.
void CacheProfile::Rebuild() {
  for (Sample& sample : samples_) {
    std::vector<uint32_t> keys(sample.keys.size());
    std::iota(keys.begin(), keys.end(), 0);
    for (size_t size = 0; size < sample.caches.size(); ++size) {
      sample.caches[size] = MiniatureCache(SplitOf(size), scale(), sample.caches[size], keys, tables_);
    }
  }
}

// Halves the rate.
void CacheProfile::Thin() {
  ++shift_;
  mask_ = 2 * mask_ + 1;
  for (Sample& sample : samples_) {
    std::vector<uint32_t> new_keys(sample.keys.size(), MiniatureCache::kNoKey);
    std::unordered_map<uint64_t, uint32_t> keys;
    for (const auto& [hash, key] : sample.keys) {
      if (!Samples(hash)) continue;
      new_keys[key] = static_cast<uint32_t>(keys.size());
      keys.emplace(hash, new_keys[key]);
    }
    sample.keys = std::move(keys);
    for (size_t size = 0; size < sample.caches.size(); ++size) {
      sample.caches[size] = MiniatureCache(SplitOf(size), scale(), sample.caches[size], new_keys, tables_);
    }
  }
}

void CacheProfile::Count(size_t use, uint64_t hash, Reference* reference) {
  const size_t sample = SampleOf(hash);
  auto& keys = samples_[sample].keys;
  const auto [found, first] = keys.try_emplace(hash, static_cast<uint32_t>(keys.size()));
  reference->key = found->second;
  reference->tag = static_cast<uint32_t>(hash >> 30);
  const Missed missed{reference->times * scale(), scale()};
  if (reference->absent) {
    current_.fresh[sample][use] += missed;
  } else if (first) {
    current_.first[sample][use] += missed;
  }
}

void CacheProfile::Note(size_t use, uint64_t ids, std::span<const SampledId> sampled) {
  std::array<std::vector<Reference>, kProfileSamples> references;
  for (const SampledId& id : sampled) {
    Reference reference{0, 0, id.table, id.times, id.header, id.absent};
    Count(use, id.hash, &reference);
    references[SampleOf(id.hash)].push_back(reference);
  }
  LookUp(use, ids, references);
}

// A size is simulated from when the one below it has to evict: until then both hold the same.
void CacheProfile::AddSizes(const std::array<std::vector<Reference>, kProfileSamples>& references) {
  for (size_t s = 0; s < kProfileSamples; ++s) {
    Sample& sample = samples_[s];
    if (sample.caches.empty()) sample.caches.emplace_back(SplitOf(0), scale());
    while (sample.caches.size() < sizes_.size() && sample.caches.back().NeedsEviction(references[s], tables_)) {
      std::vector<uint32_t> keys(sample.keys.size());
      std::iota(keys.begin(), keys.end(), 0);
      const size_t size = sample.caches.size();
      sample.caches.push_back(MiniatureCache(SplitOf(size), scale(), sample.caches.back(), keys, tables_));
    }
  }
}

void CacheProfile::LookUp(size_t use, uint64_t ids,
                          const std::array<std::vector<Reference>, kProfileSamples>& references) {
  AddSizes(references);
  struct Work {
    size_t sample;
    size_t size;
    Missed missed;
  };
  std::vector<Work> work;
  size_t sizes = 0;
  for (size_t sample = 0; sample < kProfileSamples; ++sample) {
    sizes = std::max(sizes, samples_[sample].caches.size());
    for (size_t size = 0; size < samples_[sample].caches.size(); ++size) work.push_back({sample, size, {}});
  }
  const bool training = use == 0;
  threads_->ParallelFor(work.size(), [&](size_t i, int) {
    Work& w = work[i];
    w.missed = samples_[w.sample].caches[w.size].Look(references[w.sample], training, tables_);
  });
  CacheProfileCounts counts;
  counts.ids[use] = ids;
  counts.lookups[use] = 1;
  counts.missed.resize(sizes);
  for (const Work& w : work) {
    const Missed scaled{w.missed.ids * scale(), w.missed.rows * scale()};
    const bool last = w.size + 1 == samples_[w.sample].caches.size();
    for (size_t size = w.size; size < (last ? sizes : w.size + 1); ++size) {
      counts.missed[size][w.sample][use] = scaled;
    }
  }
  current_ += counts;
  all_ids_ += ids;
  if (all_ids_ >= next_roll_) {
    kept_ = std::exchange(current_, {});
    rolled_ = true;
    while (next_roll_ <= all_ids_) next_roll_ *= 2;
  }
  const auto full = [](const Sample& sample) { return sample.keys.size() > kMostIds; };
  if (std::any_of(samples_.begin(), samples_.end(), full)) Thin();
}

CacheProfileCounts CacheProfile::Recent() const {
  CacheProfileCounts counts = kept_;
  counts += current_;
  return counts;
}

size_t CacheProfile::sampled_ids() const {
  size_t ids = 0;
  for (const Sample& sample : samples_) ids += sample.keys.size();
  return ids;
}

}  // namespace damo
