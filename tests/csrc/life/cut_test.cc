// What a cut and an expiry leave, whatever the sizes of the batches that brought the rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "life/row_sample.h"
#include "life/table_life.h"

namespace damo {
namespace {

LifeOptions MostRows(uint64_t max_rows, uint64_t keep_rows) {
  LifeOptions options;
  options.max_rows = max_rows;
  options.keep_rows = keep_rows;
  return options;
}

// By how much a cut may miss `keep_rows`: a part of the limit where batches are large, or of a batch that was larger,
// and a few rows of ids with hashes alike.
uint64_t Tolerance(uint64_t rows) { return rows / 24 + 12; }

// A table of rows of one update each, whose ids are 0, 1, 2, ...
class Rows {
 public:
  explicit Rows(const LifeOptions& options) : life_(options, 0, 0) {}

  TableLife& life() { return life_; }
  uint64_t size() const { return rows_.size(); }

  void Update(uint64_t fresh, const std::vector<int64_t>& again = {}) {
    ++step_;
    life_.BeginStep(step_, fresh + again.size(), step_);
    for (uint64_t i = 0; i < fresh; ++i) Put(next_++, 1);
    for (int64_t id : again) {
      life_.Remove(rows_.at(id), id);
      Put(id, rows_.at(id).count + 1);
    }
    life_.EndStep();
    std::erase_if(rows_, [&](const auto& row) { return life_.ladder().IsDead(row.second, row.first); });
  }
  void Set(uint64_t fresh) {
    for (uint64_t i = 0; i < fresh; ++i) {
      rows_[next_] = {step_, 0};
      life_.Add({step_, 0}, next_++);
    }
  }
  std::vector<int64_t> Some(std::mt19937* random, double share) const {
    std::vector<int64_t> some;
    for (const auto& [id, row] : rows_) {
      if ((*random)() < share * 4294967296.0) some.push_back(id);
    }
    return some;
  }

  uint64_t newest() const {
    return static_cast<uint64_t>(
        std::count_if(rows_.begin(), rows_.end(), [&](const auto& row) { return row.second.last_step == step_; }));
  }
  void Expect(uint64_t least, uint64_t most) {
    EXPECT_EQ(life_.rows(), rows_.size());
    EXPECT_GE(rows_.size(), least);
    EXPECT_LE(rows_.size(), most);
  }

 private:
  void Put(int64_t id, uint32_t count) {
    rows_[id] = {step_, count};
    life_.Add(rows_[id], id);
  }

  TableLife life_;
  std::map<int64_t, RowHeader> rows_;
  uint32_t step_ = 0;
  int64_t next_ = 0;
};

TEST(Cut, TakesSomeOfTheRowsOfOneUpdate) {
  Rows rows(MostRows(1000, 937));
  rows.Update(999);
  rows.Update(2);
  rows.Expect(937 - Tolerance(1000), 937);
}

TEST(Cut, LeavesWhatItShouldAfterABatchOfMoreThanTheLimit) {
  Rows rows(MostRows(1000, 937));
  rows.Update(1200);
  rows.Expect(1200, 1200);
  rows.Update(0);
  rows.Expect(937 - Tolerance(1000), 937);
}

TEST(Cut, LeavesWhatItShouldWhereALimitComesLater) {
  for (uint64_t n : {300, 5'000, 100'000}) {
    Rows rows({});
    rows.Update(n);
    rows.life().SetOptions(MostRows(n / 2, n / 2 - n / 32));
    rows.Update(0);
    rows.Expect(n / 2 - n / 32 - Tolerance(n), n / 2 - n / 32);
    rows.life().SetOptions(MostRows(n / 10, n / 10));
    rows.Update(1);
    rows.Expect(n / 10 - Tolerance(n), n / 10);
  }
}

TEST(Cut, TakesOfUpdatesThatDifferInSizeTheOldestFirst) {
  Rows rows(MostRows(10'000, 9'000));
  for (uint64_t n : {10, 4'000, 3, 2'000, 500}) rows.Update(n);
  rows.Update(4'000);
  rows.Expect(9'000 - Tolerance(10'000), 9'000);
  EXPECT_TRUE(rows.life().ladder().IsDead({1, 1}, 0));
  uint64_t dead = 0;
  for (int64_t id = 10; id < 4'010; ++id) dead += rows.life().ladder().IsDead({2, 1}, id) ? 1 : 0;
  EXPECT_EQ(dead, 10'513 - 10 - rows.size());
}

TEST(Expiry, ComesAsNearToMinRowsAsTheRowsOfOneUpdateAllow) {
  LifeOptions options;
  options.idle = {{.steps = 5}};
  options.min_rows = 500;
  Rows rows(options);
  rows.Update(1000);
  for (int i = 0; i < 20; ++i) rows.Update(0);
  rows.Expect(500, 500 + Tolerance(1000));
}

class CutOf : public ::testing::TestWithParam<uint32_t> {};

INSTANTIATE_TEST_SUITE_P(Seeds, CutOf, ::testing::Range(0u, 12u));

TEST_P(CutOf, AnySizesOfBatchesLeavesWhatItShould) {
  std::mt19937 random(GetParam());
  const auto below = [&](uint64_t n) { return random() % n; };
  const uint64_t most = std::vector<uint64_t>{40, 300, 1'000, 20'000}[GetParam() % 4];
  LifeOptions options = MostRows(most, most - below(most / 3));
  options.min_rows = below(options.keep_rows);
  options.credit = static_cast<uint32_t>(below(2) * below(10));
  options.idle = {{.steps = 30}, {.seconds = 10, .below_count = 2}};
  Rows rows(options);
  uint64_t largest = most;
  for (int step = 0; step < 150; ++step) {
    if (below(8) == 0) rows.Set(below(most - std::min(most - 1, rows.size())));
    const uint64_t fresh = below(std::vector<uint64_t>{1, most / 50 + 2, most, 3 * most}[below(4)]);
    const std::vector<int64_t> again = rows.Some(&random, below(3) == 0 ? 0.5 : 0.01);
    const uint64_t before = rows.size() + fresh, cut = rows.life().counts().cut;
    std::vector<uint64_t> expired = rows.life().counts().expired;
    rows.Update(fresh, again);
    largest = std::max<uint64_t>(largest, fresh + again.size());
    ASSERT_EQ(rows.life().rows(), rows.size());
    ASSERT_LE(rows.size(), std::max(most, rows.newest()));
    if (rows.life().counts().cut > cut) {
      ASSERT_GE(rows.size() + Tolerance(largest), std::min(options.keep_rows, before)) << step;
      ASSERT_LE(rows.size(), std::max(options.keep_rows, rows.newest())) << step;
    } else if (rows.life().counts().expired != expired) {
      ASSERT_GE(rows.size(), options.min_rows) << step;
    }
  }
}

// A life that begins when the table has rows already, all of one step, of few, or one giant step among many.
TEST(Cut, LeavesWhatItShouldWhereALifeBeginsLate) {
  const auto left = [](uint32_t iter, const std::vector<uint32_t>& steps) {
    const uint64_t most = steps.size() / 2, keep = most - most / 16;
    RowSample sample;
    for (size_t id = 0; id < steps.size(); ++id) sample.Add({steps[id], 1}, static_cast<int64_t>(id));
    const std::vector<Position> edges = sample.Edges(TableLife::RowEdges());
    TableLife life(MostRows(most, keep), iter, 0, {}, edges);
    for (size_t id = 0; id < steps.size(); ++id) life.Add({steps[id], 1}, static_cast<int64_t>(id));
    life.BeginStep(iter + 1, 0, 0);
    life.EndStep();
    EXPECT_LE(life.rows(), keep);
    EXPECT_GE(life.rows() + Tolerance(steps.size()), keep);
  };
  left(1, std::vector<uint32_t>(1'200, 1));
  left(1, std::vector<uint32_t>(100'000, 1));
  left(3'000'000, std::vector<uint32_t>(1'200, 7));
  for (uint32_t giant : {1u, 500'000u, 999'999u}) {
    std::vector<uint32_t> steps(50'000, giant);
    for (uint32_t i = 0; i < 20'000; ++i) steps.push_back(i * 50);
    left(1'000'000, steps);
  }
}

}  // namespace
}  // namespace damo
