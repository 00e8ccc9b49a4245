// Rows of a store's tables as they were at one moment, to be read while the store goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "row/ladder.h"
#include "row/row.h"
#include "storage/row_store.h"

namespace damo {

// What a table has come to.
struct TableState {
  uint32_t iter;
  int64_t rows;
  std::optional<std::string> life = std::nullopt;  // as TableLife::Serialize has it, of a table that has one
};

// What the store shares with a snapshot and its iterators, so that it can end them when it closes. Thread-safe.
class OpenSnapshot {
 public:
  using Scan = std::list<std::unique_ptr<RowIterator>>::iterator;

  explicit OpenSnapshot(std::unique_ptr<RowStoreSnapshot> rows) : rows_(std::move(rows)) {}

  // These two throw kClosed once it is closed.
  Scan Begin(uint32_t table, size_t payload_size, uint64_t since, bool sightings);
  // See RowIterator::Next, but copies the payload, of `payload.size()` bytes.
  bool Next(Scan scan, int64_t* id, std::vector<char>* payload);
  void End(Scan scan);
  void Close();

 private:
  void CheckOpen() const DAMO_REQUIRES(mutex_);

  Mutex mutex_;
  std::unique_ptr<RowStoreSnapshot> rows_ DAMO_GUARDED_BY(mutex_);  // null once it is closed
  std::list<std::unique_ptr<RowIterator>> scans_ DAMO_GUARDED_BY(mutex_);
};

class RowSnapshot {
 public:
  struct Table {
    std::string name;
    uint32_t number;
    RowLayout layout;
    TableState state;
    std::optional<Ladder> ladder = std::nullopt;  // rows that are dead by it are passed over
  };

  RowSnapshot(std::vector<Table> tables, std::shared_ptr<OpenSnapshot> rows)
      : tables_(std::move(tables)), rows_(std::move(rows)) {}

  // In the order in which they were asked for.
  const std::vector<Table>& tables() const { return tables_; }

  // The rows of tables()[position], as often as wanted. This and the iterator, which may outlive the snapshot, throw
  // kClosed once the store is closed.
  std::unique_ptr<RowIterator> Scan(size_t position, uint64_t since = 0) const;
  // The RowHeaders of the ids that were seen and have no row, likewise.
  std::unique_ptr<RowIterator> ScanSightings(size_t position) const;
  // The mean of the rows' weights, [dim], from sums in float64 in the order of ids: a function of the rows alone. Zeros
  // if there are none. Reads all of them.
  std::vector<float> Mean(size_t position) const;
  // As Scan, of the deletion records. Of those, and rows, of steps below `since` some may be left out, or be older than
  // they should.
  std::unique_ptr<RowIterator> ScanDeletions(size_t position, uint64_t since) const;

 private:
  std::vector<Table> tables_;
  std::shared_ptr<OpenSnapshot> rows_;
};

}  // namespace damo
