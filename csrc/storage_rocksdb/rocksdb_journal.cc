#include "storage_rocksdb/rocksdb_journal.h"

#include <unistd.h>

namespace damo {
namespace {

// Changes of the journal are newer than any that the database may hold when it lies beside them: a journal is begun
// anew long before so many are written.
constexpr uint64_t kSequencesAhead = uint64_t{1} << 36;

}  // namespace

std::string RocksDbJournal::Path() const { return directory_ + "/journal-" + std::to_string(number_); }

void RocksDbJournal::Add(std::span<const RowWrite> rows, uint64_t latest_sequence) {
  if (!open_) {
    if (finished_.empty()) sequence_ = latest_sequence + kSequencesAhead;
    ++number_;
    open_.emplace(Path());
  }
  const uint64_t before = open_->bytes();
  sequence_ = open_->Append(rows, sequence_);
  bytes_ += open_->bytes() - before;
  bytes_written_ += open_->bytes() - before;
}

const std::vector<RocksDbJournal::LogFile>& RocksDbJournal::Finish() {
  if (open_) {
    open_->Finish();
    finished_.push_back({Path(), open_->bytes(), number_});
    open_.reset();
  }
  return finished_;
}

void RocksDbJournal::Clear() noexcept {
  for (const LogFile& file : finished_) ::unlink(file.path.c_str());
  if (open_) ::unlink(Path().c_str());
  finished_.clear();
  open_.reset();
  bytes_ = 0;
}

}  // namespace damo
