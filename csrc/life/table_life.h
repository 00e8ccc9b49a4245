// The life of a table's rows: a histogram of those that live, and the ladder (row/ladder.h) that policies raise by it.
//
// Rows are counted in cells: by class of update count, and by bucket of positions, that is, of last steps, or parts of
// one that brought many. The ladder stands on edges of buckets, so that raising it empties whole cells: how many rows
// live is known without looking at any.
//
// All of it is a function of the calls, whatever the order of Add and Remove between two others: same calls, same
// ladder. Where several stores have a part of a table's rows each, their lives have the same edges and the same ladder,
// and count their own rows (life/shared_life.h).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "life/histogram.h"
#include "life/life_bytes.h"
#include "life/life_clock.h"
#include "life/life_counts.h"
#include "life/life_options.h"
#include "life/resolution.h"
#include "life/set_steps.h"
#include "life/shared_life.h"
#include "row/ladder.h"

namespace damo {

// How much a life may remember.
struct LifeLimits {
  size_t buckets = kMostBuckets;  // at least 4
  size_t set_steps = 64;          // by the parts of their ids
};

class TableLife {
 public:
  // Of a table that has had `iter` updates and whose rows, if any, are Added next. `clock`: seconds, of any origin.
  // `edges`: where buckets of these rows are to begin, RowEdges() at most. Throws kInvalidArgument.
  TableLife(const LifeOptions& options, uint32_t iter, double clock, const LifeLimits& limits = {},
            std::span<const Position> edges = {});
  static size_t RowEdges(const LifeLimits& limits = {}) { return limits.buckets / 4; }
  // As Serialize left it. Throws kCorruption, or kInvalidArgument for the options.
  TableLife(std::string_view bytes, const LifeOptions& options, const LifeLimits& limits = {});
  std::string Serialize() const;

  // Holds from the next EndStep on. Never lowers the ladder. Throws kInvalidArgument; then nothing has changed.
  void SetOptions(const LifeOptions& options);
  const LifeOptions& options() const { return options_; }

  const Ladder& ladder() const { return ladder_; }
  uint64_t rows() const { return rows_.load(std::memory_order_relaxed); }  // that live
  uint64_t sighted() const {
    return sighted_.load(std::memory_order_relaxed);
  }  // ids that have been seen, without a row
  const LifeCounts& counts() const { return counts_; }
  size_t memory_bytes() const;

  // ---- rows and sightings that come and go. A row's time is that of its last step, also if it was set later.
  // Thread-safe. REQUIRES: they live, and their last step is at most that of BeginStep, or, between steps, the table's
  // iteration; what is removed was added. An update's rows allocate nothing.

  void Add(RowHeader row, int64_t id) { Count(PlaceOfNew(row, id), &rows_, 1); }
  void Remove(RowHeader row, int64_t id) { Count(Place(row, id), &rows_, kMinusOne); }
  void AddSighting(RowHeader sighting) { Count(PlaceOfSighting(sighting), &sighted_, 1); }
  void RemoveSighting(RowHeader sighting) { Count(PlaceOfSighting(sighting), &sighted_, kMinusOne); }
  // Whether any are counted where this row, or this id's sightings, would be.
  bool Counts(RowHeader row, int64_t id, bool sighting) {
    return (sighting ? PlaceOfSighting(row) : Place(row, id))->load(std::memory_order_relaxed) > 0;
  }
  // Rows that `set` has made are counted as created here; of those of updates the life knows.
  void CountCreated(uint64_t rows) { counts_.created += rows; }

  // ---- an update of the table

  // `step`: its iteration afterwards. `ids`: at most so many rows and sightings are going to have it as their last
  // step. Allocates all that the step needs: when it throws, nothing has changed. Without an EndStep it was none: the
  // next has the same step.
  void BeginStep(uint32_t step, size_t ids, double clock) { BeginStep(step, Census(ids), clock, nullptr); }
  // The same of all stores that have rows of the table: `census` is the sum of theirs, and `exchange` reaches them.
  void BeginStep(uint32_t step, const LifeCensus& census, double clock, const LifeExchange& exchange);
  // Raises the ladder as far as the options want it.
  void EndStep() noexcept;
  // The same of all stores, which get the same ladder; when it throws, the step has not ended. REQUIRES: all have the
  // options of this one, and had the same Digest() and census when it began.
  void EndStep(const LifeExchange& exchange);
  // Whether a step of all stores, which has not begun yet, may call its exchange: the same in all of them.
  bool MayExchange(uint32_t step, const LifeCensus& census, double clock) const;
  // An update of others than this table: time goes on, and that was no leap of the clock. When it throws, nothing has
  // changed.
  void PassTime(double clock);
  // By how many seconds the clock had gone ahead at the last update, of whatever table.
  double clock_gap() const { return clock_.gap(); }

  // What this store adds to the census of a step that brings so many ids.
  LifeCensus Census(size_t ids) const;
  // The same number for lives with the same edges, ladder, time and options.
  uint64_t Digest() const;

  // How many rows options would have had removed by now, had they held in this EndStep. Throws kInvalidArgument.
  uint64_t Preview(const LifeOptions& options) const;

 private:
  friend class LifeTally;

  TableLife(const LifeState& state, const LifeOptions& options, const LifeLimits& limits);
  LifeState State() const;

  static constexpr uint64_t kMinusOne = ~uint64_t{0};  // of numbers that wrap

  // Where rows are counted.
  Counter* Place(RowHeader row, int64_t id) {
    if (row.count == 0) {
      if (Counter* part = set_steps_.Find(row.last_step, id)) return part;
    }
    return &histogram_.Cell(CountClass(row.count), histogram_.Find(row.last_step, id));
  }
  Counter* PlaceOfNew(RowHeader row, int64_t id) {
    if (row.count == 0) {
      if (Counter* part = set_steps_.FindOrAdd(row.last_step, id)) return part;
    }
    return Place(row, id);
  }
  Counter* PlaceOfSighting(RowHeader sighting) {
    return &histogram_.Cell(kSightingClass, histogram_.Find(PositionOf(sighting.last_step, kIdParts - 1)));
  }
  static void Count(Counter* place, Counter* all, uint64_t n) {
    place->fetch_add(n, std::memory_order_relaxed);
    all->fetch_add(n, std::memory_order_relaxed);
  }

  // Those from `begin` up to `end`.
  struct Classes {
    size_t begin, end;
  };
  static Classes ClassesOf(const IdleRule& rule);

  // Of the last one, beyond all rows.
  Position EndOf(size_t b) const {
    return b + 1 == histogram_.size() ? kEndOfPositions : histogram_.bucket(b + 1).first;
  }
  bool Opens(uint32_t step, const LifeCensus& census, double time) const;
  size_t PartsOf(const LifeCensus& census) const;
  size_t Room() const;
  void PrepareToOpen(uint32_t step, size_t buckets, uint64_t rows, const LifeExchange& exchange);
  std::vector<Histogram::Contents> ContentsOfBuckets() const;
  uint64_t RowsOf(Classes classes, size_t b) const;
  uint64_t Take(Classes classes, size_t from, size_t to) noexcept;
  bool IsDue(const IdleRule& rule, const Bucket& end) const { return IsDue(rule, end, iter_, clock_); }
  static bool IsDue(const IdleRule& rule, const Bucket& end, uint32_t step, const LifeClock& clock);
  // Whether one of the rules has more buckets go, if rows are in them.
  bool AnyIsDue(uint32_t step, const LifeClock& clock) const;
  uint64_t Expire(const IdleRule& rule, Classes classes, uint64_t floor, Position* passed) noexcept;
  void NoteUpdate() noexcept;
  void ForgetSightings() noexcept;

  // ---- shared_life.cc

  TableLife OfAll(const LifeExchange& exchange) const;
  bool GoesByOthers() const;
  void EndStepAs(const TableLife& all) noexcept;
  uint64_t TakeBefore(size_t count_class, Position position) noexcept;

  // ---- cut.cc

  uint64_t Cut() noexcept;
  uint64_t CutAt(Position cut) noexcept;
  size_t EndedBy(Position cut, size_t count_class) const;

  // ---- fold.cc

  // Those from `begin` up to `end`.
  struct Buckets {
    size_t begin, end;
  };
  Buckets BucketsOf(const SetSteps::Step& step) const;
  void FoldSetSteps() noexcept;
  void FoldMixedSetSteps() noexcept;
  void Fold(size_t begin, size_t end) noexcept;

  const LifeLimits limits_;
  LifeOptions options_;
  Resolution resolution_;
  Histogram histogram_;
  SetSteps set_steps_;
  Ladder ladder_;
  LifeCounts counts_;
  Counter rows_{0}, sighted_{0};
  uint64_t rows_before_ = 0;      // at BeginStep
  LifeCensus census_;             // of the last BeginStep
  std::vector<Position> passed_;  // by each rule: no row of its classes lives before this
  Position forgotten_ = 0;        // the same of sightings

  uint32_t iter_;
  LifeClock clock_;
  double updated_ = 0;  // the time of the last update
};

}  // namespace damo
