// The rows as they are at one moment, on their way to the journal while training goes on.
//
// Begin marks the segments that hold rows which the journal needs. Write takes them one after the other: it copies
// those rows and adds the copies to the journal. Whoever is about to update rows of a segment that has not been taken
// calls Keep first, which copies them into a reserve, from where Write takes them, too. So the journal gets every row
// as it was at Begin; as long as a snapshot is active nothing may be written to the RowStore.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "cache/row_cache.h"
#include "engine/journal.h"
#include "engine/row_copies.h"

namespace damo {

// All methods REQUIRE the store's mutex; Write gives it up while it adds to the journal.
class Snapshot {
 public:
  using Tables = RowCopies::Tables;

  // Notifies `progress`, which goes with the store's mutex, whenever rows have been written. Keeps at most
  // `reserve_bytes` of rows.
  Snapshot(Journal* journal, RowCache* cache, const Tables* tables, std::condition_variable* progress,
           size_t reserve_bytes)
      : journal_(journal), cache_(cache), tables_(tables), progress_(progress), reserve_bytes_(reserve_bytes) {}

  bool active() const { return active_; }
  // Whether rows that are updated have to be kept first.
  bool keeps() const { return active_ && !segments_.empty(); }

  // REQUIRES: !active(), and no other write is under way.
  void Begin();
  // Adds to the journal what it needs at Begin. REQUIRES: active(); one call.
  void Write(std::unique_lock<std::mutex>& lock);
  // `complete`: Write has not thrown, and the journal is in a checkpoint.
  void End(bool complete);

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

  Journal* const journal_;
  RowCache* const cache_;
  const Tables* const tables_;
  std::condition_variable* const progress_;
  const size_t reserve_bytes_;
  bool active_ = false;
  uint8_t flag_ = 0;               // of the rows that the journal needs
  std::deque<uint32_t> segments_;  // yet to be taken
  std::mutex kept_mutex_;          // guards the next two against concurrent calls of Keep
  std::vector<RowCopies> kept_;
  size_t kept_bytes_ = 0;
  uint64_t rows_written_ = 0;
};

}  // namespace damo
