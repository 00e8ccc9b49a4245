// Where rows live when they are not cached: an ordered map from (table number, id) to a row's payload. `RocksDbStore`
// keeps it on disk, `MemoryStore` in memory for tests and sanitizer builds.
//
// A payload is the row's bytes as row.h lays them out (weights, optimizer state, header fields). How a store frames
// them (keys, format version) is its own affair; docs/format.md describes RocksDB's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "row/ladder.h"
#include "row/record.h"

namespace damo {

// One change of one row. `payload == nullptr` deletes the row and, if that is `recorded`, keeps `step` as the step of
// its deletion, so that a later delta export can name it; a deleted row that comes back keeps that record.
struct RowWrite {
  uint32_t table;
  int64_t id;
  const char* payload;
  size_t payload_size;
  uint64_t step;          // of a deletion; unused otherwise
  bool changed = true;    // since it was last in a checkpoint; for those who call Write
  bool sighting = false;  // the payload is the RowHeader of an id that has no row
  bool recorded = true;

  bool deletes() const { return payload == nullptr; }
  // What a value begins with, before the payload.
  std::string_view version() const { return {sighting ? &kSightingVersion : &kRecordVersion, 1}; }
};

// What a read has found under an id.
enum class Found : uint8_t { kNothing, kRow, kSighting };

// Fills `dst` from a value as MultiGet does. Throws as RowPayload.
inline Found TakeRecord(std::string_view value, size_t payload_size, uint32_t table, int64_t id, char* dst) {
  const char* payload = RowPayload(value, payload_size, table, id);
  if (!IsSighting(value)) {
    std::memcpy(dst, payload, payload_size);
    return Found::kRow;
  }
  std::memcpy(dst + payload_size - sizeof(RowHeader), payload, sizeof(RowHeader));
  return Found::kSighting;
}

// Walks one table's rows in ascending signed id order, as they are in the snapshot that it was made from.
class RowIterator {
 public:
  virtual ~RowIterator() = default;
  // Moves to the next row; false at the end. `*payload` stays valid until the next call.
  // Throws kCorruption if a row is not exactly the payload size that the scan was opened with, kIo if a read fails.
  virtual bool Next(int64_t* id, const char** payload) = 0;
};

// The rows of some tables as they were at one moment, for as long as it and its iterators live.
class RowStoreSnapshot {
 public:
  virtual ~RowStoreSnapshot() = default;
  // All rows of a table but, perhaps, some whose last step is below `since`; some may be as they were before such a
  // step. `table` with kDeletionBit stands for the table's deletion records, of 8 bytes each. Thread-safe; may be
  // called more than once. With `sightings` the RowHeaders of the ids that have no row, and are passed over without.
  // REQUIRES: a table of the snapshot. Its iterators may outlive it.
  virtual std::unique_ptr<RowIterator> Scan(uint32_t table, size_t payload_size, uint64_t since = 0,
                                            bool sightings = false) const = 0;
};

// What of a table nobody asks for any more: it may go from the disk.
struct Reclaimable {
  Ladder ladder;                  // rows, and sightings of ids, that are dead by it
  uint64_t deletions_before = 0;  // records of deletions at steps below
};

struct RowStoreStats {
  uint64_t disk_bytes = 0;           // bytes of the files that hold rows, the journal's among them
  uint64_t memory_bytes = 0;         // block cache, memtables, table readers
  uint64_t bytes_written = 0;        // by flushes and compactions, and to the journal, since the store was opened
  uint64_t dead_bytes = 0;           // of what is reclaimable and still there, about, when it was last looked at
  uint64_t reclaimed_records = 0;    // rows, sightings and deletion records that have gone since the store was opened
  uint64_t reclaimed_bytes = 0;      // theirs
  bool reclaim_lacks_space = false;  // the disk was too full, the last time that anything could have gone
};

struct JournalSize {
  uint64_t bytes = 0;
  size_t files = 0;  // that a checkpoint takes
};

// Thread-safe: every method may be called from any thread at any time, and a Write that has returned is seen by every
// later MultiGet and TakeSnapshot.
class RowStore {
 public:
  virtual ~RowStore() = default;

  // Reads rows of one table. REQUIRES: `ids` ascending and distinct; `dst[i]` points to `payload_size` writable bytes.
  // Fills dst[i] with a row, or the end of it with the RowHeader of a sighting, or leaves it untouched.
  // Throws kCorruption (a checksum, a wrong size, an unknown format version) or kIo, naming the table number and the
  // id.
  virtual void MultiGet(uint32_t table, std::span<const int64_t> ids, size_t payload_size, char* const* dst,
                        Found* found) = 0;

  // Whether a MultiGet has many reads under way at a time, where reads wait for a disk. Otherwise each of them waits
  // for the one before, and only many calls at a time keep a disk busy.
  virtual bool OverlapsReads() const { return false; }

  // Applies all rows or none. REQUIRES: sorted by (table, id), distinct. Throws kOutOfSpace or kIo.
  virtual void Write(std::span<const RowWrite> rows) = 0;

  // Deletes all rows and deletion records of a table, or none of them; snapshots keep them. REQUIRES: the journal holds
  // none. Throws kOutOfSpace or kIo.
  virtual void DeleteTable(uint32_t table) = 0;
  // Gives back what a deleted table takes on disk, as far as snapshots let it: until then that is for compactions to
  // come. Takes as long as reading the table does. Throws kOutOfSpace or kIo.
  virtual void ReclaimTable(uint32_t /*table*/) {}
  // Has nothing left on disk of what rows of a table were before they were deleted, but what snapshots and iterators
  // need, and the journal. Takes as long as rewriting the files that hold them. Returns those of which something is
  // left. REQUIRES: ascending, distinct, deleted. Throws kOutOfSpace or kIo.
  virtual std::vector<int64_t> EraseDeleted(uint32_t /*table*/, std::span<const int64_t> /*ids*/) { return {}; }

  // Says what is Reclaimable, besides what earlier calls said. Readers take no notice: to them it is not there, whether
  // its bytes are or not. A snapshot reads all that was not reclaimable when it was taken. Cheap, and does not throw:
  // without memory the call is as if it had not been made. REQUIRES: no checkpoint is being made that was begun before
  // it became so.
  virtual void SetReclaimable(uint32_t /*table*/, const Reclaimable& /*reclaimable*/) noexcept {}

  virtual std::unique_ptr<RowStoreSnapshot> TakeSnapshot(std::span<const uint32_t> tables) = 0;
  std::unique_ptr<RowIterator> Scan(uint32_t table, size_t payload_size) {
    return TakeSnapshot({&table, 1})->Scan(table, payload_size);
  }

  // Writes the state as of this call into the new directory `path`, from which Open can start: what was written, and
  // over that what is in the journal. Hard links where the file system allows it and `link` is set, copies otherwise;
  // returns true if files were linked. Everything is synced. REQUIRES: `path` does not exist, its parent does.
  virtual bool Checkpoint(const std::string& path, bool link) = 0;

  // The journal: rows that checkpoints hold although they were not written. It costs a fraction of writing them, and
  // checkpoints share it. Of its calls, and Checkpoint, one at a time. Reads and scans do not see it.

  // Adds rows, sorted or not, distinct; of those that were added before, the new ones count. After an error the journal
  // has to be cleared. Throws kOutOfSpace or kIo.
  virtual void AddToJournal(std::span<const RowWrite> rows) = 0;
  virtual void ClearJournal() = 0;
  virtual JournalSize journal_size() const = 0;

  // Gives memory that reads and writes have freed back to the system, if enough of it may have piled up since the last
  // time. To be called now and then, where some 20 ms do not matter.
  virtual void ReleaseFreedMemory() {}

  virtual RowStoreStats Stats() const = 0;

  // Releases files and memory. No other method may be called afterwards; idempotent.
  virtual void Close() = 0;
};

}  // namespace damo
