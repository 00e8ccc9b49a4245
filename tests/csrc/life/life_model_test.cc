// Random runs against a plain model.
#include "life/life_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "life/life_tally.h"
#include "life/table_life.h"

namespace damo {
namespace {

using testing::LifeModel;

class Dice {
 public:
  explicit Dice(uint32_t seed) : engine_(seed) {}
  uint64_t Below(uint64_t n) { return engine_() % n; }
  bool Chance(double p) { return static_cast<double>(engine_()) < p * 4294967296.0; }
  template <class T>
  T Of(std::initializer_list<T> values) {
    return values.begin()[Below(values.size())];
  }
  template <class T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) std::swap((*values)[i - 1], (*values)[Below(i)]);
  }

 private:
  std::mt19937 engine_;
};

LifeOptions DrawOptions(Dice* dice) {
  LifeOptions options;
  options.sightings = 3;
  options.within_steps = dice->Of({0u, 3u, 40u});
  for (uint64_t n = dice->Below(4); n > 0; --n) {
    IdleRule rule{.below_count = dice->Of<uint64_t>({0, 0, 1, 2, 4, 64, kMostBelowCount})};
    if (dice->Chance(0.5)) {
      rule.steps = dice->Of({1u, 5u, 20u, 200u});
    } else {
      rule.seconds = dice->Of({5.0, 40.0, 300.0});
    }
    options.idle.push_back(rule);
  }
  if (dice->Chance(0.6)) {
    options.max_rows = dice->Of<uint64_t>({1, 8, 40, 150});
    options.keep_rows = std::max<uint64_t>(1, options.max_rows * dice->Below(17) / 16);
    options.credit = dice->Of({0u, 0u, 4u, 1000u});
  }
  if (dice->Chance(0.4)) options.min_rows = std::min<uint64_t>(options.max_rows, dice->Below(60));
  return options;
}

// Two lives of one model: the rows of the second come in another order, in tallies, and it is written and read between.
class RandomRun {
 public:
  RandomRun(uint32_t seed, const LifeLimits& limits, bool widens)
      : dice_(seed),
        limits_(limits),
        // So that each step has a bucket of its own.
        narrow_{.sightings = 3, .idle = {{.steps = 500}}},
        model_(widens ? DrawOptions(&dice_) : Narrow(DrawOptions(&dice_))),
        widens_(widens) {
    life_ = std::make_unique<TableLife>(model_.options(), 0, 0, limits_);
    other_ = std::make_unique<TableLife>(model_.options(), 0, 0, limits_);
  }

  LifeModel& model() { return model_; }
  const TableLife& life() const { return *life_; }
  Dice& dice() { return dice_; }

  void BetweenSteps() {
    if (dice_.Chance(0.1)) BeginInVain();
    if (dice_.Chance(0.15)) Set();
    if (dice_.Chance(0.1)) Delete();
    if (dice_.Chance(0.03)) SetOptions();
    if (dice_.Chance(0.2)) UpdateOthers();
    if (dice_.Chance(0.1)) Reread();
  }

  void Update() {
    const uint32_t step = model_.iter + 1;
    std::set<int64_t> ids, seen;
    const uint64_t many = dice_.Chance(0.05) ? 300 : 12;
    for (uint64_t n = dice_.Below(many); n > 0; --n)
      ids.insert(static_cast<int64_t>(dice_.Below(1 + dice_.Below(300))));
    for (uint64_t n = dice_.Below(4); n > 0; --n) seen.insert(static_cast<int64_t>(dice_.Below(60)));
    clock_ += dice_.Of({0.0, 0.25, 1.0, 1.0, 4.0, 25.0});
    if (dice_.Chance(0.05)) clock_ -= dice_.Of({1.0, 10.0, 1e4});
    if (dice_.Chance(0.02)) clock_ += 1e5;
    const size_t most = ids.size() + seen.size() + dice_.Below(3);
    life_->BeginStep(step, most, clock_);
    other_->BeginStep(step, most, clock_);
    model_.BeginStep(step, most, clock_);
    Apply(step, ids, seen);
    life_->EndStep();
    other_->EndStep();
  }

  void ExpectSame() {
    ASSERT_EQ(life_->rows(), model_.rows.size());
    ASSERT_EQ(life_->sighted(), model_.sightings.size());
    ASSERT_EQ(life_->Serialize(), other_->Serialize());
    ASSERT_LE(life_->ladder().highest(), model_.iter);
    for (const auto& [id, row] : model_.rows) ASSERT_FALSE(life_->ladder().IsDead(row, id)) << id;
    for (const auto& [id, sighting] : model_.sightings) ASSERT_FALSE(life_->ladder().IsDeadSighting(sighting)) << id;
  }

 private:
  struct Change {
    bool is_row;
    RowHeader from, to;  // count 0 and step 0: nothing; rows of step 0 are never set here
    int64_t id;
  };

  LifeOptions Narrow(LifeOptions options) {
    options.idle.insert(options.idle.end(), narrow_.idle.begin(), narrow_.idle.end());
    return options;
  }

  void Apply(uint32_t step, const std::set<int64_t>& ids, const std::set<int64_t>& seen) {
    std::vector<Change> changes;
    for (int64_t id : ids) {
      const auto found = model_.rows.find(id);
      const bool is_new = found == model_.rows.end();
      changes.push_back({true, is_new ? RowHeader{} : found->second, {step, is_new ? 1 : found->second.count + 1}, id});
      if (dice_.Chance(0.05)) changes.back().to.count = changes.back().to.count * 2 - 1;  // the next class, if not more
      model_.rows[id] = changes.back().to;
    }
    for (int64_t id : seen) {
      const auto found = model_.sightings.find(id);
      const bool is_new = found == model_.sightings.end();
      changes.push_back({false, is_new ? RowHeader{} : found->second, {step, 1}, id});
      model_.sightings[id] = {step, 1};
    }
    for (const Change& change : changes) Make(change, life_.get());
    dice_.Shuffle(&changes);
    LifeTally tally(other_.get()), second(other_.get());
    for (const Change& change : changes) Make(change, dice_.Chance(0.5) ? &tally : &second);
  }

  template <class Life>
  static void Make(const Change& change, Life* life) {
    const bool is_new = change.from.count == 0 && change.from.last_step == 0;
    if (change.is_row) {
      if (!is_new) life->Remove(change.from, change.id);
      life->Add(change.to, change.id);
    } else {
      if (!is_new) life->RemoveSighting(change.from);
      life->AddSighting(change.to);
    }
  }

  // An update that fails.
  void BeginInVain() {
    life_->BeginStep(model_.iter + 1, 3, clock_);
    other_->BeginStep(model_.iter + 1, 3, clock_);
    model_.BeginInVain(model_.iter + 1, 3);
  }

  void UpdateOthers() {
    clock_ += dice_.Of({-2.0, 1.0, 3.0, 100.0});
    life_->PassTime(clock_);
    other_->PassTime(clock_);
    model_.PassTime(clock_);
  }

  void Set() {
    if (model_.iter == 0) return;
    const uint64_t most = model_.options().max_rows;
    std::vector<int64_t> ids;
    for (uint64_t n = dice_.Below(dice_.Chance(0.3) ? 200 : 5); n > 0; --n) {
      ids.push_back(static_cast<int64_t>(dice_.Below(600)));
    }
    for (TableLife* life : {life_.get(), other_.get()}) {
      std::map<int64_t, RowHeader> rows = model_.rows;
      for (int64_t id : ids) {
        const auto found = rows.find(id);
        if (found == rows.end() && rows.size() >= most) continue;
        if (found != rows.end()) life->Remove(found->second, id);
        life->Add({model_.iter, 0}, id);
        rows[id] = {model_.iter, 0};
      }
      if (life == other_.get()) model_.rows = rows;
    }
  }

  void Delete() {
    for (uint64_t n = dice_.Below(30); n > 0; --n) {
      const auto found = model_.rows.find(static_cast<int64_t>(dice_.Below(300)));
      if (found == model_.rows.end()) continue;
      life_->Remove(found->second, found->first);
      other_->Remove(found->second, found->first);
      model_.rows.erase(found);
    }
  }

  void SetOptions() {
    const LifeOptions options = widens_ ? DrawOptions(&dice_) : Narrow(DrawOptions(&dice_));
    life_->SetOptions(options);
    other_->SetOptions(options);
    model_.SetOptions(options);
  }

  void Reread() { other_ = std::make_unique<TableLife>(other_->Serialize(), model_.options(), limits_); }

  Dice dice_;
  const LifeLimits limits_;
  const LifeOptions narrow_;
  LifeModel model_;
  const bool widens_;
  std::unique_ptr<TableLife> life_, other_;
  double clock_ = 0;
};

class LifeOf : public ::testing::TestWithParam<uint32_t> {};

INSTANTIATE_TEST_SUITE_P(Seeds, LifeOf, ::testing::Range(0u, 30u));

// Where each step has a bucket, rows go exactly when the rules say.
TEST_P(LifeOf, FewStepsIsThatOfTheModel) {
  RandomRun run(GetParam(), {.set_steps = 200}, false);
  for (int step = 0; step < 400; ++step) {
    run.BetweenSteps();
    run.Update();
    run.model().EndStep();
    ASSERT_NO_FATAL_FAILURE(run.ExpectSame()) << step;
    uint64_t before = 0;
    for (uint64_t n : run.model().expired) before += n;
    uint64_t expired = 0;
    for (uint64_t n : run.life().counts().expired) expired += n;
    ASSERT_GE(expired, before);  // the same, but that rules that stay keep their counts
    ASSERT_EQ(run.life().counts().cut, run.model().cut);
  }
}

// Wherever edges are: no row goes sooner than a rule says, those that a cut spares are few enough, and the counts are
// those of the rows.
TEST_P(LifeOf, FewBucketsLetsNoRowGoTooSoon) {
  RandomRun run(GetParam(), {.buckets = 4 + GetParam() % 9, .set_steps = GetParam() % 5}, true);
  for (int step = 0; step < 400; ++step) {
    run.BetweenSteps();
    run.Update();
    LifeModel& model = run.model();
    const LifeOptions& options = model.options();
    const auto is_idle = [&](RowHeader row) {
      return std::any_of(options.idle.begin(), options.idle.end(), [&](const IdleRule& rule) {
        if (rule.below_count > 0 && row.count >= rule.below_count) return false;
        return rule.steps > 0 ? model.iter - row.last_step > rule.steps
                              : model.IdleTime(row, rule.seconds) >= rule.seconds;
      });
    };
    const uint64_t before = model.rows.size();
    std::vector<RowHeader> gone;
    uint64_t newest = 0;
    std::erase_if(model.rows, [&](const auto& row) {
      const bool is_dead = run.life().ladder().IsDead(row.second, row.first);
      if (is_dead) gone.push_back(row.second);
      newest += row.second.last_step == model.iter ? 1 : 0;
      return is_dead;
    });
    std::erase_if(model.sightings, [&](const auto& s) {
      const bool is_dead = run.life().ladder().IsDeadSighting(s.second);
      EXPECT_TRUE(!is_dead || model.iter - s.second.last_step > options.within_steps);
      return is_dead;
    });
    ASSERT_NO_FATAL_FAILURE(run.ExpectSame()) << step;
    ASSERT_LE(model.rows.size(), std::max(options.max_rows, newest)) << step;
    for (RowHeader row : gone) {
      ASSERT_LT(row.last_step, model.iter);
      ASSERT_TRUE(is_idle(row) || before > options.max_rows) << step;
    }
    if (before <= options.max_rows && !gone.empty()) {
      ASSERT_GE(model.rows.size(), options.min_rows) << step;
    }
  }
}

// However many steps a rule has: a row goes at most a 256th of them later.
TEST(Life, OfManyStepsIsOneOf256thsOfARule) {
  LifeOptions options;
  options.idle = {{.steps = 256, .below_count = 2}, {.steps = 20'000, .below_count = 4}, {.steps = 60'000}};
  TableLife life(options, 0, 0);
  std::map<uint32_t, uint32_t> count_of;  // of the row that came at a step
  for (uint32_t step = 1; step <= 160'000; ++step) {
    life.BeginStep(step, 1, 0);
    if (step % 3 == 0) {
      const uint32_t count = step % 2 == 0 ? 1 : step % 5 == 0 ? 3 : 1000;
      life.Add({step, count}, step);
      count_of[step] = count;
    }
    life.EndStep();
    if (step % 151 != 0) continue;
    for (auto row = count_of.begin(); row != count_of.end();) {
      const uint32_t idle = step - row->first, limit = row->second == 1 ? 256 : row->second == 3 ? 20'000 : 60'000;
      const bool is_dead = life.ladder().IsDead({row->first, row->second}, row->first);
      if (is_dead) {
        ASSERT_GT(idle, limit);
      } else {
        ASSERT_LE(idle, limit + limit / 256) << step << " " << row->first;
      }
      row = is_dead ? count_of.erase(row) : std::next(row);
    }
    ASSERT_EQ(life.rows(), count_of.size());
  }
}

}  // namespace
}  // namespace damo
