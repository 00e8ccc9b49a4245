// The life of a table's rows: a histogram of those that live, and the ladder (row/ladder.h) that policies raise by it.
//
// Rows are counted in cells: by class of update count, and by bucket of last steps. The ladder stands on edges of
// buckets, so that raising it empties whole cells: how many rows live is known without looking at any.
//
// All of it is a function of the calls, whatever the order of Add and Remove between two others: same calls, same
// ladder. Cells of two tables with the same edges may be added up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "life/life_options.h"
#include "row/ladder.h"

namespace damo {

// What has left, and come, since the life began.
struct LifeCounts {
  uint64_t created = 0;           // by updates and sets
  std::vector<uint64_t> expired;  // by each rule of LifeOptions::idle, as they are now
  uint64_t cut = 0;               // by max_rows
  uint64_t forgotten_sightings = 0;
  bool operator==(const LifeCounts&) const = default;
};

class TableLife {
 public:
  // Of a table that has had `iter` updates and whose rows, if any, are Added next. `clock`: seconds, of any origin.
  TableLife(const LifeOptions& options, uint32_t iter, double clock);
  // As Serialize left it. Throws kCorruption.
  TableLife(std::string_view bytes, const LifeOptions& options);
  std::string Serialize() const;

  // Holds from the next EndStep on. Never lowers the ladder. Throws kInvalidArgument.
  void SetOptions(const LifeOptions& options);
  const LifeOptions& options() const;

  const Ladder& ladder() const;
  uint64_t rows() const;     // that live
  uint64_t sighted() const;  // ids that have been seen, and have no row
  const LifeCounts& counts() const;
  size_t memory_bytes() const;

  // ---- rows and sightings that come and go. Thread-safe. REQUIRES: they live, and their last step is at most that of
  // BeginStep, or, between steps, the table's iteration; what is removed was added.

  void Add(RowHeader row, int64_t id);
  void Remove(RowHeader row, int64_t id);
  void AddSighting(RowHeader sighting);
  void RemoveSighting(RowHeader sighting);

  // ---- an update of the table

  // `step`: its iteration afterwards. `ids`: at most so many rows and sightings are going to have it as their last
  // step. Allocates all that the step needs: when it throws, nothing has changed.
  void BeginStep(uint32_t step, size_t ids, double clock);
  // Raises the ladder as far as the options want it.
  void EndStep() noexcept;
  // Seconds by which the clock leapt ahead beyond what counts (half of the narrowest rule's), since this was last
  // asked; 0 if it did not.
  double TakeClockLeap();

  // How many rows options would have had removed by now, had they held in this EndStep.
  uint64_t Preview(const LifeOptions& options) const;
};

}  // namespace damo
