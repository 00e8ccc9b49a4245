// The rows as they are at one moment, on their way to the journal while training goes on.
//
// Begin marks the segments that hold rows which the journal needs. Write takes them one after the other: it copies
// those rows and adds the copies to the journal. Whoever is about to update rows of a segment that has not been taken
// calls Keep first, which copies them into a reserve, from where Write takes them, too. So the journal gets every row
// as it was at Begin; as long as a capture is active nothing may be written to the RowStore.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "engine/cached_tables.h"
#include "engine/journal.h"
#include "engine/row_copies.h"

namespace damo {

class Capture {
 public:
  // Keeps at most `reserve_bytes` of rows.
  Capture(Journal* journal, CachedTables* rows, size_t reserve_bytes)
      : journal_(journal), rows_(rows), cache_(rows->cache), reserve_bytes_(reserve_bytes) {}

  bool active() const DAMO_REQUIRES(store_mutex) { return active_; }
  // Whether rows that are updated have to be kept first.
  bool keeps() const DAMO_REQUIRES(store_mutex) { return active_ && !segments_.empty(); }

  // If it throws, nothing has begun. REQUIRES: !active(), and no other write is under way.
  void Begin() DAMO_REQUIRES(store_mutex);
  // Adds to the journal what it needs at Begin; meanwhile it lets go of the mutex. REQUIRES: active(); one call.
  void Write() DAMO_REQUIRES(store_mutex);
  // `complete`: Write has not thrown, and the journal is in a checkpoint.
  void End(bool complete) DAMO_REQUIRES(store_mutex);
  // Waits until no capture is active: until its checkpoint is complete, or has failed.
  void AwaitEnd() DAMO_REQUIRES(store_mutex);

  // Waits until rows of so many bytes can be kept, whichever they are.
  void AwaitRoom(size_t bytes) DAMO_REQUIRES(store_mutex);
  // To be called before these rows change, after AwaitRoom for them. If it throws std::bad_alloc, they are as they
  // were, and must not change. May run concurrently for different rows, under the mutex of one caller.
  void Keep(std::span<const Slot> slots) DAMO_REQUIRES(store_mutex);
  // Has Write take this segment next.
  void Hurry(uint32_t segment) DAMO_REQUIRES(store_mutex);

  uint64_t rows_written() const DAMO_REQUIRES(store_mutex) { return rows_written_; }

 private:
  void WriteKept() DAMO_REQUIRES(store_mutex);
  void WriteSegment() DAMO_REQUIRES(store_mutex);

  Journal* const journal_;
  CachedTables* const rows_;
  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  const size_t reserve_bytes_;
  bool active_ DAMO_GUARDED_BY(store_mutex) = false;
  uint8_t flag_ DAMO_GUARDED_BY(store_mutex) = 0;                // of the rows that the journal needs
  std::vector<uint32_t> segments_ DAMO_GUARDED_BY(store_mutex);  // yet to be taken, the next one last
  Mutex kept_mutex_;                                             // taken by concurrent calls of Keep, for the next two
  std::vector<RowCopies> kept_ DAMO_GUARDED_BY(store_mutex);
  size_t kept_bytes_ DAMO_GUARDED_BY(store_mutex) = 0;
  uint64_t rows_written_ DAMO_GUARDED_BY(store_mutex) = 0;
};

}  // namespace damo
