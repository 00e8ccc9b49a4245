// Checkpoints as files: what is shared, what is copied, what reading them leaves alone, and what damage is found.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "storage_rocksdb/rocksdb_store.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using namespace testing;

TEST(RocksDbCheckpointTest, CheckpointLinksOnRequest) {
  TemporaryDirectory directory;
  const std::unique_ptr<RowStore> store = Create(directory / "live");
  const Table rows = SomeRows(1000);
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  EXPECT_TRUE(store->Checkpoint(directory / "linked", /*link=*/true));
  EXPECT_FALSE(store->Checkpoint(directory / "copied", /*link=*/false));
  ASSERT_EQ(TableFiles(directory / "linked").size(), 1u);
  ASSERT_EQ(TableFiles(directory / "copied").size(), 1u);
  EXPECT_EQ(StatOf(TableFiles(directory / "linked")[0]).st_nlink, 2u);
  EXPECT_EQ(StatOf(TableFiles(directory / "copied")[0]).st_nlink, 1u);
  for (const std::string name : {"linked", "copied"}) {
    for (const auto& file : fs::directory_iterator(directory / name)) {
      if (file.path().extension() == ".sst") continue;
      EXPECT_EQ(StatOf(file.path()).st_nlink, 1u) << file.path();
    }
  }
}

TEST(RocksDbCheckpointTest, CheckpointCopiesToAnotherDevice) {
  TemporaryDirectory directory;
  if (StatOf("/dev/shm").st_dev == StatOf(directory / ".").st_dev) GTEST_SKIP() << "/dev/shm is the same device";
  TemporaryDirectory other("/dev/shm");
  const std::unique_ptr<RowStore> store = Create(directory / "live");
  const Table rows = SomeRows(1000);
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  EXPECT_FALSE(store->Checkpoint(other / "rows", /*link=*/true));
  EXPECT_EQ(ScanAll(OpenReadOnly(other / "rows").get(), 1, kSize), rows);
  LinkOrCopyRocksDb(other / "rows", directory / "back");
  EXPECT_EQ(ScanAll(Open(directory / "back").get(), 1, kSize), rows);
}

TEST(RocksDbCheckpointTest, LiveStoreNeverAltersItsCheckpoint) {
  TemporaryDirectory directory;
  const Table rows = SomeRows(5000);
  MakeCheckpoint(directory, rows, directory / "rows");
  const auto before = Contents(directory / "rows");
  LinkOrCopyRocksDb(directory / "rows", directory / "live");
  EXPECT_EQ(StatOf(TableFiles(directory / "rows")[0]).st_nlink, 2u);
  {
    const std::unique_ptr<RowStore> store = Open(directory / "live");
    for (uint64_t version = 1; version < 40; ++version) {  // enough for flushes and compactions
      Changes changes;
      for (const auto& [id, payload] : rows) changes[id] = Payload(kSize, 1, id, version);
      Write(store.get(), 1, changes);
    }
    store->Checkpoint(directory / "later", /*link=*/true);
  }
  EXPECT_EQ(Contents(directory / "rows"), before);
  fs::remove_all(directory / "live");
  EXPECT_EQ(Contents(directory / "rows"), before);
}

TEST(RocksDbCheckpointTest, LinkOrCopyLeavesNothingBehindOnFailure) {
  TemporaryDirectory directory;
  ExpectError(ErrorCode::kIo, {directory / "absent"},
              [&] { LinkOrCopyRocksDb(directory / "absent", directory / "live"); });
  EXPECT_FALSE(fs::exists(directory / "live"));
  Create(directory / "there")->Close();
  const auto before = Contents(directory / "there");
  ExpectError(ErrorCode::kInvalidArgument, {directory / "there"},
              [&] { LinkOrCopyRocksDb(directory / "absent", directory / "there"); });
  EXPECT_EQ(Contents(directory / "there"), before);
}

TEST(RocksDbCheckpointTest, ReadOnlyOpenWritesNothing) {
  TemporaryDirectory directory;
  const Table rows = SomeRows(3000);
  MakeCheckpoint(directory, rows, directory / "rows");
  // Dates long past show every write since, however soon.
  const auto past = fs::file_time_type::clock::now() - std::chrono::hours(1000);
  for (const auto& file : fs::directory_iterator(directory / "rows")) fs::last_write_time(file.path(), past);
  fs::last_write_time(directory / "rows", past);
  fs::last_write_time(directory / ".", past);
  const auto before = Contents(directory / "rows");
  {
    const std::unique_ptr<RowStore> store = OpenReadOnly(directory / "rows");
    const std::unique_ptr<RowStore> another = OpenReadOnly(directory / "rows");
    EXPECT_EQ(ScanAll(store.get(), 1, kSize), rows);
    EXPECT_EQ(Get(another.get(), 1, IdsOf(rows), kSize), rows);
    ExpectError(ErrorCode::kIo, {"write"}, [&] { Write(store.get(), 1, {{1, Payload(kSize, 1, 1)}}); });
    EXPECT_TRUE(ErrorOf([&] { store->Checkpoint(directory / "copy", true); }).has_value());
    EXPECT_FALSE(fs::exists(directory / "copy"));
  }
  EXPECT_EQ(Contents(directory / "rows"), before);
  for (const auto& file : fs::directory_iterator(directory / "rows")) {
    EXPECT_EQ(fs::last_write_time(file.path()), past) << file.path();
  }
  EXPECT_EQ(fs::last_write_time(directory / "rows"), past);
}

// A byte may be padding, which nobody reads; what is read is either what was written or an error that names the place.
TEST(RocksDbCheckpointTest, FlippedByteIsCorruptionOrHarmless) {
  TemporaryDirectory directory;
  const Table rows = SomeRows(400);
  MakeCheckpoint(directory, rows, directory / "rows");
  const fs::path path = TableFiles(directory / "rows").at(0);
  const std::string original = ReadFile(path);
  const std::vector<int64_t> ids = IdsOf(rows);
  const auto read = [&] {
    const std::unique_ptr<RowStore> store = OpenReadOnly(directory / "rows");
    EXPECT_EQ(Get(store.get(), 1, ids, kSize), rows);
    EXPECT_EQ(ScanAll(store.get(), 1, kSize), rows);
  };
  size_t detected = 0, tried = 0;
  for (size_t at = 0; at < original.size(); at += 97, ++tried) {
    std::string flipped = original;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (at % 8)));
    std::ofstream(path, std::ios::binary | std::ios::trunc) << flipped;
    const std::optional<Error> error = ErrorOf(read);
    if (!error) continue;
    ++detected;
    EXPECT_EQ(error->code(), ErrorCode::kCorruption) << "byte " << at << ": " << error->what();
    EXPECT_NE(std::string(error->what()).find(directory / "rows/"), std::string::npos) << error->what();
  }
  EXPECT_GT(detected, tried / 2);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << original;
  read();
}

TEST(RocksDbCheckpointTest, CorruptRowIsNamedOthersAreRead) {
  TemporaryDirectory directory;
  const Table rows = SomeRows(400);
  MakeCheckpoint(directory, rows, directory / "rows");
  const fs::path path = TableFiles(directory / "rows").at(0);
  std::string bytes = ReadFile(path);
  const size_t at = bytes.find(rows.at(200));
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  const std::unique_ptr<RowStore> store = OpenReadOnly(directory / "rows");
  EXPECT_EQ(Get(store.get(), 1, {0, 399}, kSize).size(), 2u);
  ExpectError(ErrorCode::kCorruption, {"table 1", "id 200", path.filename().string()},
              [&] { Get(store.get(), 1, {0, 200, 399}, kSize); });
  ExpectError(ErrorCode::kCorruption, {"table 1", path.filename().string()}, [&] { ScanAll(store.get(), 1, kSize); });
}

TEST(RocksDbCheckpointTest, TruncatedAndMissingFilesAreErrors) {
  TemporaryDirectory directory;
  MakeCheckpoint(directory, SomeRows(400), directory / "rows");
  const fs::path path = TableFiles(directory / "rows").at(0);
  fs::resize_file(path, fs::file_size(path) - 1);
  ExpectError(ErrorCode::kCorruption, {directory / "rows"}, [&] { OpenReadOnly(directory / "rows"); });
  fs::remove(path);
  EXPECT_TRUE(ErrorOf([&] { OpenReadOnly(directory / "rows"); }).has_value());
  MakeCheckpoint(directory, SomeRows(400), directory / "others");
  fs::remove(directory / "others/CURRENT");
  EXPECT_TRUE(ErrorOf([&] { OpenReadOnly(directory / "others"); }).has_value());
}

}  // namespace
}  // namespace damo
