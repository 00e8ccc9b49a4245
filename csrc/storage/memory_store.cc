#include "storage/memory_store.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/mutex.h"
#include "base/status.h"
#include "row/key.h"
#include "row/record.h"

namespace damo {
namespace {

using Rows = std::map<Key, std::string>;
// By key; without a value where the key goes.
using Changes = std::map<Key, std::optional<std::string>>;

// All that RowStore::Write allocates: what is done with it cannot fail.
Changes ChangesOf(std::span<const RowWrite> rows) {
  for (const RowWrite& row : rows) CheckTableNumber(row.table);
  Changes changes;
  for (const RowWrite& row : rows) {
    std::optional<std::string>& value = changes[EncodeKey(row.table, row.id)];
    if (row.deletes()) {
      if (!row.recorded) continue;
      const DeletionRecord record = EncodeDeletion(row.step);
      changes[EncodeDeletionKey(row.table, row.id)] = std::string(record.data(), record.size());
    } else {
      value = std::string(row.version()).append(row.payload, row.payload_size);
    }
  }
  return changes;
}

// Written by Checkpoint: for each entry its key, the u32 size of its value in the machine's byte order, its value.
std::string FileOf(const std::string& directory) { return directory + "/rows"; }

// A table's, by id.
using TableRows = std::vector<std::pair<int64_t, std::string>>;

class MemoryIterator : public RowIterator {
 public:
  MemoryIterator(uint32_t table, size_t payload_size, bool sightings, std::shared_ptr<const TableRows> rows)
      : table_(table), payload_size_(payload_size), sightings_(sightings), rows_(std::move(rows)) {}

  bool Next(int64_t* id, const char** payload) override {
    while (next_ < rows_->size() && IsSighting((*rows_)[next_].second) != sightings_) ++next_;
    if (next_ == rows_->size()) return false;
    const auto& [row_id, value] = (*rows_)[next_++];
    *id = row_id;
    *payload = RowPayload(value, payload_size_, table_, row_id);
    return true;
  }

 private:
  const uint32_t table_;
  const size_t payload_size_;
  const bool sightings_;
  const std::shared_ptr<const TableRows> rows_;
  size_t next_ = 0;
};

class MemorySnapshot : public RowStoreSnapshot {
 public:
  using Tables = std::map<uint32_t, std::shared_ptr<const TableRows>>;

  explicit MemorySnapshot(Tables tables) : tables_(std::move(tables)) {}

  std::unique_ptr<RowIterator> Scan(uint32_t table, size_t payload_size, uint64_t /*since*/,
                                    bool sightings) const override {
    return std::make_unique<MemoryIterator>(table, payload_size, sightings, tables_.at(table));
  }

 private:
  const Tables tables_;
};

class MemoryStore : public RowStore {
 public:
  explicit MemoryStore(Rows rows) : rows_(std::move(rows)) {}

  void MultiGet(uint32_t table, std::span<const int64_t> ids, size_t payload_size, char* const* dst,
                Found* found) override {
    CheckTableNumber(table);
    const ReaderLock lock(&mutex_);
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto row = rows_.find(EncodeKey(table, ids[i]));
      found[i] = row == rows_.end() ? Found::kNothing : TakeRecord(row->second, payload_size, table, ids[i], dst[i]);
    }
  }

  void Write(std::span<const RowWrite> rows) override {
    Changes changes = ChangesOf(rows);
    Rows fresh;  // rows that may not be there yet
    for (auto& [key, value] : changes) {
      if (value) fresh.emplace_hint(fresh.end(), key, std::move(*value));
    }
    const WriterLock lock(&mutex_);
    for (const auto& [key, value] : changes) rows_.erase(key);
    rows_.merge(fresh);
  }

  void DeleteTable(uint32_t table) override {
    CheckTableNumber(table);
    const WriterLock lock(&mutex_);
    for (const uint32_t numbered : {table, table | kDeletionBit}) {
      rows_.erase(rows_.lower_bound(FirstKey(numbered)), rows_.upper_bound(LastKey(numbered)));
    }
  }

  void AddToJournal(std::span<const RowWrite> rows) override {
    Changes changes = ChangesOf(rows);
    const WriterLock lock(&mutex_);
    for (const auto& [key, value] : changes) journal_.erase(key);
    journal_.merge(changes);
  }

  void ClearJournal() override {
    const WriterLock lock(&mutex_);
    journal_.clear();
  }

  JournalSize journal_size() const override {
    const ReaderLock lock(&mutex_);
    JournalSize size;
    for (const auto& [key, value] : journal_) size.bytes += kKeySize + (value ? value->size() : 0);
    return size;
  }

  std::unique_ptr<RowStoreSnapshot> TakeSnapshot(std::span<const uint32_t> tables) override {
    MemorySnapshot::Tables copies;
    const ReaderLock lock(&mutex_);
    for (const uint32_t table : tables) {
      CheckTableNumber(table);
      for (const uint32_t numbered : {table, table | kDeletionBit}) copies[numbered] = CopyOf(numbered);
    }
    return std::make_unique<MemorySnapshot>(std::move(copies));
  }

  bool Checkpoint(const std::string& path, bool /*link*/) override {
    std::string contents;
    {
      const ReaderLock lock(&mutex_);
      Rows rows = rows_;
      for (const auto& [key, value] : journal_) {
        if (value) {
          rows[key] = *value;
        } else {
          rows.erase(key);
        }
      }
      for (const auto& [key, value] : rows) {
        const auto size = static_cast<uint32_t>(value.size());
        contents.append(key.view()).append(reinterpret_cast<const char*>(&size), sizeof(size)).append(value);
      }
    }
    BuildDirectory(path, [&] { WriteFile(FileOf(path), contents); });
    return false;
  }

  RowStoreStats Stats() const override {
    const ReaderLock lock(&mutex_);
    RowStoreStats stats;
    for (const auto& [key, value] : rows_) stats.memory_bytes += kKeySize + value.size();
    return stats;
  }

  void Close() override {
    const WriterLock lock(&mutex_);
    rows_.clear();
    journal_.clear();
  }

 private:
  std::shared_ptr<const TableRows> CopyOf(uint32_t table) const DAMO_REQUIRES_SHARED(mutex_) {
    TableRows rows;
    const auto end = rows_.upper_bound(LastKey(table));
    for (auto row = rows_.lower_bound(FirstKey(table)); row != end; ++row) {
      rows.emplace_back(DecodeId(row->first.view()), row->second);
    }
    return std::make_shared<const TableRows>(std::move(rows));
  }

  mutable SharedMutex mutex_;
  Rows rows_ DAMO_GUARDED_BY(mutex_);
  Changes journal_ DAMO_GUARDED_BY(mutex_);
};

Rows ReadCheckpoint(const std::string& path) {
  std::ifstream file(FileOf(path), std::ios::binary);
  if (!file) throw Error(ErrorCode::kIo, "cannot open " + FileOf(path));
  const std::string contents{std::istreambuf_iterator<char>(file), {}};
  Rows rows;
  std::string_view rest = contents;
  const auto take = [&](size_t size) {
    if (rest.size() < size) throw Error(ErrorCode::kCorruption, FileOf(path) + " ends within a row");
    const std::string_view taken = rest.substr(0, size);
    rest.remove_prefix(size);
    return taken;
  };
  while (!rest.empty()) {
    const Key key = KeyOfBytes(take(kKeySize));
    uint32_t size;
    std::memcpy(&size, take(sizeof(size)).data(), sizeof(size));
    rows.emplace_hint(rows.end(), key, take(size));
  }
  return rows;
}

}  // namespace

std::unique_ptr<RowStore> OpenMemoryStore(const std::string& checkpoint) {
  return std::make_unique<MemoryStore>(checkpoint.empty() ? Rows() : ReadCheckpoint(checkpoint));
}

}  // namespace damo
