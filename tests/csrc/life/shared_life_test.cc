// The lives of one table in several stores: as one life of all rows.
#include "life/shared_life.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/status.h"
#include "life/life_combined.h"
#include "life/life_recount.h"
#include "life/table_life.h"

namespace damo {
namespace {

// Rows over so many stores, each id in that of its remainder.
class Stores {
 public:
  Stores(const LifeOptions& options, size_t n) : rows_(n) {
    for (size_t i = 0; i < n; ++i) lives_.push_back(std::make_unique<TableLife>(options, 0, 0));
  }

  void Update(const std::vector<int64_t>& ids, double clock) {
    LifeCensus all;
    std::vector<size_t> own(lives_.size());
    for (const int64_t id : ids) ++own[Store(id)];
    for (size_t i = 0; i < lives_.size(); ++i) {
      const LifeCensus one = lives_[i]->Census(own[i]);
      all = {all.ids + one.ids, all.rows + one.rows, all.newest + one.newest};
    }
    ++iter_;
    const size_t before = exchanges_;
    const bool foreseen = lives_[0]->MayExchange(iter_, all, clock);
    for (const auto& life : lives_) EXPECT_EQ(life->MayExchange(iter_, all, clock), foreseen);
    InAll([&](TableLife* life, const LifeExchange& exchange) { life->BeginStep(iter_, all, clock, exchange); });
    for (const int64_t id : ids) {
      const auto row = Find(id);
      const uint32_t count = row == nullptr ? 0 : row->count;
      if (row != nullptr && row->last_step == iter_) continue;
      if (row != nullptr) Life(id).Remove(*row, id);
      rows_[Store(id)][id] = {iter_, count + 1};
      Life(id).Add({iter_, count + 1}, id);
    }
    InAll([&](TableLife* life, const LifeExchange& exchange) { life->EndStep(exchange); });
    EXPECT_TRUE(foreseen || exchanges_ == before);
    unneeded_ += static_cast<size_t>(foreseen && exchanges_ == before);
    for (size_t i = 0; i < lives_.size(); ++i) {
      std::erase_if(rows_[i], [&](const auto& r) { return lives_[i]->ladder().IsDead(r.second, r.first); });
    }
  }
  void Set(int64_t id) {
    const auto row = Find(id);
    Life(id).Add({iter_, 0}, id);
    if (row != nullptr) Life(id).Remove(*row, id);
    rows_[Store(id)][id] = {iter_, 0};
  }
  // Has each life written, and read again.
  void Reopen(const LifeOptions& options) {
    for (auto& life : lives_) life = std::make_unique<TableLife>(life->Serialize(), options);
  }

  std::map<int64_t, uint32_t> rows() const {  // with their counts
    std::map<int64_t, uint32_t> all;
    for (const auto& rows : rows_) {
      for (const auto& [id, row] : rows) all[id] = row.count;
    }
    return all;
  }
  uint64_t counted() const {
    uint64_t rows = 0;
    for (const auto& life : lives_) rows += life->rows();
    return rows;
  }
  LifeCounts counts() const {
    LifeCounts sum = lives_[0]->counts();
    for (size_t i = 1; i < lives_.size(); ++i) {
      const LifeCounts& counts = lives_[i]->counts();
      sum.created += counts.created;
      sum.cut += counts.cut;
      for (size_t r = 0; r < sum.expired.size(); ++r) sum.expired[r] += counts.expired[r];
    }
    return sum;
  }
  const TableLife& life(size_t i) const { return *lives_[i]; }
  size_t exchanges() const { return exchanges_; }
  size_t unneeded() const { return unneeded_; }  // updates of which MayExchange said that they may, and that did not

 private:
  size_t Store(int64_t id) const { return static_cast<size_t>(id) % lives_.size(); }
  TableLife& Life(int64_t id) { return *lives_[Store(id)]; }
  const RowHeader* Find(int64_t id) const {
    const auto& rows = rows_[Store(id)];
    const auto found = rows.find(id);
    return found == rows.end() ? nullptr : &found->second;
  }
  // They talk to each other as they are before any has gone on.
  template <class F>
  void InAll(F f) {
    std::vector<std::string> told;
    for (const auto& life : lives_) told.push_back(life->Serialize());
    std::vector<bool> asked(lives_.size());
    for (size_t i = 0; i < lives_.size(); ++i) {
      f(lives_[i].get(), [&](const std::string& own) {
        EXPECT_EQ(own, told[i]);
        asked[i] = true;
        ++exchanges_;
        return told;
      });
    }
    for (size_t i = 0; i < lives_.size(); ++i) EXPECT_EQ(asked[i], asked[0]);
    for (size_t i = 0; i < lives_.size(); ++i) EXPECT_EQ(lives_[i]->Digest(), lives_[0]->Digest());
  }

  std::vector<std::unique_ptr<TableLife>> lives_;
  std::vector<std::map<int64_t, RowHeader>> rows_;
  uint32_t iter_ = 0;
  size_t exchanges_ = 0, unneeded_ = 0;
};

LifeOptions OptionsOf(uint32_t seed) {
  std::mt19937 dice(seed);
  LifeOptions options;
  if (dice() % 2 == 0) options.idle.push_back({.steps = 5 + static_cast<uint32_t>(dice() % 40)});
  if (dice() % 2 == 0) options.idle.push_back({.seconds = 30, .below_count = 4});
  if (dice() % 3 > 0) {
    options.max_rows = 1 + dice() % 300;
    options.keep_rows = options.max_rows - options.max_rows / 16;
    options.credit = dice() % 2 == 0 ? 0 : 7;
  }
  if (dice() % 2 == 0) options.min_rows = std::min<uint64_t>(options.max_rows, 20 + dice() % 60);
  return options;
}

TEST(SharedLifeTest, SameRowsLiveHoweverManyStoresHaveThem) {
  for (uint32_t seed = 0; seed < 16; ++seed) {
    const LifeOptions options = OptionsOf(seed);
    std::mt19937 dice(seed + 1000);
    Stores one(options, 1), two(options, 2), five(options, 5);
    double clock = 0;
    for (int step = 0; step < 200; ++step) {
      std::vector<int64_t> ids;
      const size_t most = dice() % 20 == 0 ? 200 : 12;
      for (size_t n = dice() % most; n > 0; --n) ids.push_back(dice() % (dice() % 3 == 0 ? 2000 : 150));
      clock += dice() % 50 == 0 ? 20 : 0.5;
      const auto set = dice() % 5 == 0 ? static_cast<int64_t>(dice() % 500) : -1;
      const bool reopens = dice() % 60 == 0;
      for (Stores* stores : {&one, &two, &five}) {
        if (set >= 0 && stores->rows().size() < options.max_rows) stores->Set(set);
        if (reopens) stores->Reopen(options);
        stores->Update(ids, clock);
      }
      ASSERT_EQ(two.rows(), one.rows()) << "seed " << seed << ", step " << step;
      ASSERT_EQ(five.rows(), one.rows()) << "seed " << seed << ", step " << step;
      for (Stores* stores : {&one, &two, &five}) {
        ASSERT_EQ(stores->counted(), stores->rows().size());
        ASSERT_EQ(stores->life(0).ladder(), one.life(0).ladder());
        ASSERT_EQ(stores->counts(), one.counts());
      }
    }
  }
}

TEST(SharedLifeTest, LimitIsOfAllRowsAtEveryStep) {
  const LifeOptions options{.idle = {}, .max_rows = 100, .keep_rows = 100};
  Stores stores(options, 4);
  int64_t id = 0;
  for (int step = 0; step < 200; ++step) {
    stores.Update({id, id + 1, id + 2, id + 3, id + 7}, 0);
    id += 4;
    EXPECT_LE(stores.rows().size(), 100u);
  }
  EXPECT_GT(stores.rows().size(), 90u);
}

TEST(SharedLifeTest, TalksOnlyWhereRowsOfOthersDecide) {
  Stores stores({.idle = {{.steps = 9}}, .max_rows = 1000, .keep_rows = 900}, 2);
  for (int64_t step = 0; step < 40; ++step) stores.Update({step, step + 1, step + 2}, 0);
  EXPECT_EQ(stores.exchanges(), 0u);
  EXPECT_EQ(stores.unneeded(), 0u);
}

TEST(SharedLifeTest, FailureToTalkEndsNoStep) {
  TableLife life({.idle = {}, .max_rows = 2, .keep_rows = 2}, 0, 0);
  life.BeginStep(1, LifeCensus{3, 0, 0}, 0, nullptr);
  for (int64_t id = 0; id < 3; ++id) life.Add({1, 1}, id);
  const Ladder before = life.ladder();
  const LifeExchange fails = [](const std::string&) -> std::vector<std::string> {
    throw Error(ErrorCode::kIo, "nobody there");
  };
  EXPECT_THROW(life.EndStep(fails), Error);
  EXPECT_EQ(life.ladder(), before);
  EXPECT_EQ(life.rows(), 3u);
}

TEST(SharedLifeTest, RefusesToAddUpWhatIsNotAlike) {
  const TableLife one({}, 5, 0), other({}, 6, 0);
  EXPECT_THROW(SumOfLives({one.Serialize(), other.Serialize()}), Error);
  EXPECT_THROW(SumOfLives({}), Error);
  EXPECT_NE(one.Digest(), other.Digest());
}

TEST(SharedLifeTest, AddsUpMoreSetStepsThanALifeMayHave) {
  TableLife one({}, 400, 0), other({}, 400, 0);
  for (uint32_t step = 1; step <= 200; ++step) one.Add({step, 0}, step);
  for (uint32_t step = 201; step <= 400; ++step) other.Add({step, 0}, step);
  const LifeState sum = SumOfLives({one.Serialize(), other.Serialize()});
  uint64_t in_cells = 0;
  for (const LifeState::Cell& cell : sum.cells) in_cells += cell.rows;
  EXPECT_EQ(in_cells, 400 - SetSteps::kMost);
  EXPECT_EQ(sum.parts.size(), SetSteps::kMost);
  EXPECT_EQ(sum.parts.front().step, 401 - SetSteps::kMost);
}

TEST(SharedLifeTest, AlignedLivesAreAlikeAndKeepTheirOwnCounts) {
  const LifeOptions options{.idle = {{.steps = 4}}};
  TableLife one(options, 0, 0), other(options, 0, 100);
  for (uint32_t step = 1; step <= 12; ++step) {
    for (TableLife* life : {&one, &other}) {
      if (life == &other && step > 9) continue;
      life->BeginStep(step, 1, life == &one ? step : 100 + 2.0 * step);
      life->Add({step, 1}, step);
      life->EndStep();
    }
  }
  EXPECT_NE(one.Digest(), other.Digest());
  const std::vector<std::string> lives{one.Serialize(), other.Serialize()};
  LifeRecount of_one(AlignedLife(lives[0], lives), 12), of_other(AlignedLife(lives[1], lives), 12);
  const TableLife first(of_one.Serialize(), options), second(of_other.Serialize(), options);
  EXPECT_EQ(first.Digest(), second.Digest());
  EXPECT_EQ(first.ladder(), one.ladder());
  EXPECT_EQ(first.counts(), one.counts());
  EXPECT_EQ(second.counts(), other.counts());
  EXPECT_EQ(first.rows(), 0u);
  EXPECT_FALSE(of_one.Count({.last_step = 2, .count = 1}, 2, false));
  EXPECT_TRUE(of_one.Count({.last_step = 12, .count = 1}, 12, false));
}

}  // namespace
}  // namespace damo
