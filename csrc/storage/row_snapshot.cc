#include "storage/row_snapshot.h"

#include <cstring>
#include <optional>
#include <string>

#include "base/status.h"
#include "row/key.h"
#include "row/record.h"

namespace damo {
namespace {

class SnapshotIterator : public RowIterator {
 public:
  SnapshotIterator(std::shared_ptr<OpenSnapshot> rows, uint32_t table, size_t payload_size, uint64_t since,
                   bool sightings = false)
      : payload_(payload_size), rows_(std::move(rows)), scan_(rows_->Begin(table, payload_size, since, sightings)) {}
  ~SnapshotIterator() override { rows_->End(scan_); }

  bool Next(int64_t* id, const char** payload) override {
    *payload = payload_.data();
    return rows_->Next(scan_, id, &payload_);
  }

 private:
  std::vector<char> payload_;
  const std::shared_ptr<OpenSnapshot> rows_;
  const OpenSnapshot::Scan scan_;  // begun last: what throws afterwards would leave it open
};

class LivingRows : public RowIterator {
 public:
  LivingRows(std::unique_ptr<RowIterator> rows, const Ladder& ladder, size_t payload_size)
      : rows_(std::move(rows)), ladder_(ladder), payload_size_(payload_size) {}

  bool Next(int64_t* id, const char** payload) override {
    while (rows_->Next(id, payload)) {
      if (!ladder_.IsDead(PayloadHeader(*payload, payload_size_), *id)) return true;
    }
    return false;
  }

 private:
  const std::unique_ptr<RowIterator> rows_;
  const Ladder ladder_;
  const size_t payload_size_;
};

class LivingSightings : public RowIterator {
 public:
  LivingSightings(std::unique_ptr<RowIterator> sightings, const Ladder& ladder)
      : sightings_(std::move(sightings)), ladder_(ladder) {}

  bool Next(int64_t* id, const char** payload) override {
    while (sightings_->Next(id, payload)) {
      if (!ladder_.IsDeadSighting(PayloadHeader(*payload, sizeof(RowHeader)))) return true;
    }
    return false;
  }

 private:
  const std::unique_ptr<RowIterator> sightings_;
  const Ladder ladder_;
};

// Throws kCorruption for rows that cannot be a table's: a file in place of another, or a block of it, has sound
// checksums, but shows in the order of rows or their number.
class CheckedIterator : public RowIterator {
 public:
  // `expected`: how many there are, if that is known.
  CheckedIterator(std::unique_ptr<RowIterator> rows, std::string table, std::optional<int64_t> expected)
      : rows_(std::move(rows)), table_(std::move(table)), expected_(expected) {}

  bool Next(int64_t* id, const char** payload) override {
    if (!rows_->Next(id, payload)) {
      if (expected_ && found_ != *expected_) {
        Fail("has " + std::to_string(found_) + " rows, expected " + std::to_string(*expected_));
      }
      return false;
    }
    if (found_ > 0 && *id <= last_) Fail("has id " + std::to_string(*id) + " behind " + std::to_string(last_));
    ++found_;
    last_ = *id;
    return true;
  }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw Error(ErrorCode::kCorruption, "table \"" + table_ + "\" " + what);
  }

  const std::unique_ptr<RowIterator> rows_;
  const std::string table_;
  const std::optional<int64_t> expected_;
  int64_t found_ = 0;
  int64_t last_ = 0;
};

}  // namespace

void OpenSnapshot::CheckOpen() const {
  if (rows_ == nullptr) throw Error(ErrorCode::kClosed, "the store was closed, or restored, during an iteration");
}

OpenSnapshot::Scan OpenSnapshot::Begin(uint32_t table, size_t payload_size, uint64_t since, bool sightings) {
  const MutexLock lock(&mutex_);
  CheckOpen();
  scans_.push_front(rows_->Scan(table, payload_size, since, sightings));
  return scans_.begin();
}

bool OpenSnapshot::Next(Scan scan, int64_t* id, std::vector<char>* payload) {
  const MutexLock lock(&mutex_);
  CheckOpen();
  const char* row;
  if (!(*scan)->Next(id, &row)) return false;
  // The scan may end as soon as the mutex is free, and its memory with it.
  std::memcpy(payload->data(), row, payload->size());
  return true;
}

void OpenSnapshot::End(Scan scan) {
  const MutexLock lock(&mutex_);
  if (rows_ != nullptr) scans_.erase(scan);
}

void OpenSnapshot::Close() {
  const MutexLock lock(&mutex_);
  scans_.clear();
  rows_.reset();
}

std::unique_ptr<RowIterator> RowSnapshot::Scan(size_t position, uint64_t since) const {
  const Table& table = tables_.at(position);
  const size_t payload_size = table.layout.payload_size();
  std::unique_ptr<RowIterator> rows = std::make_unique<SnapshotIterator>(rows_, table.number, payload_size, since);
  if (table.ladder) rows = std::make_unique<LivingRows>(std::move(rows), *table.ladder, payload_size);
  const std::optional<int64_t> expected = since == 0 ? std::optional(table.state.rows) : std::nullopt;
  return std::make_unique<CheckedIterator>(std::move(rows), table.name, expected);
}

std::unique_ptr<RowIterator> RowSnapshot::ScanSightings(size_t position) const {
  const Table& table = tables_.at(position);
  auto all = std::make_unique<SnapshotIterator>(rows_, table.number, sizeof(RowHeader), 0, /*sightings=*/true);
  return std::make_unique<LivingSightings>(std::move(all), table.ladder.value_or(Ladder()));
}

std::vector<float> RowSnapshot::Mean(size_t position) const {
  const RowLayout& layout = tables_.at(position).layout;
  const std::unique_ptr<RowIterator> rows = Scan(position);
  const size_t dim = static_cast<size_t>(layout.dim);
  std::vector<double> sums(dim, 0);
  int64_t count = 0;
  WithWeights(layout.weight_type, [&](auto weights) {
    int64_t id;
    for (const char* payload; rows->Next(&id, &payload); ++count) {
      for (size_t j = 0; j < dim; ++j) sums[j] += static_cast<double>(weights.Load(payload, static_cast<int>(j)));
    }
  });
  std::vector<float> mean(dim, 0);
  // With zero added a mean of -0 is 0, which it becomes where a graph adds to it.
  for (size_t j = 0; count > 0 && j < dim; ++j) {
    mean[j] = static_cast<float>(sums[j] / static_cast<double>(count)) + 0.0f;
  }
  return mean;
}

std::unique_ptr<RowIterator> RowSnapshot::ScanDeletions(size_t position, uint64_t since) const {
  return std::make_unique<SnapshotIterator>(rows_, tables_.at(position).number | kDeletionBit, kDeletionSize, since);
}

}  // namespace damo
