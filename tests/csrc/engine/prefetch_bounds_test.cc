// How much a prefetch reads, and what becomes of the rest of the cache.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "engine/prefetch_testing.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Backward;
using testing::Batch;
using testing::BatchOf;
using testing::Forward;
using testing::GetRows;
using testing::OneFeature;
using testing::OpenFilled;
using testing::PlainTable;
using testing::Prefetch;
using testing::Range;
using testing::Step;
using testing::WeightsOfIds;

// A cache for some 10,000 rows of 64 floats.
class PrefetchBoundsTest : public ::testing::Test {
 protected:
  static constexpr int kDim = 64;
  static constexpr int64_t kRows = 40000;
  // At most so many rows are a quarter of the cache.
  static constexpr size_t kQuarter = testing::kTightCache / 4 / (sizeof(float) * kDim);

  uint64_t RowsRead() { return store_->row_counts().read; }
  // As much as a prefetch may read.
  void FillAQuarter(uint16_t table) {
    Prefetch(store_.get(), table, Range(0, 20000));
    ASSERT_GT(RowsRead(), kQuarter / 2);
  }

  const std::unique_ptr<Store> store_ = OpenFilled(Range(0, kRows), kDim, {}, testing::kTightCache);
};

TEST_F(PrefetchBoundsTest, TheForwardReadsWhatAQuarterOfTheCacheCannotTake) {
  const std::vector<int64_t> ids = Range(0, 6000);
  Prefetch(store_.get(), 0, ids);
  EXPECT_GT(RowsRead(), kQuarter / 2);
  EXPECT_LE(RowsRead(), kQuarter);
  const Batch batch = BatchOf(ids);
  EXPECT_EQ(Forward(store_.get(), batch.lookup(OneFeature(0)).get(), kDim), WeightsOfIds(ids, kDim));
  EXPECT_EQ(RowsRead(), 6000u);
}

TEST_F(PrefetchBoundsTest, PrefetchesWithoutForwardsStopAtAQuarter) {
  for (int64_t i = 0; i < 16; ++i) Prefetch(store_.get(), 0, Range(300 * i, 300 * (i + 1)));
  EXPECT_GT(RowsRead(), kQuarter / 2);
  EXPECT_LE(RowsRead(), kQuarter);
}

TEST_F(PrefetchBoundsTest, PrefetchesWithoutForwardsLeaveRowsThatAreInUse) {
  const std::vector<int64_t> used = Range(37000, 40000);
  for (int64_t i = 0; i < 12; ++i) {
    GetRows(store_.get(), 0, used);
    GetRows(store_.get(), 0, Range(24000 + 1000 * i, 25000 + 1000 * i));
  }
  for (const int64_t ids : {10, 300, 5000}) {
    for (int64_t i = 0; i < 48; ++i) {
      Prefetch(store_.get(), 0, Range(ids * i % 15000, ids * i % 15000 + ids));
      ASSERT_LE(store_->cache_memory_bytes(), testing::kTightCache);
    }
    const uint64_t before = RowsRead();
    EXPECT_EQ(GetRows(store_.get(), 0, used), WeightsOfIds(used, kDim));
    EXPECT_EQ(RowsRead(), before) << "after prefetches of " << ids;
  }
}

// The first use of a row that was read ahead is no repetition.
TEST_F(PrefetchBoundsTest, RowsThatAreUsedOnceDoNotDriveOutThoseInUse) {
  const std::vector<int64_t> used = Range(37000, 40000);
  uint64_t read_again = 0;
  for (int64_t step = 0; step < 60; ++step) {
    Prefetch(store_.get(), 0, Range(600 * (step + 1), 600 * (step + 2)));
    const Batch batch = BatchOf(Range(600 * step, 600 * (step + 1)));
    Forward(store_.get(), batch.lookup(OneFeature(0)).get(), kDim);
    const uint64_t before = RowsRead();
    if (step % 4 == 0) GetRows(store_.get(), 0, used);
    if (step > 20) read_again += RowsRead() - before;
  }
  EXPECT_LE(read_again, used.size() / 10);
}

// A depth that is more than fits: what waits for its forward stays within a quarter of the cache at every time.
TEST_F(PrefetchBoundsTest, SeveralBatchesAheadKeepToAQuarterTogether) {
  constexpr int64_t kIds = 900, kDepth = 6, kSteps = 35;
  std::vector<uint64_t> prefetched;  // by batch
  uint64_t waiting = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    for (int64_t ahead = step == 0 ? 0 : kDepth; ahead <= kDepth; ++ahead) {
      const uint64_t before = RowsRead();
      Prefetch(store_.get(), 0, Range(kIds * (step + ahead), kIds * (step + ahead + 1)));
      prefetched.push_back(RowsRead() - before);
      waiting += prefetched.back();
      ASSERT_LE(waiting, kQuarter) << "step " << step;
    }
    Step(store_.get(), 0, Range(kIds * step, kIds * (step + 1)), 1);
    waiting -= prefetched[static_cast<size_t>(step)];
  }
}

struct Ahead {
  int64_t ids;    // of a batch
  int64_t depth;  // batches beyond the next one

  friend void PrintTo(const Ahead& ahead, std::ostream* out) { *out << ahead.ids << " ids, depth " << ahead.depth; }
};

class PrefetchAheadTest : public PrefetchBoundsTest, public ::testing::WithParamInterface<Ahead> {
 protected:
  static constexpr int64_t kSteps = 28;

  // Trains with new ids in each step. How many rows the steps read themselves.
  uint64_t Train() {
    const auto [n, depth] = GetParam();
    uint64_t reads = 0;
    for (int64_t step = 0; step < kSteps; ++step) {
      for (int64_t ahead = step == 0 ? 0 : depth; ahead <= depth; ++ahead) {
        Prefetch(store_.get(), 0, Range(n * (step + ahead), n * (step + ahead + 1)));
      }
      const uint64_t before = RowsRead();
      Step(store_.get(), 0, Range(n * step, n * (step + 1)), 1);
      reads += RowsRead() - before;
    }
    return reads;
  }
};

// Training goes through many times the cache, and still finds what was read ahead.
class PrefetchFittingTest : public PrefetchAheadTest {};

INSTANTIATE_TEST_SUITE_P(Batches, PrefetchFittingTest,
                         ::testing::Values(Ahead{1200, 1}, Ahead{800, 2}, Ahead{500, 4}, Ahead{100, 15}));

TEST_P(PrefetchFittingTest, StepsReadNothingThemselves) { EXPECT_EQ(Train(), 0u); }

// More batches ahead than a quarter of the cache holds: the steps read what does not fit. What did fit is not read
// twice.
class PrefetchOverfullTest : public PrefetchAheadTest {};

INSTANTIATE_TEST_SUITE_P(Batches, PrefetchOverfullTest,
                         ::testing::Values(Ahead{900, 3}, Ahead{1200, 3}, Ahead{900, 6}));

TEST_P(PrefetchOverfullTest, RowsAreReadOnce) {
  Train();
  const uint64_t needed = static_cast<uint64_t>(kSteps * GetParam().ids);
  EXPECT_LE(RowsRead(), needed + needed / 20 + kQuarter);
}

TEST_F(PrefetchBoundsTest, ReadsOfRowsByIdLeaveTheBoundAsItIs) {
  FillAQuarter(0);
  const uint64_t before = RowsRead();
  GetRows(store_.get(), 0, {0});
  Prefetch(store_.get(), 0, Range(30000, 40000));
  EXPECT_LE(RowsRead(), kQuarter) << before << " rows of the first prefetch still wait for its forward";
}

// A model that was given up, or an epoch that was left early, does not keep others from reading ahead.
TEST_F(PrefetchBoundsTest, PrefetchesThatNoForwardComesForAreForgotten) {
  FillAQuarter(0);
  TableSchema schema = PlainTable("other", 2, kDim);
  store_->OpenTable(schema);
  for (int64_t step = 0; step < 100; ++step) {
    Prefetch(store_.get(), 1, Range(10 * step, 10 * step + 10));
    Step(store_.get(), 1, Range(10 * step, 10 * step + 10), 1);
  }
  const uint64_t before = RowsRead();
  Prefetch(store_.get(), 1, Range(5000, 5010));
  EXPECT_EQ(RowsRead(), before + 10);
}

// Batches that fill most of the cache train with prefetches as they do without: what was read ahead makes way.
class PrefetchLargeBatchTest : public PrefetchBoundsTest, public ::testing::WithParamInterface<int64_t> {};

INSTANTIATE_TEST_SUITE_P(Ids, PrefetchLargeBatchTest, ::testing::Values(4000, 5000, 6000));

TEST_P(PrefetchLargeBatchTest, FitsBesideWhatWasReadAhead) {
  const int64_t n = GetParam(), steps = 5;
  for (const bool prefetches : {false, true}) {
    for (int64_t step = 0; step < steps; ++step) {
      const Batch batch = BatchOf(Range(n * step, n * (step + 1)));
      const auto lookup = batch.lookup(OneFeature(0));
      const std::string where = "step " + std::to_string(step) + (prefetches ? " with prefetches" : "");
      ASSERT_NO_THROW(Forward(store_.get(), lookup.get(), kDim)) << where;
      if (prefetches) Prefetch(store_.get(), 0, Range(n * (step + 1), n * (step + 2)));
      ASSERT_NO_THROW(Backward(store_.get(), lookup.get(), 1, kDim)) << where;
    }
  }
  const std::vector<float> rows = GetRows(store_.get(), 0, Range(0, n * steps));
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], static_cast<float>(i / kDim) - 2);
}

}  // namespace
}  // namespace damo
