// What is RocksDbStore's alone: its bytes, its options and its memory.
#include "storage_rocksdb/rocksdb_store.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/version.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using namespace testing;

TEST(RocksDbStoreTest, BytesAreAsDocumented) {
  TemporaryDirectory directory;
  {
    const std::unique_ptr<RowStore> store = Create(directory / "live");
    Write(store.get(), 2, {{-1, "payload!"}, {0, "gone"}});
    Write(store.get(), 2, {{0, std::nullopt}}, /*step=*/0x0102030405060708);
    store->Checkpoint(directory / "rows", /*link=*/true);
  }
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> opened;
#else
  rocksdb::DB* opened = nullptr;
#endif
  ASSERT_TRUE(rocksdb::DB::OpenForReadOnly({}, directory / "rows", &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(std::move(opened));
  const std::unique_ptr<rocksdb::Iterator> entry(db->NewIterator({}));
  std::map<std::string, std::string> entries;
  for (entry->SeekToFirst(); entry->Valid(); entry->Next())
    entries[entry->key().ToString()] = entry->value().ToString();
  const std::map<std::string, std::string> expected = {
      {std::string("\0\0\0\x02\x7f\xff\xff\xff\xff\xff\xff\xff", 12), "\x01payload!"},
      {std::string("\x80\0\0\x02\x80\0\0\0\0\0\0\0", 12), "\x01\x08\x07\x06\x05\x04\x03\x02\x01"}};
  EXPECT_EQ(entries, expected);
}

TEST(RocksDbStoreTest, OpenIsExplicitAboutWhatExists) {
  TemporaryDirectory directory;
  ExpectError(ErrorCode::kIo, {directory / "live"}, [&] { Open(directory / "live"); });
  Create(directory / "live")->Close();
  ExpectError(ErrorCode::kIo, {directory / "live"}, [&] { Create(directory / "live"); });
  EXPECT_NO_THROW(Open(directory / "live"));
}

TEST(RocksDbStoreTest, ContradictoryOptionsAreRefused) {
  TemporaryDirectory directory;
  RocksDbOptions options = Options(directory / "live");
  options.create = options.read_only = true;
  ExpectError(ErrorCode::kInvalidArgument, {"read-only"}, [&] { OpenRocksDbStore(options); });
  options.read_only = false;
  options.memory_bytes = kMiB;
  ExpectError(ErrorCode::kInvalidArgument, {"8388608", "1048576"}, [&] { OpenRocksDbStore(options); });
  EXPECT_FALSE(fs::exists(options.path));
}

TEST(RocksDbStoreTest, ScanOutlivesClose) {
  TemporaryDirectory directory;
  const std::unique_ptr<RowStore> store = Create(directory / "live");
  const Table rows = SomeRows(1000);
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  const std::unique_ptr<RowIterator> scan = store->Scan(1, kSize);
  store->Close();
  EXPECT_EQ(ReadAll(scan.get(), kSize), rows);
}

TEST(RocksDbStoreTest, ReopeningSeesTheLastCheckpointOnly) {
  TemporaryDirectory directory;
  const std::unique_ptr<RowStore> store = Create(directory / "live");
  const Table rows = SomeRows(1000);
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  store->Checkpoint(directory / "rows", /*link=*/true);
  Write(store.get(), 1, {{5, std::nullopt}});
  store->Close();
  EXPECT_EQ(ScanAll(Open(directory / "live").get(), 1, kSize), rows) << "Close flushes nothing";
}

// The figure for table 0 of 10 million rows would be the same: what grows with a store is cached, not held.
TEST(RocksDbStoreTest, MemoryStaysWithinItsBudget) {
  TemporaryDirectory directory;
  const std::unique_ptr<RowStore> store = Create(directory / "live");
  constexpr size_t kRowSize = 328;
  constexpr size_t kSlack = 2 * kMiB;
  constexpr int64_t kIds = 900'000;  // 300 MB
  constexpr int64_t kBatch = 2000;
  std::vector<int64_t> ids(kIds);
  std::iota(ids.begin(), ids.end(), -kIds / 2);
  std::shuffle(ids.begin(), ids.end(), std::mt19937_64(3));
  uint64_t peak = 0;
  for (int64_t begin = 0; begin < kIds; begin += kBatch) {
    Changes changes;
    for (int64_t i = begin; i < begin + kBatch; ++i) changes[ids[i]] = Payload(kRowSize, 0, ids[i]);
    Write(store.get(), 0, changes);
    peak = std::max(peak, store->Stats().memory_bytes);
    if (begin % (20 * kBatch) != 0) continue;
    std::vector<int64_t> read(ids.begin(), ids.begin() + std::min<int64_t>(begin + kBatch, 4000));
    std::sort(read.begin(), read.end());
    const Table rows = Get(store.get(), 0, read, kRowSize);
    ASSERT_EQ(rows.size(), read.size());
    for (const auto& [id, payload] : rows) ASSERT_EQ(payload, Payload(kRowSize, 0, id));
    peak = std::max(peak, store->Stats().memory_bytes);
  }
  EXPECT_LE(peak, 16 * kMiB + kSlack);
  EXPECT_GT(peak, 4 * kMiB);
  store->Checkpoint(directory / "rows", /*link=*/true);
  const std::unique_ptr<RowStore> opened = OpenReadOnly(directory / "rows");
  const std::unique_ptr<RowIterator> scan = opened->Scan(0, kRowSize);
  int64_t id, count = 0;
  for (const char* payload; scan->Next(&id, &payload); ++count) {
    if (count % 1000 == 0) peak = std::max(peak, opened->Stats().memory_bytes);
  }
  EXPECT_EQ(count, kIds);
  EXPECT_LE(peak, 16 * kMiB + kSlack);
  const RowStoreStats stats = store->Stats();
  EXPECT_GE(stats.disk_bytes, kIds * kRowSize);
  EXPECT_LE(stats.disk_bytes, kIds * kRowSize * 3 / 2);
  EXPECT_GE(stats.bytes_written, stats.disk_bytes);
}

TEST(RocksDbStoreTest, StatsBeginAtNothing) {
  TemporaryDirectory directory;
  const std::unique_ptr<RowStore> store = Create(directory / "live");
  EXPECT_EQ(store->Stats().disk_bytes, 0u);
  EXPECT_EQ(store->Stats().bytes_written, 0u);
  EXPECT_LE(store->Stats().memory_bytes, 3 * kMiB);
}

// A process that may open few files still opens a store of many.
TEST(RocksDbStoreTest, FewOpenFilesSuffice) {
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few = before;
  few.rlim_cur = 60;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  {
    TemporaryDirectory directory;
    const std::unique_ptr<RowStore> store = Create(directory / "live");
    for (int64_t begin = 0; begin < 160'000; begin += 1000) {
      Changes changes;
      for (int64_t id = begin; id < begin + 1000; ++id) changes[id] = Payload(1000, 1, id);
      Write(store.get(), 1, changes);
    }
    EXPECT_GT(TableFiles(directory / "live").size(), few.rlim_cur);
    EXPECT_EQ(Get(store.get(), 1, {0, 80'000, 159'999}, 1000).size(), 3u);
    store->Checkpoint(directory / "rows", /*link=*/true);
    store->Close();
    EXPECT_EQ(ScanAll(OpenReadOnly(directory / "rows").get(), 1, 1000).size(), 160'000u);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(RocksDbStoreTest, DirectIo) {
  TemporaryDirectory directory;
  RocksDbOptions options = Options(directory / "live");
  options.create = options.direct_io = true;
  std::unique_ptr<RowStore> store;
  if (ErrorOf([&] { store = OpenRocksDbStore(options); })) GTEST_SKIP() << "no direct I/O on this file system";
  const Table rows = SomeRows(50'000);
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  store->Checkpoint(directory / "rows", /*link=*/true);
  options.path = directory / "rows";
  options.create = false;
  options.read_only = true;
  store = OpenRocksDbStore(options);
  EXPECT_TRUE(Get(store.get(), 1, IdsOf(rows), kSize) == rows);
  EXPECT_TRUE(ScanAll(store.get(), 1, kSize) == rows);
}

}  // namespace
}  // namespace damo
