#include "profile/cache_profile.h"

#include <gtest/gtest.h>

#include <unordered_map>
#include <vector>

#include "base/thread_pool.h"

namespace damo {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kStride = 1024;

// A training whose rows have a header for each update that they had.
class Training {
 public:
  explicit Training(std::vector<size_t> sizes, int shift = 0)
      : threads_(2), profile_(std::move(sizes), shift, &threads_) {}

  void Step(const std::vector<int64_t>& ids) {
    profile_.SetTable(0, kStride, step_);
    std::vector<SampledId> sampled;
    for (int64_t id : ids) {
      const uint64_t hash = CacheProfile::Hash(0, id);
      if (!profile_.Samples(hash)) continue;
      const auto row = rows_.find(id);
      sampled.push_back({hash, id, 0, row == rows_.end(), 1, row == rows_.end() ? RowHeader{} : row->second});
    }
    MergeSampled(&sampled);
    profile_.Note(0, ids.size(), sampled);
    ++step_;
    for (int64_t id : ids) {
      RowHeader& row = rows_[id];
      row = {step_, row.last_step == step_ ? row.count : row.count + 1};
    }
  }

  const CacheProfile& profile() const { return profile_; }

 private:
  ThreadPool threads_;
  CacheProfile profile_;
  std::unordered_map<int64_t, RowHeader> rows_;
  uint32_t step_ = 0;
};

double MissRatio(const CacheProfileCounts& counts, size_t size) {
  double missed = 0;
  for (const auto& sample : counts.missed[size]) missed += static_cast<double>(sample[0].ids);
  return missed / kProfileSamples / static_cast<double>(counts.ids[0]);
}

std::vector<int64_t> Range(int64_t begin, int64_t end) {
  std::vector<int64_t> ids;
  for (int64_t id = begin; id < end; ++id) ids.push_back(id);
  return ids;
}

TEST(CacheProfileTest, RowsThatFitAreMissedOnce) {
  Training training({16 * kMiB, 64 * kMiB});
  for (int step = 0; step < 64; ++step) training.Step(Range(0, 4096));
  const CacheProfileCounts counts = training.profile().Recent();
  EXPECT_TRUE(training.profile().warm());
  ASSERT_EQ(counts.missed.size(), 1u);  // the larger one would hold the same
  EXPECT_EQ(MissRatio(counts, 0), 0);
}

TEST(CacheProfileTest, NewIdsAreMissedWhateverTheSize) {
  Training training({16 * kMiB, 64 * kMiB});
  for (int step = 0; step < 64; ++step) {
    std::vector<int64_t> ids = Range(0, 3072);
    for (int64_t id : Range(0, 1024)) ids.push_back(1'000'000 + 1024 * step + id);
    training.Step(ids);
  }
  const CacheProfileCounts counts = training.profile().Recent();
  double fresh = 0;
  for (const auto& sample : counts.fresh) fresh += static_cast<double>(sample[0].ids);
  EXPECT_NEAR(fresh / kProfileSamples / static_cast<double>(counts.ids[0]), 0.25, 0.02);
  for (size_t size = 0; size < counts.missed.size(); ++size) EXPECT_NEAR(MissRatio(counts, size), 0.25, 0.02);
  for (const auto& sample : counts.first) EXPECT_EQ(sample[0].ids, 0u);
}

TEST(CacheProfileTest, RowsAskedForAlikeAreThereByTheRoomThereIs) {
  Training training({16 * kMiB, 32 * kMiB, 64 * kMiB, 128 * kMiB});
  // 60,000 rows of 1 KiB, a sixth of which is asked for in each step.
  for (int step = 0; step < 200; ++step) training.Step(Range(10'000 * (step % 6), 10'000 * (step % 6 + 1)));
  const CacheProfileCounts counts = training.profile().Recent();
  ASSERT_EQ(counts.missed.size(), 3u);
  EXPECT_GT(MissRatio(counts, 0), 0.7);
  EXPECT_GT(MissRatio(counts, 1), 0.4);
  EXPECT_LT(MissRatio(counts, 1), MissRatio(counts, 0));
  EXPECT_EQ(MissRatio(counts, 2), 0);
}

TEST(CacheProfileTest, TheRateHalvesAsThereAreMoreIds) {
  Training training({16 * kMiB, 512 * kMiB});
  for (int step = 0; step < 60; ++step) training.Step(Range(10'000 * (step % 30), 10'000 * (step % 30 + 1)));
  EXPECT_GE(training.profile().shift(), 2);
  EXPECT_LE(training.profile().sampled_ids(), 40'000u);
  EXPECT_GE(training.profile().sampled_ids(), 10'000u);
  const CacheProfileCounts counts = training.profile().Recent();
  EXPECT_NEAR(MissRatio(counts, 1), 0, 0.2);
}

TEST(CacheProfileTest, ATableOfSmallerRowsTakesRoomFromAll) {
  ThreadPool threads(1);
  CacheProfile profile({16 * kMiB}, 0, &threads);
  std::vector<SampledId> sampled;
  for (uint16_t table : {uint16_t{0}, uint16_t{1}}) {
    profile.SetTable(table, table == 0 ? 1024 : 64, 1);
    for (int64_t id = 0; id < 5000; ++id) sampled.push_back({CacheProfile::Hash(table, id), id, table});
    MergeSampled(&sampled);
    profile.Note(0, sampled.size(), sampled);
  }
  EXPECT_EQ(profile.sampled_ids(), 10'000u);
}

}  // namespace
}  // namespace damo
