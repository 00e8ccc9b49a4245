#include "storage_rocksdb/rocksdb_journal.h"

#include <unistd.h>

#include <utility>

namespace damo {
void RocksDbJournal::Add(std::span<const RowWrite> rows, uint64_t latest_sequence) {
  if (!open_) {
    if (finished_.empty()) sequence_ = latest_sequence + kSequencesAhead;
    finished_.reserve(finished_.size() + 1);
    const uint64_t number = number_ + 1;
    open_.emplace(LogFile{directory_ + "/journal-" + std::to_string(number), 0, number});
    number_ = number;
  }
  RocksDbLogWriter& writer = open_->writer;
  const uint64_t before = writer.bytes();
  sequence_ = writer.Append(rows, sequence_);
  bytes_ += writer.bytes() - before;
  bytes_written_ += writer.bytes() - before;
}

const std::vector<RocksDbJournal::LogFile>& RocksDbJournal::Finish() {
  if (open_) {
    open_->writer.Finish();
    open_->file.size = open_->writer.bytes();
    finished_.push_back(std::move(open_->file));
    open_.reset();
  }
  return finished_;
}

void RocksDbJournal::Clear() noexcept {
  for (const LogFile& file : finished_) ::unlink(file.path.c_str());
  if (open_) ::unlink(open_->file.path.c_str());
  finished_.clear();
  open_.reset();
  bytes_ = 0;
}

}  // namespace damo
