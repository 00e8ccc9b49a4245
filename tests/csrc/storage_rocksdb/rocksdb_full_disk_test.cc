// A full disk: an exception, no lost row, and work goes on once there is space.
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "storage/row_store_testing.h"
#include "storage_rocksdb/rocksdb_store.h"
#include "testing/system_calls.h"

namespace {

std::atomic<bool> disk_is_full = false;
std::atomic<bool> disk_is_full_for_compactions = false;
thread_local int sleeps = 0;  // of this thread

bool ThisThreadCompacts() {
  char name[16] = {};
  ::pthread_getname_np(::pthread_self(), name, sizeof(name));
  return std::string_view(name) == "rocksdb:low";
}

int FailOnFullDisk(const char* call) {
  sleeps += std::string_view(call) == "nanosleep" ? 1 : 0;
  const bool full = disk_is_full || (disk_is_full_for_compactions && ThisThreadCompacts());
  return full && std::string_view(call) == "write" ? ENOSPC : 0;
}

}  // namespace

namespace damo {
namespace {

using testing::Changes;
using testing::ErrorOf;
using testing::ExpectError;
using testing::Payload;
using testing::ScanAll;
using testing::Table;
using testing::TemporaryDirectory;

constexpr size_t kSize = 1000;

class RocksDbFullDiskTest : public ::testing::Test {
 protected:
  RocksDbFullDiskTest() { testing::system_call_hook = FailOnFullDisk; }
  ~RocksDbFullDiskTest() override {
    disk_is_full = disk_is_full_for_compactions = false;
    testing::system_call_hook = nullptr;
  }

  static std::unique_ptr<RowStore> Create(const std::string& path) {
    RocksDbOptions options;
    options.path = path;
    options.create = true;
    options.memory_bytes = size_t{8} << 20;
    return OpenRocksDbStore(options);
  }

  // One Write of 100 kB that `rows_` records only if it succeeds.
  void WriteBatch(uint64_t version) {
    Changes changes;
    for (int64_t i = 0; i < 100; ++i) {
      const int64_t id = (static_cast<int64_t>(version) * 7919 + i * 31) % 10'000;
      changes[id] = Payload(kSize, 1, id, version);
    }
    testing::Write(store_.get(), 1, changes);
    for (const auto& [id, payload] : changes) rows_[id] = *payload;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<RowStore> store_ = Create(directory_ / "live");
  Table rows_;
};

TEST_F(RocksDbFullDiskTest, WritesThrowThenGoOn) {
  uint64_t version = 0;
  for (int i = 0; i < 50; ++i) WriteBatch(++version);
  disk_is_full = true;
  std::optional<Error> error;
  for (int i = 0; i < 200 && !error; ++i) error = ErrorOf([&] { WriteBatch(++version); });
  ASSERT_TRUE(error.has_value()) << "20 MB fitted into 8 MiB of memory and no disk";
  EXPECT_EQ(error->code(), ErrorCode::kOutOfSpace) << error->what();
  EXPECT_NE(std::string(error->what()).find(directory_ / "live"), std::string::npos) << error->what();
  EXPECT_NE(std::string(error->what()).find(" more bytes"), std::string::npos) << error->what();
  EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_) << "what was written before can be read";
  EXPECT_LE(store_->Stats().memory_bytes, size_t{9} << 20);

  disk_is_full = false;
  WriteBatch(++version);
  EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_);
  store_->Checkpoint(directory_ / "rows", /*link=*/true);
  RocksDbOptions options;
  options.path = directory_ / "rows";
  options.read_only = true;
  EXPECT_TRUE(ScanAll(OpenRocksDbStore(options).get(), 1, kSize) == rows_) << "the checkpoint lacks rows";
}

TEST_F(RocksDbFullDiskTest, EveryCallIsToldAtOnceAndReadsGoOn) {
  uint64_t version = 0;
  disk_is_full = true;
  while (!ErrorOf([&] { WriteBatch(version + 1); })) ++version;
  sleeps = 0;
  for (int i = 0; i < 20; ++i) {
    ExpectError(ErrorCode::kOutOfSpace, {directory_ / "live"}, [&] { WriteBatch(version + 1); });
    ExpectError(ErrorCode::kOutOfSpace, {directory_ / "rows"}, [&] { store_->Checkpoint(directory_ / "rows", true); });
    EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_);
  }
  EXPECT_EQ(sleeps, 0) << "a call has waited for space";

  disk_is_full = false;
  WriteBatch(version + 1);
  store_->Checkpoint(directory_ / "rows", /*link=*/true);
  EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_);
}

TEST_F(RocksDbFullDiskTest, SeveralThreadsFindSpaceAtOnce) {
  uint64_t version = 0;
  disk_is_full = true;
  while (!ErrorOf([&] { WriteBatch(version + 1); })) ++version;
  disk_is_full = false;
  std::vector<std::thread> threads;
  std::atomic<int> failed = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string path = directory_ / ("rows" + std::to_string(t));
      if (ErrorOf([&] { store_->Checkpoint(path, /*link=*/false); })) ++failed;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
}

TEST_F(RocksDbFullDiskTest, CompactionsThatFailForLongStopWrites) {
  disk_is_full_for_compactions = true;
  uint64_t version = 0;
  std::optional<Error> error;
  for (int i = 0; i < 1000 && !error; ++i) error = ErrorOf([&] { WriteBatch(++version); });
  ASSERT_TRUE(error.has_value()) << "100 MB were written without a compaction";
  EXPECT_EQ(error->code(), ErrorCode::kOutOfSpace) << error->what();
  EXPECT_GT(version, 100u) << "the first that fails holds nobody up";
  EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_);
  store_->Checkpoint(directory_ / "rows", /*link=*/true);

  disk_is_full_for_compactions = false;
  WriteBatch(++version);
  EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_);
}

TEST_F(RocksDbFullDiskTest, CheckpointThrowsThenSucceeds) {
  WriteBatch(1);
  disk_is_full = true;
  ExpectError(ErrorCode::kOutOfSpace, {directory_ / "rows"},
              [&] { store_->Checkpoint(directory_ / "rows", /*link=*/true); });
  EXPECT_FALSE(std::filesystem::exists(directory_ / "rows")) << "a part of a checkpoint was left";
  disk_is_full = false;
  store_->Checkpoint(directory_ / "rows", /*link=*/true);
  WriteBatch(2);
  EXPECT_TRUE(ScanAll(store_.get(), 1, kSize) == rows_);
}

}  // namespace
}  // namespace damo
