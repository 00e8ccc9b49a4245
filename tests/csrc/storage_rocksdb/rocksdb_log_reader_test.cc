// Logs as they are read: those of RocksDB itself, and what is damage of one.
#include "storage_rocksdb/rocksdb_log_reader.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_log.h"
#include "storage_rocksdb/rocksdb_log_format.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

using namespace testing;

struct Change {
  uint32_t table;
  int64_t id;
  bool deletes;
  std::string payload;
  uint64_t step;
  bool operator==(const Change&) const = default;
};

// Appends what the log has, until an error.
void Read(const std::string& path, std::vector<Change>* changes) {
  ReadLogFile(path, [&](std::span<const RowWrite> rows) {
    for (const RowWrite& row : rows) {
      const bool deletes = row.payload == nullptr;
      changes->push_back(
          {row.table, row.id, deletes, deletes ? "" : std::string(row.payload, row.payload_size), row.step});
    }
  });
}

std::vector<Change> ChangesIn(const std::string& path) {
  std::vector<Change> changes;
  Read(path, &changes);
  return changes;
}

class RocksDbLogReaderTest : public ::testing::Test {
 protected:
  void Overwrite(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }

  // A log with this one record, which must fit a block. Its checksum matches.
  void WriteRecord(const std::string& record) {
    std::string header(rocksdb_log::kHeader, '\0');
    rocksdb_log::Put(rocksdb_log::ChecksumOf(rocksdb_log::kFull, record), header.data());
    rocksdb_log::Put(static_cast<uint16_t>(record.size()), header.data() + 4);
    header[6] = rocksdb_log::kFull;
    Overwrite(header + record);
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "000001.log";
};

// Rows larger and smaller than a block, batches of one row and of many.
std::vector<std::vector<Change>> SomeBatches() {
  std::vector<std::vector<Change>> batches;
  for (size_t batch = 0; batch < 50; ++batch) {
    batches.emplace_back();
    for (size_t i = 0; i < 1 + 7 * batch % 90; ++i) {
      const auto table = static_cast<uint32_t>(1 + i % 3);
      const auto id = static_cast<int64_t>(1000 * batch + i) - 20'000;
      const size_t size = i == 5 ? 70'000 : i == 6 ? 300'000 : 1 + 13 * i;
      const bool deletes = (batch + i) % 11 == 0;
      batches.back().push_back(
          {table, id, deletes, deletes ? "" : Payload(size, table, id), deletes ? uint64_t{1} << 40 | i : 0});
    }
  }
  return batches;
}

std::vector<Change> All(const std::vector<std::vector<Change>>& batches) {
  std::vector<Change> all;
  for (const auto& batch : batches) all.insert(all.end(), batch.begin(), batch.end());
  return all;
}

TEST_F(RocksDbLogReaderTest, GivesBackWhatWasWritten) {
  const auto batches = SomeBatches();
  RocksDbLogWriter log(path_);
  uint64_t sequence = 1;
  for (const auto& batch : batches) {
    std::vector<RowWrite> rows;
    for (const Change& c : batch) {
      rows.push_back({c.table, c.id, c.deletes ? nullptr : c.payload.data(), c.payload.size(), c.step});
    }
    sequence = log.Append(rows, sequence);
  }
  log.Finish();
  EXPECT_TRUE(ChangesIn(path_) == All(batches));
}

TEST_F(RocksDbLogReaderTest, ReadsALogOfRocksDbItself) {
  const auto batches = SomeBatches();
  rocksdb::Options options;
  options.create_if_missing = true;
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> db;
  ASSERT_TRUE(rocksdb::DB::Open(options, directory_ / "db", &db).ok());
#else
  rocksdb::DB* opened = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, directory_ / "db", &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
#endif
  for (const auto& batch : batches) {
    rocksdb::WriteBatch writes;
    for (const Change& c : batch) {
      const Key key = EncodeKey(c.table, c.id), deletion_key = EncodeDeletionKey(c.table, c.id);
      if (!c.deletes) {
        writes.Put(key.view(), std::string(1, kRecordVersion) + c.payload);
      } else {
        const DeletionRecord record = EncodeDeletion(c.step);
        writes.Delete(key.view());
        writes.Put(deletion_key.view(), std::string_view(record.data(), record.size()));
      }
    }
    ASSERT_TRUE(db->Write({}, &writes).ok());
  }
  std::vector<std::string> logs;
  for (const auto& file : std::filesystem::directory_iterator(directory_ / "db")) {
    if (file.path().extension() == ".log") logs.push_back(file.path());
  }
  ASSERT_EQ(logs.size(), 1u);
  EXPECT_TRUE(ChangesIn(logs[0]) == All(batches));
}

// Whatever is wrong with a file, it is found, and all that was read before is as it was written.
TEST_F(RocksDbLogReaderTest, DamageIsFoundWhileReading) {
  RocksDbLogWriter log(path_);
  Changes rows;
  for (int64_t id = 0; id < 700; ++id) rows[id] = id % 9 == 0 ? std::nullopt : std::optional(Payload(300, 1, id));
  uint64_t sequence = 1;
  for (int batch = 0; batch < 8; ++batch) sequence = log.Append(WritesOf(1, rows, 5), sequence);
  log.Finish();
  const std::vector<Change> sound = ChangesIn(path_);
  ASSERT_EQ(sound.size(), 8u * 700);
  const std::string bytes = ReadFile(path_);
  const auto expect_damage = [&] {
    std::vector<Change> read;
    ExpectError(ErrorCode::kCorruption, {path_}, [&] { Read(path_, &read); });
    EXPECT_TRUE(read.size() <= sound.size() && std::equal(read.begin(), read.end(), sound.begin()));
  };
  for (size_t at = 0; at < bytes.size(); at += 24'571) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 1 << at % 8);
    Overwrite(damaged);
    expect_damage();
  }
  for (size_t size = bytes.size() - 1; size > bytes.size() - 20; --size) {
    Overwrite(bytes.substr(0, size));
    expect_damage();
  }
  Overwrite(bytes + "x");
  expect_damage();
}

// Each file is sound by itself, and each record.
TEST_F(RocksDbLogReaderTest, WhatIsMissingOrInAnotherOrderIsFound) {
  const auto no_change = [](std::span<const RowWrite>) {};
  const Changes rows = {{1, "a"}, {2, std::nullopt}};
  const auto write = [&](const std::string& path, const std::vector<uint64_t>& sequences) {
    RocksDbLogWriter log(path);
    for (const uint64_t sequence : sequences) EXPECT_EQ(log.Append(WritesOf(1, rows), sequence), sequence + 3);
    log.Finish();
  };
  write(directory_ / "first", {100, 103});
  write(directory_ / "second", {106, 109, 112});
  write(directory_ / "gap", {106, 112});
  write(directory_ / "back", {109, 106});
  write(directory_ / "twice", {106, 106});
  EXPECT_EQ(ReadLogFile(directory_ / "first", no_change), 106u);
  EXPECT_EQ(ReadLogFile(directory_ / "second", no_change, 106), 115u);
  Overwrite("");
  EXPECT_EQ(ReadLogFile(path_, no_change, 106), 106u);
  for (const char* name : {"gap", "back", "twice"}) {
    ExpectError(ErrorCode::kCorruption, {directory_ / name, "order"},
                [&] { ReadLogFile(directory_ / name, no_change); });
  }
  ExpectError(ErrorCode::kCorruption, {directory_ / "second", "106", "115"},
              [&] { ReadLogFile(directory_ / "second", no_change, 115); });
}

TEST_F(RocksDbLogReaderTest, ARecordThatNoJournalHasIsCorruption) {
  const std::string header = std::string("\1\0\0\0\0\0\0\0", 8), key(EncodeKey(1, 4).view());
  const std::string deletion_key(EncodeDeletionKey(1, 4).view()), step = std::string("\1\5\0\0\0\0\0\0\0", 9);
  const std::string one = header + std::string("\1\0\0\0", 4), two = header + std::string("\2\0\0\0", 4);
  const std::string put = std::string("\1\14") + key + std::string("\3\1ab");
  const std::string deletion = std::string("\0\14", 2) + key + "\1\14" + deletion_key + "\11" + step;
  WriteRecord(one + put);
  EXPECT_EQ(ChangesIn(path_), (std::vector<Change>{{1, 4, false, "ab", 0}}));
  WriteRecord(two + deletion);
  EXPECT_EQ(ChangesIn(path_), (std::vector<Change>{{1, 4, true, "", 5}}));
  WriteRecord(one + std::string("\0\14", 2) + key);  // of a row that had died
  EXPECT_EQ(ChangesIn(path_), (std::vector<Change>{{1, 4, true, "", 0}}));

  const std::string other_key(EncodeDeletionKey(1, 5).view());
  const std::vector<std::pair<std::string, std::string>> records = {
      {"no header", "abc"},
      {"fewer changes than it says", two + put},
      {"more changes than it says", one + put + put},
      {"a deletion is two", one + deletion},
      {"half a change", one + put.substr(0, put.size() - 1)},
      {"a merge", one + std::string("\2\14") + key + "\1a"},
      {"a change of a column family", one + std::string("\5\1\14") + key + "\1\1"},
      {"a short key", one + std::string("\1\13") + key.substr(1) + "\1\1"},
      {"a value without a version", one + std::string("\1\14") + key + std::string("\0", 1)},
      {"an unknown version", one + std::string("\1\14") + key + "\2\7a"},
      {"a size of six bytes", one + std::string("\1\14") + key + "\x80\x80\x80\x80\x80\1"},
      {"a size beyond the end", one + std::string("\1\14") + key + "\xff\xff\xff\xff\xf"},
      {"a value larger than any row's", one + std::string("\1\14") + key + "\xff\xff\xff\xff\7"},
      {"changes that end all numbers", std::string("\0\0\0\0\0\0\0\1", 8) + std::string("\1\0\0\0", 4) + put},
      {"a number that is negative", std::string(8, '\xff') + std::string("\1\0\0\0", 4) + put},
      {"a deletion of two changes without its record", two + std::string("\0\14", 2) + key},
      {"a deletion with the record of another",
       two + std::string("\0\14", 2) + key + "\1\14" + other_key + "\11" + step},
      {"a deletion's record alone", one + "\1\14" + deletion_key + "\11" + step},
      {"a deletion's record of another size", two + std::string("\0\14", 2) + key + "\1\14" + deletion_key + "\2\1a"},
  };
  for (const auto& [what, record] : records) {
    SCOPED_TRACE(what);
    WriteRecord(record);
    ExpectError(ErrorCode::kCorruption, {path_}, [&] { ChangesIn(path_); });
    ExpectError(ErrorCode::kCorruption, {path_}, [&] { VerifyLogFile(path_); });
  }
}

TEST_F(RocksDbLogReaderTest, SightingsAndDeletionsOfTheDeadComeBackAsTheyWere) {
  const std::string row = Payload(40, 1, 1), seen(sizeof(RowHeader), '\7');
  std::vector<RowWrite> writes = {{1, 1, row.data(), row.size(), 0},
                                  {1, 2, seen.data(), seen.size(), 0},
                                  {1, 3, nullptr, 0, 0},
                                  {1, 4, nullptr, 0, 9},
                                  {1, 5, nullptr, 0, 0}};
  writes[1].sighting = true;
  writes[2].recorded = writes[4].recorded = false;
  std::filesystem::remove(path_);
  RocksDbLogWriter log(path_);
  for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(log.Append(writes, 1 + 6 * i), 7 + 6 * i);
  log.Finish();
  size_t n = 0;
  ReadLogFile(path_, [&](std::span<const RowWrite> rows) {
    for (const RowWrite& read : rows) {
      const RowWrite& written = writes[n++ % writes.size()];
      EXPECT_EQ(read.id, written.id);
      EXPECT_EQ(read.sighting, written.sighting);
      EXPECT_EQ(read.step, written.step);
      ASSERT_EQ(read.deletes(), written.deletes());
      if (read.deletes()) {
        EXPECT_EQ(read.recorded, written.recorded);
      } else {
        EXPECT_EQ(std::string(read.payload, read.payload_size), std::string(written.payload, written.payload_size));
      }
    }
  });
  EXPECT_EQ(n, 3 * writes.size());
}

TEST_F(RocksDbLogReaderTest, AnEmptyFileHasNoChanges) {
  Overwrite("");
  EXPECT_TRUE(ChangesIn(path_).empty());
  ExpectError(ErrorCode::kIo, {directory_ / "none"}, [&] { ChangesIn(directory_ / "none"); });
}

}  // namespace
}  // namespace damo
