// How a life goes on by the rows of all stores that have some of its table.
#include "life/shared_life.h"

#include <algorithm>
#include <bit>

#include "life/life_combined.h"
#include "life/table_life.h"

namespace damo {
namespace {

// SplitMix64's finaliser over what was there and what comes.
class Hash {
 public:
  void Add(uint64_t value) {
    hash_ = (hash_ ^ value) + 0x9e3779b97f4a7c15u;
    hash_ = (hash_ ^ (hash_ >> 30)) * 0xbf58476d1ce4e5b9u;
    hash_ = (hash_ ^ (hash_ >> 27)) * 0x94d049bb133111ebu;
    hash_ ^= hash_ >> 31;
  }
  void Add(double value) { Add(std::bit_cast<uint64_t>(value)); }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0;
};

void AddOptions(const LifeOptions& options, Hash* hash) {
  hash->Add(uint64_t{options.sightings});
  hash->Add(options.probability);
  hash->Add(uint64_t{options.within_steps});
  hash->Add(options.min_rows);
  hash->Add(options.max_rows);
  hash->Add(options.keep_rows);
  hash->Add(uint64_t{options.credit});
  for (const IdleRule& rule : options.idle) {
    hash->Add(uint64_t{rule.steps});
    hash->Add(rule.seconds);
    hash->Add(rule.below_count);
  }
}

}  // namespace

uint64_t TableLife::Digest() const {
  Hash hash;
  hash.Add(uint64_t{iter_});
  hash.Add(clock_.time());
  hash.Add(clock_.reading());
  hash.Add(updated_);
  for (const LifeClock::Leap& leap : clock_.leaps()) {
    hash.Add(leap.time);
    hash.Add(leap.gap);
  }
  for (size_t c = 0; c < kLadderClasses; ++c) hash.Add(ladder_.position(c));
  for (const Position passed : passed_) hash.Add(passed);
  for (size_t b = 0; b < histogram_.size(); ++b) {
    hash.Add(histogram_.bucket(b).first);
    hash.Add(histogram_.bucket(b).time);
  }
  AddOptions(options_, &hash);
  return hash.value();
}

TableLife TableLife::OfAll(const LifeExchange& exchange) const {
  return TableLife(SumOfLives(exchange(Serialize())), options_, limits_);
}

// Whether what goes at the end of this step depends on how many rows there are.
bool TableLife::GoesByOthers() const {
  if (census_.rows + census_.ids > options_.max_rows) return true;
  return options_.min_rows > 0 && AnyIsDue(iter_, clock_);
}

bool TableLife::AnyIsDue(uint32_t step, const LifeClock& clock) const {
  for (size_t i = 0; i < options_.idle.size(); ++i) {
    const size_t b = histogram_.Find(passed_[i]);
    if (b + 1 < histogram_.size() && IsDue(options_.idle[i], histogram_.bucket(b + 1), step, clock)) return true;
  }
  return false;
}

// A bucket that the step is going to open is not due in it, and the newest may be less so than it is now.
bool TableLife::MayExchange(uint32_t step, const LifeCensus& census, double clock) const {
  if (Opens(step, census, clock_.TimeAt(clock)) && histogram_.size() + PartsOf(census) > Room()) return true;
  if (census.rows + census.ids > options_.max_rows) return true;
  if (options_.min_rows == 0 || options_.idle.empty()) return false;
  LifeClock then = clock_;
  then.Reserve();
  then.Read(clock, resolution_.times());
  return AnyIsDue(step, then);
}

void TableLife::EndStep(const LifeExchange& exchange) {
  if (!GoesByOthers()) return EndStep();
  TableLife all = OfAll(exchange);
  all.EndStep();
  EndStepAs(all);
}

// Has those of its rows go that are among those that went by a step's end of `all`.
void TableLife::EndStepAs(const TableLife& all) noexcept {
  NoteUpdate();
  for (size_t i = 0; i < options_.idle.size(); ++i) {
    const Classes classes = ClassesOf(options_.idle[i]);
    for (size_t c = classes.begin; c < classes.end; ++c) counts_.expired[i] += TakeBefore(c, all.passed_[i]);
    passed_[i] = std::max(passed_[i], all.passed_[i]);
  }
  for (size_t c = 0; c < kCountClasses; ++c) counts_.cut += TakeBefore(c, all.ladder_.position(c));
  ForgetSightings();
}

// Raises the ladder of a class of rows. It stands within a bucket only where no store has rows of the class in cells.
uint64_t TableLife::TakeBefore(size_t count_class, Position position) noexcept {
  const Position from = ladder_.position(count_class);
  if (position <= from) return 0;
  uint64_t gone = histogram_.Take(count_class, histogram_.Find(from), histogram_.Find(position));
  if (count_class == 0) gone += set_steps_.Take(from, position);
  rows_.fetch_sub(gone, std::memory_order_relaxed);
  ladder_.Raise(count_class, position);
  return gone;
}

}  // namespace damo
