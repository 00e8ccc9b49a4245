// Makes room in the cache: evicts the rows that the cache would do without, once what is dirty among them has been
// written. Which rows those are is the cache's affair.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/awaited_rows.h"
#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/capture.h"
#include "engine/write_back.h"

namespace damo {

// That a batch needs more rows in memory than fit.
class NoRoom : public Error {
 public:
  using Error::Error;
};

class RoomMaker {
 public:
  // `memory_budget`: the store's, for an error's message.
  RoomMaker(CachedTables* rows, WriteBack* write_back, Capture* capture, AwaitedRows* awaited, size_t memory_budget)
      : cache_(rows->cache),
        write_back_(write_back),
        capture_(capture),
        awaited_(awaited),
        memory_budget_(memory_budget) {}

  // These let go of the mutex where they wait, and throw what writing throws.

  // Evicts until `bytes` of rows can be added. Throws NoRoom if that cannot be.
  void MakeRoom(size_t bytes) DAMO_REQUIRES(store_mutex);
  // The same, but keeps the rows that `units` have found, and their slots valid.
  void MakeRoomAround(std::span<const Unit> units, size_t bytes) DAMO_REQUIRES(store_mutex);
  // Throws NoRoom, which tells a budget that has room for `bytes` more.
  [[noreturn]] void Refuse(size_t bytes) const DAMO_REQUIRES(store_mutex);
  // MakeRoom as far as it costs no row that is awaited.
  void MakeSpareRoom(size_t bytes) DAMO_REQUIRES(store_mutex);

  // Keeps the cache to the size that tests ask for. What cannot be written stays, and RaiseTrimError, in the next call,
  // throws why: the call that comes to its end here has done its work.
  void Trim() DAMO_REQUIRES(store_mutex);
  void RaiseTrimError() DAMO_REQUIRES(store_mutex);

 private:
  void EvictFirst(const std::vector<uint32_t>& victims) DAMO_REQUIRES(store_mutex);

  RowCache& cache_ DAMO_GUARDED_BY(store_mutex);
  WriteBack* const write_back_;
  Capture* const capture_;
  AwaitedRows* const awaited_;
  const size_t memory_budget_;
  std::exception_ptr trim_error_ DAMO_GUARDED_BY(store_mutex);
};

}  // namespace damo
