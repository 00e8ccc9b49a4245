#include "life/table_life.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "base/status.h"

namespace damo {
namespace {

// Fewer buckets take little memory, whether they have rows or not.
constexpr size_t kLeastMerged = 64;

const LifeOptions& Checked(const LifeOptions& options) {
  CheckLifeOptions(options);
  return options;
}

std::vector<Bucket> WithEdges(std::vector<Bucket> buckets, std::span<const Position> edges) {
  for (const Position edge : edges) buckets.push_back({edge, 0});
  std::sort(buckets.begin(), buckets.end(), [](const Bucket& a, const Bucket& b) { return a.first < b.first; });
  buckets.erase(std::unique(buckets.begin(), buckets.end()), buckets.end());
  return buckets;
}

double Checked(double clock) {
  if (std::isfinite(clock)) return clock;
  throw Error(ErrorCode::kInvalidArgument, "clock: expected a finite number of seconds, got " + std::to_string(clock));
}

}  // namespace

TableLife::TableLife(const LifeOptions& options, uint32_t iter, double clock, const LifeLimits& limits,
                     std::span<const Position> edges)
    : limits_(limits),
      options_(Checked(options)),
      resolution_(options),
      histogram_(WithEdges(resolution_.Divide(uint64_t{iter} + 1, limits.buckets / 2), edges), limits.buckets),
      passed_(options.idle.size()),
      iter_(iter),
      clock_(Checked(clock)) {
  counts_.expired.resize(options.idle.size());
}

TableLife::TableLife(std::string_view bytes, const LifeOptions& options, const LifeLimits& limits)
    : TableLife(DecodeLife(bytes), options, limits) {}

TableLife::TableLife(const LifeState& state, const LifeOptions& options, const LifeLimits& limits)
    : limits_(limits),
      options_(Checked(options)),
      resolution_(options),
      histogram_(state.buckets, limits.buckets),
      set_steps_(state.first_set_step, state.too_many_set_steps),
      ladder_(state.ladder),
      counts_(state.counts),
      iter_(state.iter),
      clock_(state.time, state.clock, state.leaps),
      updated_(state.updated) {
  for (const LifeState::Cell& cell : state.cells) {
    Count(&histogram_.Cell(cell.count_class, cell.bucket), cell.count_class == kSightingClass ? &sighted_ : &rows_,
          cell.rows);
  }
  for (const LifeState::Part& part : state.parts) Count(set_steps_.Part(part.step, part.part), &rows_, part.rows);
  options_.idle = state.rules;  // which the counts are of
  SetOptions(options);
}

std::string TableLife::Serialize() const { return EncodeLife(State()); }

LifeState TableLife::State() const {
  LifeState state;
  state.iter = iter_;
  state.time = clock_.time();
  state.updated = updated_;
  state.clock = clock_.reading();
  state.leaps = clock_.leaps();
  state.ladder = ladder_;
  state.counts = counts_;
  state.rules = options_.idle;
  for (size_t b = 0; b < histogram_.size(); ++b) state.buckets.push_back(histogram_.bucket(b));
  for (uint32_t c = 0; c < kLadderClasses; ++c) {
    for (uint32_t b = 0; b < histogram_.size() && histogram_.Has(c); ++b) {
      const uint64_t rows = histogram_.Rows(c, b, b + 1);
      if (rows > 0) state.cells.push_back({c, b, rows});
    }
  }
  set_steps_.ForEachPart(
      [&](uint32_t step, uint32_t part, uint64_t rows) { state.parts.push_back({step, part, rows}); });
  state.first_set_step = set_steps_.first();
  state.too_many_set_steps = set_steps_.overflowed();
  return state;
}

void TableLife::SetOptions(const LifeOptions& options) {
  CheckLifeOptions(options);
  LifeOptions changed = options;
  Resolution resolution(options);
  std::vector<Position> passed(options.idle.size());
  std::vector<uint64_t> expired;
  std::vector<IdleRule> before = options_.idle;
  std::vector<uint64_t> counts = counts_.expired;
  for (const IdleRule& rule : options.idle) {
    const auto same = std::find(before.begin(), before.end(), rule);
    const auto i = same - before.begin();
    expired.push_back(same == before.end() ? 0 : counts[static_cast<size_t>(i)]);
    if (same == before.end()) continue;
    before.erase(same);
    counts.erase(counts.begin() + i);
  }
  options_ = std::move(changed);
  resolution_ = std::move(resolution);
  passed_ = std::move(passed);
  forgotten_ = 0;
  counts_.expired = std::move(expired);
}

size_t TableLife::memory_bytes() const {
  return sizeof *this - sizeof histogram_ + histogram_.memory_bytes() + set_steps_.memory_bytes();
}

// ---- a step

bool TableLife::Opens(uint32_t step, const LifeCensus& census, double time) const {
  const size_t last = histogram_.size() - 1;
  const Bucket& bucket = histogram_.bucket(last);
  if (step == StepOf(bucket.first)) return false;
  if (step - StepOf(bucket.first) >= resolution_.steps() || time - bucket.time >= resolution_.seconds()) return true;
  return census.newest + census.ids > resolution_.RowsOf(census.rows);
}

// Beyond so many buckets some are merged, or there is to be room for twice as many. That is a matter of how many there
// are, not of how many there is room for, which a life that is read again does not know.
size_t TableLife::Room() const {
  return std::min(std::max(std::bit_ceil(histogram_.size()), kLeastMerged), histogram_.most());
}

// Merges an eighth of the buckets, if they may be as coarse as that or there can be no more.
void TableLife::PrepareToOpen(uint32_t step, size_t buckets, uint64_t rows, const LifeExchange& exchange) {
  const size_t n = histogram_.size();
  const bool is_full = n + buckets > histogram_.most();
  const size_t room = Room();
  if (n + buckets > room) {
    const auto cost = [&](const Histogram::Neighbours& neighbours) {
      return resolution_.CostOf(neighbours, step, clock_, rows);
    };
    const auto contents = exchange ? OfAll(exchange).ContentsOfBuckets() : ContentsOfBuckets();
    const size_t most = room - std::min(std::max(room / 8, buckets), room / 2);
    histogram_.Reserve(most + buckets);
    if (histogram_.Merge(most, contents, cost, is_full ? std::numeric_limits<double>::infinity() : 1)) return;
  }
  histogram_.Reserve(n + buckets);
}

// As many as a step can be divided into where there are few buckets.
size_t TableLife::PartsOf(const LifeCensus& census) const {
  return std::min(resolution_.PartsOf(census.ids, census.rows),
                  std::bit_floor(std::max<size_t>(histogram_.most() / 8, 1)));
}

LifeCensus TableLife::Census(size_t ids) const {
  return {ids, rows(), RowsOf({0, kCountClasses}, histogram_.size() - 1)};
}

void TableLife::BeginStep(uint32_t step, const LifeCensus& census, double clock, const LifeExchange& exchange) {
  Checked(clock);
  if (step < iter_) {
    throw Error(ErrorCode::kInvalidArgument,
                "step: expected none before " + std::to_string(iter_) + ", got " + std::to_string(step));
  }
  const double time = clock_.TimeAt(clock);
  const bool opens = Opens(step, census, time);
  const size_t parts = opens ? PartsOf(census) : 0;
  histogram_.PrepareClasses(options_.sightings > 1);
  if (set_steps_.size() > 0) histogram_.Cell(0, 0);
  clock_.Reserve();
  if (opens) PrepareToOpen(step, parts, census.rows, exchange);
  // Nothing fails from here on.
  clock_.Read(clock, resolution_.times());
  opens ? histogram_.Open(step, parts, updated_, time) : histogram_.Retime(step, time);
  iter_ = step;
  rows_before_ = rows();
  census_ = census;
  FoldSetSteps();
}

void TableLife::PassTime(double clock) {
  Checked(clock);
  clock_.Reserve();
  clock_.Read(clock, resolution_.times());
}

void TableLife::NoteUpdate() noexcept {
  updated_ = clock_.time();
  counts_.created += rows() - std::min(rows(), rows_before_);
}

void TableLife::ForgetSightings() noexcept {
  if (options_.within_steps == 0) return;
  const IdleRule rule{.steps = options_.within_steps};
  counts_.forgotten_sightings += Expire(rule, {kSightingClass, kLadderClasses}, 0, &forgotten_);
}

void TableLife::EndStep() noexcept {
  NoteUpdate();
  for (size_t i = 0; i < options_.idle.size(); ++i) {
    const IdleRule& rule = options_.idle[i];
    counts_.expired[i] += Expire(rule, ClassesOf(rule), options_.min_rows, &passed_[i]);
  }
  if (rows() > options_.max_rows) counts_.cut += Cut();
  ForgetSightings();
}

uint64_t TableLife::Preview(const LifeOptions& options) const {
  TableLife foreseen(State(), options, limits_);
  foreseen.EndStep();
  return rows() - foreseen.rows();
}

// ---- idle rules

TableLife::Classes TableLife::ClassesOf(const IdleRule& rule) {
  return {0, rule.below_count == 0 ? kCountClasses : static_cast<size_t>(std::countr_zero(rule.below_count)) + 1};
}

// Whether all rows that stand before `end` have been idle for as long as the rule says, and longer where it has steps.
bool TableLife::IsDue(const IdleRule& rule, const Bucket& end, uint32_t step, const LifeClock& clock) {
  if (rule.steps > 0) return uint64_t{StepOf(end.first - 1)} + rule.steps < step;
  return clock.IdleTime(end.time, rule.seconds) >= rule.seconds;
}

// Has the rows of buckets go that are due, the oldest first, as long as `floor` are left. `*passed`: before it, none of
// the classes live.
uint64_t TableLife::Expire(const IdleRule& rule, Classes classes, uint64_t floor, Position* passed) noexcept {
  uint64_t gone = 0;
  const Position before = *passed;
  for (size_t b = histogram_.Find(before); b + 1 < histogram_.size() && IsDue(rule, histogram_.bucket(b + 1)); ++b) {
    const uint64_t rows_here = RowsOf(classes, b);
    if (floor > 0 && rows_here > rows() - std::min(floor, rows())) break;
    if (rows_here > 0) gone += Take(classes, b, b + 1);
    *passed = EndOf(b);
  }
  for (size_t c = classes.begin; c < classes.end && *passed > before; ++c) ladder_.Raise(c, *passed);
  return gone;
}

std::vector<Histogram::Contents> TableLife::ContentsOfBuckets() const {
  std::vector<Histogram::Contents> contents(histogram_.size());
  for (size_t c = 0; c < kLadderClasses; ++c) {
    for (size_t b = 0; b < contents.size() && histogram_.Has(c); ++b) {
      (c == kSightingClass ? contents[b].sightings : contents[b].rows) += histogram_.Rows(c, b, b + 1);
    }
  }
  for (size_t i = 0; i < set_steps_.size(); ++i) {
    const Position first = PositionOf(set_steps_[i].step), end = first + kIdParts;
    for (size_t b = histogram_.Find(first); b < contents.size() && histogram_.bucket(b).first < end; ++b) {
      contents[b].rows += set_steps_[i].Rows(histogram_.bucket(b).first, EndOf(b));
    }
  }
  return contents;
}

uint64_t TableLife::RowsOf(Classes classes, size_t b) const {
  uint64_t rows = 0;
  for (size_t c = classes.begin; c < classes.end; ++c) rows += histogram_.Rows(c, b, b + 1);
  if (classes.begin > 0) return rows;
  return rows + set_steps_.Rows(histogram_.bucket(b).first, EndOf(b));
}

// REQUIRES: the last bucket is not among them.
uint64_t TableLife::Take(Classes classes, size_t from, size_t to) noexcept {
  uint64_t gone = 0;
  for (size_t c = classes.begin; c < classes.end; ++c) gone += histogram_.Take(c, from, to);
  if (classes.begin == 0) gone += set_steps_.Take(histogram_.bucket(from).first, histogram_.bucket(to).first);
  (classes.begin == kSightingClass ? sighted_ : rows_).fetch_sub(gone, std::memory_order_relaxed);
  return gone;
}

}  // namespace damo
