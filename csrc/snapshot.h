// The rows as they are at one moment, on their way to the RowStore while training goes on.
//
// Begin marks the segments that hold dirty rows. Write takes them one after the other: it copies their dirty rows and
// writes the copies. Whoever is about to update rows of a segment that has not been taken calls Keep first, which
// copies those that are dirty into a reserve, from where Write takes them, too. So the RowStore gets every row as it
// was at Begin; as long as a snapshot is active nothing newer may be written to it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "row_cache.h"
#include "row_copies.h"
#include "row_store.h"

namespace damo {

// All methods REQUIRE the store's mutex; Write gives it up while it writes.
class Snapshot {
 public:
  using Tables = RowCopies::Tables;

  // Notifies `progress`, which goes with the store's mutex, whenever rows have been written. Keeps at most
  // `reserve_bytes` of rows.
  Snapshot(RowStore* rows, RowCache* cache, const Tables* tables, std::condition_variable* progress,
           size_t reserve_bytes)
      : rows_(rows), cache_(cache), tables_(tables), progress_(progress), reserve_bytes_(reserve_bytes) {}

  bool active() const { return active_; }
  // Whether rows that are updated have to be kept first.
  bool keeps() const { return active_ && !segments_.empty(); }

  // REQUIRES: !active(), and no other write is under way.
  void Begin();
  // Writes what there is at Begin. When it throws, every row that was not written still is dirty.
  // REQUIRES: active(); one call.
  void Write(std::unique_lock<std::mutex>& lock);
  // What has not been written is given up.
  void End();

  // Whether rows of so many bytes can be kept, whichever they are.
  bool HasRoom(size_t bytes) const { return !keeps() || kept_bytes_ + bytes <= reserve_bytes_; }
  // To be called before these rows change. May run concurrently for different rows. REQUIRES: HasRoom.
  void Keep(std::span<const Slot> slots);
  // Has Write take this segment next.
  void Hurry(uint32_t segment);

  uint64_t rows_written() const { return rows_written_; }

 private:
  void WriteKept(std::unique_lock<std::mutex>& lock);
  void WriteSegment(std::unique_lock<std::mutex>& lock);

  RowStore* const rows_;
  RowCache* const cache_;
  const Tables* const tables_;
  std::condition_variable* const progress_;
  const size_t reserve_bytes_;
  bool active_ = false;
  std::deque<uint32_t> segments_;  // yet to be taken
  std::mutex kept_mutex_;          // guards the next two against concurrent calls of Keep
  std::vector<RowCopies> kept_;
  size_t kept_bytes_ = 0;
  uint64_t rows_written_ = 0;
};

}  // namespace damo
