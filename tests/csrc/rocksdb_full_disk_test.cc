// A full disk: an exception, no lost row, and work goes on once there is space.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>

#include "rocksdb_store.h"
#include "row_store_testing.h"

namespace {
std::atomic<bool> disk_is_full = false;
}

// In place of the C library's: RocksDB appends to its files through it.
extern "C" ssize_t write(int fd, const void* bytes, size_t size) {
  if (disk_is_full && fd > 2) {
    errno = ENOSPC;
    return -1;
  }
  return ::syscall(SYS_write, fd, bytes, size);
}

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
  ~RocksDbFullDiskTest() override { disk_is_full = false; }

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
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 50; ++i) WriteBatch(++version);
    disk_is_full = true;
    std::optional<Error> error;
    for (int i = 0; i < 200 && !error; ++i) error = ErrorOf([&] { WriteBatch(++version); });
    ASSERT_TRUE(error.has_value()) << "20 MB fitted into 8 MiB of memory and no disk";
    EXPECT_EQ(error->code(), ErrorCode::kOutOfSpace) << error->what();
    EXPECT_NE(std::string(error->what()).find(directory_ / "live"), std::string::npos) << error->what();
    for (int i = 0; i < 5; ++i) ExpectError(ErrorCode::kOutOfSpace, {}, [&] { WriteBatch(++version); });
    EXPECT_EQ(ScanAll(store_.get(), 1, kSize), rows_) << "what was written before can be read";
    EXPECT_LE(store_->Stats().memory_bytes, size_t{9} << 20);
    disk_is_full = false;
    WriteBatch(++version);
    EXPECT_EQ(ScanAll(store_.get(), 1, kSize), rows_);
  }
  store_->Checkpoint(directory_ / "rows", /*link=*/true);
  RocksDbOptions options;
  options.path = directory_ / "rows";
  options.read_only = true;
  const Table restored = ScanAll(OpenRocksDbStore(options).get(), 1, kSize);
  const Table live = ScanAll(store_.get(), 1, kSize);
  size_t missing=0, differ=0, extra=0, ld=0;
  for (auto& [id,p] : rows_) { if (!restored.contains(id)) ++missing; else if (restored.at(id)!=p) ++differ; if (!live.contains(id) || live.at(id)!=p) ++ld; }
  for (auto& [id,p] : restored) if (!rows_.contains(id)) ++extra;
  fprintf(stderr, "missing %zu differ %zu extra %zu livediff %zu of %zu version %lu\n", missing, differ, extra, ld, rows_.size(), version);
  EXPECT_TRUE(restored == rows_);
}

TEST_F(RocksDbFullDiskTest, CheckpointThrowsThenSucceeds) {
  WriteBatch(1);
  disk_is_full = true;
  for (int i = 0; i < 2; ++i) {
    ExpectError(ErrorCode::kOutOfSpace, {}, [&] { store_->Checkpoint(directory_ / "rows", /*link=*/true); });
    EXPECT_FALSE(std::filesystem::exists(directory_ / "rows")) << "a part of a checkpoint was left";
  }
  disk_is_full = false;
  store_->Checkpoint(directory_ / "rows", /*link=*/true);
  WriteBatch(2);
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize), rows_);
}

}  // namespace
}  // namespace damo
