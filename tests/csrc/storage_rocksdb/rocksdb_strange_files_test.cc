// Directories that a stranger filled: links, FIFOs and directories in place of files, and records that no store of this
// project writes, with checksums that match.
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/merge_operator.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_log.h"
#include "storage_rocksdb/rocksdb_log_reader.h"
#include "storage_rocksdb/rocksdb_salvage.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using namespace testing;

// Moves `file` away and puts something else in its place.
struct Replacement {
  std::string kind;
  std::function<void(const fs::path& file, const fs::path& moved)> put;
};

const std::vector<Replacement>& Replacements() {
  static const std::vector<Replacement> all = {
      {"a symbolic link", [](const fs::path& file, const fs::path& moved) { fs::create_symlink(moved, file); }},
      {"a symbolic link",
       [](const fs::path& file, const fs::path& moved) { fs::create_symlink(moved.string() + "-none", file); }},
      {"a symbolic link", [](const fs::path& file, const fs::path&) { fs::create_symlink("/dev/zero", file); }},
      {"a FIFO", [](const fs::path& file, const fs::path&) { ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0); }},
      {"a directory", [](const fs::path& file, const fs::path&) { fs::create_directory(file); }},
  };
  return all;
}

std::string FileIn(const std::string& directory, const std::string& beginning, const std::string& extension = "") {
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(beginning) && name.ends_with(extension)) return entry.path();
  }
  ADD_FAILURE() << "no " << beginning << "*" << extension << " in " << directory;
  return "";
}

class RocksDbStrangeFilesTest : public ::testing::Test {
 protected:
  // A checkpoint with table files and a log.
  void SetUp() override {
    MakeCheckpoint(directory_, SomeRows(100), path_);
    RocksDbLogWriter log(path_ + "/000900.log");
    const std::string payload = Payload(kSize, 1, 7);
    const RowWrite row{1, 7, payload.data(), payload.size(), 0};
    log.Append({&row, 1}, uint64_t{1} << 36);
    log.Finish();
  }

  // Runs `call` with each of the replacements of the file.
  void ExpectRefused(const std::string& file, const std::function<void()>& call) {
    SCOPED_TRACE(file);
    const std::string moved = directory_ / "moved";
    for (const Replacement& replacement : Replacements()) {
      SCOPED_TRACE(replacement.kind);
      fs::rename(file, moved);
      replacement.put(file, moved);
      ExpectError(ErrorCode::kCorruption, {fs::path(file).filename(), replacement.kind}, call);
      EXPECT_FALSE(fs::exists(moved + "-none"));
      fs::remove(file);
      fs::rename(moved, file);
    }
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "checkpoint";
};

TEST_F(RocksDbStrangeFilesTest, AreNeverOpened) {
  for (const char* name : {"CURRENT", "MANIFEST-"}) {
    ExpectRefused(FileIn(path_, name), [&] { OpenReadOnly(path_); });
    ExpectRefused(FileIn(path_, name), [&] { ListTableFiles(path_); });
  }
  ExpectRefused(FileIn(path_, "", ".sst"), [&] { OpenReadOnly(path_); });
  ExpectRefused(FileIn(path_, "", ".sst"), [&] { VerifyTableFile(FileIn(path_, "", ".sst")); });
  ExpectRefused(FileIn(path_, "", ".log"), [&] { VerifyLogFile(FileIn(path_, "", ".log")); });
  EXPECT_EQ(ScanAll(OpenReadOnly(path_).get(), 1, kSize), SomeRows(100));
}

TEST_F(RocksDbStrangeFilesTest, AreNotCopied) {
  for (const auto& entry : fs::directory_iterator(path_)) {
    ExpectRefused(entry.path(), [&] { LinkOrCopyRocksDb(path_, directory_ / "live"); });
    EXPECT_FALSE(fs::exists(directory_ / "live"));
  }
}

TEST_F(RocksDbStrangeFilesTest, ALockOfRocksDbThatLeadsElsewhereIsNotMade) {
  LinkOrCopyRocksDb(path_, directory_ / "live", /*logs=*/false);
  fs::create_symlink(directory_ / "elsewhere", directory_ / "live/LOCK");
  ExpectError(ErrorCode::kCorruption, {"LOCK", "a symbolic link"}, [&] { Open(directory_ / "live"); });
  EXPECT_FALSE(fs::exists(directory_ / "elsewhere"));
}

TEST_F(RocksDbStrangeFilesTest, TableFilesMayBeLinksWhereTheCallerMadeThem) {
  fs::create_directory(directory_ / "copy");
  for (const auto& entry : fs::directory_iterator(path_)) {
    const fs::path to = fs::path(directory_ / "copy") / entry.path().filename();
    if (entry.path().extension() == ".sst") {
      fs::create_symlink(entry.path(), to);
    } else if (entry.path().extension() != ".log") {
      fs::copy(entry.path(), to);
    }
  }
  RocksDbOptions options = Options(directory_ / "copy");
  options.table_files = Links::kFollow;
  EXPECT_EQ(ScanAll(OpenRocksDbStore(options).get(), 1, kSize), SomeRows(100));
}

TEST_F(RocksDbStrangeFilesTest, AFileNumberAtTheEndOfAllIsRefused) {
  std::ofstream(path_ + "/18446744073709551615.log") << "";
  ExpectError(ErrorCode::kCorruption, {"18446744073709551615.log"},
              [&] { LinkOrCopyRocksDb(path_, directory_ / "live"); });
}

TEST_F(RocksDbStrangeFilesTest, ChangesWithNumbersThatLeaveNoneAreRefused) {
  const std::string log = FileIn(path_, "000900", ".log"), payload = Payload(kSize, 1, 7);
  const RowWrite row{1, 7, payload.data(), payload.size(), 0};
  for (const uint64_t sequence : {(uint64_t{1} << 55) + 1, (uint64_t{1} << 56) - 2, (uint64_t{1} << 56) - 1}) {
    fs::remove(log);
    RocksDbLogWriter writer(log);
    writer.Append({&row, 1}, sequence);
    writer.Finish();
    ExpectError(ErrorCode::kCorruption, {log, std::to_string(sequence)}, [&] { VerifyLogFile(log); });
  }
}

class LastOfAll : public rocksdb::AssociativeMergeOperator {
 public:
  bool Merge(const rocksdb::Slice&, const rocksdb::Slice*, const rocksdb::Slice& value, std::string* merged,
             rocksdb::Logger*) const override {
    *merged = value.ToString();
    return true;
  }
  const char* Name() const override { return "LastOfAll"; }
};

// Has RocksDB alone write these records into the database, which it makes if need be.
void WriteRecords(const std::string& path, const std::function<void(rocksdb::WriteBatch*)>& fill) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.merge_operator = std::make_shared<LastOfAll>();
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> db;
  ASSERT_TRUE(rocksdb::DB::Open(options, path, &db).ok());
#else
  rocksdb::DB* opened = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, path, &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
#endif
  rocksdb::WriteBatch batch;
  fill(&batch);
  ASSERT_TRUE(db->Write({}, &batch).ok());
  ASSERT_TRUE(db->Flush({}).ok());
  ASSERT_TRUE(db->Close().ok());
}

TEST_F(RocksDbStrangeFilesTest, ADatabaseWithNumbersThatLeaveNoneIsRefused) {
  const std::string log = FileIn(path_, "000900", ".log"), payload = Payload(kSize, 1, 7);
  const RowWrite row{1, 7, payload.data(), payload.size(), 0};
  fs::remove(log);
  RocksDbLogWriter writer(log);
  writer.Append({&row, 1}, (uint64_t{1} << 55) + 1);
  writer.Finish();
  WriteRecords(path_, [&](rocksdb::WriteBatch* batch) { batch->Put(EncodeKey(1, 8).view(), "x"); });
  ExpectError(ErrorCode::kCorruption, {path_, "36028797018963970"}, [&] { OpenReadOnly(path_); });
  ExpectError(ErrorCode::kCorruption, {path_, "36028797018963970"}, [&] { Open(path_); });
}

TEST_F(RocksDbStrangeFilesTest, RecordsThatNoStoreWritesAreCorruption) {
  const std::string payload = Payload(kSize, 1, 5);
  std::string value(1, kRecordVersion);
  value += payload;
  const Key first = EncodeKey(1, 5), second = EncodeKey(1, 9);
  const std::vector<std::pair<std::string, std::function<void(rocksdb::WriteBatch*)>>> batches = {
      {"a key of 5 bytes", [&](auto* b) { b->Put(first.view().substr(0, 5), value); }},
      {"a key of 13 bytes", [&](auto* b) { b->Put(std::string(second.view()) + "x", value); }},
      {"a row of another size", [&](auto* b) { b->Put(second.view(), value + "x"); }},
      {"another version", [&](auto* b) { b->Put(second.view(), "x" + value); }},
      {"no value", [&](auto* b) { b->Put(second.view(), ""); }},
      {"a merge", [&](auto* b) { b->Merge(second.view(), "abc"); }},
  };
  for (const auto& [what, fill] : batches) {
    SCOPED_TRACE(what);
    const std::string path = directory_ / "odd";
    WriteRecords(path, [&, &fill = fill](rocksdb::WriteBatch* batch) {
      batch->Put(first.view(), value);
      fill(batch);
    });
    const std::unique_ptr<RowStore> store = OpenReadOnly(path);
    ExpectError(ErrorCode::kCorruption, {"table 1"}, [&] { ScanAll(store.get(), 1, kSize); });
    EXPECT_EQ(Get(store.get(), 1, {5}, kSize), (Table{{5, payload}}));
    if (what.find("key") == std::string::npos) {
      ExpectError(ErrorCode::kCorruption, {"table 1, id 9"}, [&] { Get(store.get(), 1, {9}, kSize); });
    }
    store->Close();
    fs::remove_all(path);
  }
}

}  // namespace
}  // namespace damo
