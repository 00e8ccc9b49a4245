#include "storage_rocksdb/rocksdb_erase.h"

#include <rocksdb/db.h>
#include <rocksdb/iterator.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "base/status.h"
#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_checkpoint.h"
#include "storage_rocksdb/rocksdb_compact_keys.h"
#include "storage_rocksdb/rocksdb_journal.h"
#include "storage_rocksdb/rocksdb_log.h"
#include "storage_rocksdb/rocksdb_log_reader.h"
#include "storage_rocksdb/rocksdb_open.h"
#include "storage_rocksdb/rocksdb_status.h"

namespace damo {
namespace {

using rocksdb::Slice;

std::vector<Key> KeysOf(const IdsByTable& ids) {
  std::vector<Key> keys;
  for (const auto& [table, of_table] : ids) {
    for (const int64_t id : of_table) keys.push_back(EncodeKey(table, id));
  }
  return keys;
}

IdsByTable IdsOf(const std::set<Key>& keys) {
  IdsByTable ids;
  for (const Key& key : keys) ids[DecodeTable(key.view())].push_back(DecodeId(key.view()));
  return ids;
}

bool Has(const IdsByTable& ids, uint32_t table, int64_t id) {
  const auto found = ids.find(table);
  return found != ids.end() && std::binary_search(found->second.begin(), found->second.end(), id);
}

// What of some keys a table file holds, but what deletions in the file itself hide.
std::set<Key> KeysInFile(const rocksdb::Options& options, const std::string& file, std::span<const Key> keys) {
  rocksdb::SstFileReader reader(options);
  Check(reader.Open(file), file);
  const std::unique_ptr<rocksdb::Iterator> rows(reader.NewIterator(rocksdb::ReadOptions()));
  std::set<Key> found;
  for (const Key& key : keys) {
    rows->Seek(key.view());
    CheckRead(rows->status(), file);
    if (rows->Valid() && rows->key() == Slice(key.view())) found.insert(key);
  }
  return found;
}

// Names of the table files that hold values of `held`.
std::vector<std::string> FilesWith(rocksdb::DB* db, const rocksdb::Options& options, const std::vector<Key>& held) {
  std::vector<rocksdb::LiveFileMetaData> files;
  db->GetLiveFilesMetaData(&files);
  std::map<std::string, std::vector<Key>> covered;
  std::set<std::string> names;
  std::set<Key> hidden(held.begin(), held.end());
  for (const auto& file : files) {
    std::vector<Key> keys;
    std::copy_if(held.begin(), held.end(), std::back_inserter(keys), [&](const Key& key) {
      return key.view() >= std::string_view(file.smallestkey) && key.view() <= std::string_view(file.largestkey);
    });
    if (keys.empty()) continue;
    const std::set<Key> found = KeysInFile(options, file.directory + "/" + file.relative_filename, keys);
    if (!found.empty()) names.insert(file.relative_filename);
    for (const Key& key : found) hidden.erase(key);
    covered[file.relative_filename] = std::move(keys);
  }
  for (const auto& [name, keys] : covered) {  // nothing tells which of them has what deletions hide
    if (std::any_of(keys.begin(), keys.end(), [&](const Key& key) { return hidden.contains(key); })) names.insert(name);
  }
  return {names.begin(), names.end()};
}

uint64_t SizeOf(const std::string& path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) throw Error(ErrorCode::kIo, path + ": " + error.message());
  return size;
}

// The newest value of a key.
struct Newest {
  RowHeader header;
  bool sighting;
};
using NewestByKey = std::map<Key, Newest>;

// Throws kCorruption.
Newest NewestOf(uint32_t table, int64_t id, const char* payload, size_t size, bool sighting) {
  if (size >= sizeof(RowHeader)) return {PayloadHeader(payload, size), sighting};
  throw Error(ErrorCode::kCorruption,
              RowName(table, id) + ": expected a row, found " + std::to_string(size) + " bytes");
}

// Values of versions that this release does not know are no rows of its.
void NoteNewest(rocksdb::DB* db, const Key& key, NewestByKey* newest) {
  const uint32_t table = DecodeTable(key.view());
  const int64_t id = DecodeId(key.view());
  std::string value;
  const rocksdb::Status status = db->Get(rocksdb::ReadOptions(), key.view(), &value);
  if (status.IsNotFound()) return;
  CheckRead(status, "read of " + RowName(table, id));
  if (value.empty() || (value[0] != kRecordVersion && !IsSighting(value))) return;
  (*newest)[key] = NewestOf(table, id, value.data() + 1, value.size() - 1, IsSighting(value));
}

std::set<Key> RowsThatLive(const NewestByKey& newest, const RecordReader::Lives& lives) {
  std::set<Key> rows;
  for (const auto& [key, record] : newest) {
    const bool alive =
        lives == nullptr || lives(DecodeTable(key.view()), DecodeId(key.view()), record.header, record.sighting);
    if (alive && !record.sighting) rows.insert(key);
  }
  return rows;
}

std::string FileName(const std::string& path) { return std::filesystem::path(path).filename().string(); }

}  // namespace

FoundRows FindRows(const std::string& rows, const std::vector<std::string>& logs, const std::string& no_logs,
                   const IdsByTable& wanted, const RecordReader::Lives& lives) {
  rocksdb::Options options = SideOptions(rows);
  options.wal_dir = no_logs;  // else RocksDB reads them into memory
  std::unique_ptr<rocksdb::DB> db = OpenReadOnly(options, rows);
  const std::vector<Key> keys = KeysOf(wanted);
  const std::vector<Key> in_tables = KeysWithValues(db.get(), keys);
  FoundRows found;
  found.files = FilesWith(db.get(), options, in_tables);
  std::set<Key> held(in_tables.begin(), in_tables.end());
  NewestByKey newest;
  for (const Key& key : in_tables) NoteNewest(db.get(), key, &newest);
  CloseDb(&db);
  std::optional<uint64_t> sequence;
  for (const std::string& log : logs) {
    bool holds = false;
    sequence = ReadLogFile(
        log,
        [&](std::span<const RowWrite> changes) {
          for (const RowWrite& change : changes) {
            if (!Has(wanted, change.table, change.id)) continue;
            const Key key = EncodeKey(change.table, change.id);
            if (change.payload == nullptr) {
              newest.erase(key);
            } else {
              newest[key] = NewestOf(change.table, change.id, change.payload, change.payload_size, change.sighting);
              held.insert(key);
              holds = true;
            }
          }
        },
        sequence);
    if (holds) found.files.push_back(FileName(log));
  }
  found.held = IdsOf(held);
  found.rows = IdsOf(RowsThatLive(newest, lives));
  return found;
}

namespace {

void DeleteRows(rocksdb::DB* db, const FoundRows& found, const std::map<uint32_t, uint64_t>& steps) {
  rocksdb::WriteBatch batch;
  rocksdb::Status added;
  for (const Key& key : KeysOf(found.held)) {
    if (added.ok()) added = batch.Delete(key.view());
  }
  for (const auto& [table, ids] : found.rows) {
    const DeletionRecord record = EncodeDeletion(steps.at(table));
    for (const int64_t id : ids) {
      const Key key = EncodeDeletionKey(table, id);
      if (added.ok()) added = batch.Put(key.view(), Slice(record.data(), record.size()));
    }
  }
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  if (added.ok()) added = db->Write(options, &batch);
  if (added.ok()) added = db->Flush(rocksdb::FlushOptions());
  Check(added, "deletion of rows in " + db->GetName());
}

// Copies logs without what they have of some rows, from the first on that has any: one change may not be missing
// between two others.
class LogEraser {
 public:
  // Makes its files in `directory`; `sequence`: above those of all changes in the database.
  LogEraser(std::string directory, const FoundRows& found, uint64_t sequence)
      : directory_(std::move(directory)), found_(found), sequence_(sequence) {}

  RocksDbJournal::LogFile Copy(const std::string& log) {
    const uint64_t number = ++number_;
    const bool holds = std::find(found_.files.begin(), found_.files.end(), FileName(log)) != found_.files.end();
    if (!copying_ && !holds) {
      read_ = ReadLogFile(log, [](std::span<const RowWrite>) {}, read_);
      return {log, SizeOf(log), number};
    }
    if (!copying_ && read_) sequence_ = *read_;
    copying_ = true;
    const std::string path = directory_ + "/journal-" + std::to_string(number);
    RocksDbLogWriter writer(path);
    std::vector<RowWrite> kept;
    read_ = ReadLogFile(
        log,
        [&](std::span<const RowWrite> changes) {
          kept.clear();
          std::copy_if(changes.begin(), changes.end(), std::back_inserter(kept),
                       [this](const RowWrite& change) { return Keeps(change); });
          if (!kept.empty()) sequence_ = writer.Append(kept, sequence_);
        },
        read_);
    writer.Finish();
    return {path, writer.bytes(), number};
  }

 private:
  // A row's earlier deletions go as well, or their records would take the place of the one that it has now.
  bool Keeps(const RowWrite& change) const {
    return change.payload == nullptr ? !Has(found_.rows, change.table, change.id)
                                     : !Has(found_.held, change.table, change.id);
  }

  const std::string directory_;
  const FoundRows& found_;
  uint64_t sequence_;             // of the next change that is written
  std::optional<uint64_t> read_;  // of the next that is read
  uint64_t number_ = 0;
  bool copying_ = false;
};

}  // namespace

void EraseRows(const std::string& rows, const std::vector<std::string>& logs, const FoundRows& found,
               const std::map<uint32_t, uint64_t>& steps, const std::string& to) {
  rocksdb::Options options = SideOptions(rows);
  options.disable_auto_compactions = true;  // they would rewrite files that checkpoints share
  std::unique_ptr<rocksdb::DB> db = OpenReadWrite(options, rows);
  const std::vector<Key> keys = KeysOf(found.held);
  DeleteRows(db.get(), found, steps);
  CompactKeys(db.get(), keys);
  for (const Key& left : KeysWithValues(db.get(), keys)) {
    throw Error(ErrorCode::kIo, rows + ": compactions have left something of " +
                                    RowName(DecodeTable(left.view()), DecodeId(left.view())));
  }
  LogEraser eraser(rows, found, db->GetLatestSequenceNumber() + RocksDbJournal::kSequencesAhead);
  std::vector<RocksDbJournal::LogFile> kept;
  for (const std::string& log : logs) kept.push_back(eraser.Copy(log));
  CopyRocksDb(db.get(), to, /*link=*/true, kept);
  CloseDb(&db);
}

}  // namespace damo
