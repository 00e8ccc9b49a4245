// What is RocksDbStore's alone: its files, its errors and its memory.
#include "rocksdb_store.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/version.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "key.h"
#include "row_store_testing.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using testing::Changes;
using testing::ErrorOf;
using testing::ExpectError;
using testing::Get;
using testing::Payload;
using testing::ReadAll;
using testing::ScanAll;
using testing::Table;
using testing::TemporaryDirectory;
using testing::Write;

constexpr size_t kSize = 88;
constexpr size_t kMiB = size_t{1} << 20;

RocksDbOptions Options(const std::string& path) {
  RocksDbOptions options;
  options.path = path;
  options.memory_bytes = 16 * kMiB;
  return options;
}

std::unique_ptr<RowStore> Create(const std::string& path) {
  RocksDbOptions options = Options(path);
  options.create = true;
  return OpenRocksDbStore(options);
}

std::unique_ptr<RowStore> Open(const std::string& path) { return OpenRocksDbStore(Options(path)); }

std::unique_ptr<RowStore> OpenReadOnly(const std::string& path) {
  RocksDbOptions options = Options(path);
  options.read_only = true;
  return OpenRocksDbStore(options);
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Every file with its bytes.
std::map<std::string, std::string> Contents(const std::string& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& file : fs::directory_iterator(directory)) {
    contents[file.path().filename().string()] = ReadFile(file.path());
  }
  return contents;
}

std::vector<fs::path> TableFiles(const std::string& directory) {
  std::vector<fs::path> files;
  for (const auto& file : fs::directory_iterator(directory)) {
    if (file.path().extension() == ".sst") files.push_back(file.path());
  }
  return files;
}

struct stat StatOf(const fs::path& path) {
  struct stat result;
  EXPECT_EQ(::stat(path.c_str(), &result), 0) << path;
  return result;
}

Table SomeRows(int64_t n, uint32_t table = 1) {
  Table rows;
  for (int64_t id = 0; id < n; ++id) rows[id] = Payload(kSize, table, id);
  return rows;
}

std::vector<int64_t> IdsOf(const Table& rows) {
  std::vector<int64_t> ids;
  for (const auto& [id, payload] : rows) ids.push_back(id);
  return ids;
}

// A checkpoint of a store with these rows of table 1.
void MakeCheckpoint(const TemporaryDirectory& directory, const Table& rows, const std::string& path) {
  const std::unique_ptr<RowStore> store = Create(directory / "made");
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  store->Checkpoint(path, /*link=*/false);
  store->Close();
  fs::remove_all(directory / "made");
}

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
  for (entry->SeekToFirst(); entry->Valid(); entry->Next()) entries[entry->key().ToString()] = entry->value().ToString();
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

TEST(RocksDbStoreTest, CheckpointLinksOnRequest) {
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

TEST(RocksDbStoreTest, CheckpointCopiesToAnotherDevice) {
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

TEST(RocksDbStoreTest, LiveStoreNeverAltersItsCheckpoint) {
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

TEST(RocksDbStoreTest, LinkOrCopyLeavesNothingBehindOnFailure) {
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

TEST(RocksDbStoreTest, ReadOnlyOpenWritesNothing) {
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
    ExpectError(ErrorCode::kIo, {"read only"}, [&] { Write(store.get(), 1, {{1, Payload(kSize, 1, 1)}}); });
    EXPECT_TRUE(ErrorOf([&] { store->Checkpoint(directory / "copy", true); }).has_value());
    EXPECT_FALSE(fs::exists(directory / "copy"));
  }
  EXPECT_EQ(Contents(directory / "rows"), before);
  for (const auto& file : fs::directory_iterator(directory / "rows")) {
    EXPECT_EQ(fs::last_write_time(file.path()), past) << file.path();
  }
  EXPECT_EQ(fs::last_write_time(directory / "rows"), past);
}

// A byte may be padding, which nobody reads; what is read is either what was written or an error that names the file.
TEST(RocksDbStoreTest, FlippedByteIsCorruptionOrHarmless) {
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
    EXPECT_NE(std::string(error->what()).find(".sst"), std::string::npos) << "byte " << at << ": " << error->what();
  }
  EXPECT_GT(detected, tried / 2);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << original;
  read();
}

TEST(RocksDbStoreTest, CorruptRowIsNamedOthersAreRead) {
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

TEST(RocksDbStoreTest, TruncatedAndMissingFilesAreErrors) {
  TemporaryDirectory directory;
  MakeCheckpoint(directory, SomeRows(400), directory / "rows");
  const fs::path path = TableFiles(directory / "rows").at(0);
  const std::string name = path.filename().string();
  fs::resize_file(path, fs::file_size(path) - 1);
  ExpectError(ErrorCode::kCorruption, {name}, [&] { OpenReadOnly(directory / "rows"); });
  fs::remove(path);
  EXPECT_TRUE(ErrorOf([&] { OpenReadOnly(directory / "rows"); }).has_value());
  MakeCheckpoint(directory, SomeRows(400), directory / "others");
  fs::remove(directory / "others/CURRENT");
  EXPECT_TRUE(ErrorOf([&] { OpenReadOnly(directory / "others"); }).has_value());
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
  few.rlim_cur = 80;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  {
    TemporaryDirectory directory;
    const std::unique_ptr<RowStore> store = Create(directory / "live");
    for (int64_t id = 0; id < 700'000; id += 1000) {
      Changes changes;
      for (int64_t i = id; i < id + 1000; ++i) changes[i] = Payload(1000, 1, i);
      Write(store.get(), 1, changes);
    }
    EXPECT_GT(TableFiles(directory / "live").size(), few.rlim_cur);
    EXPECT_EQ(Get(store.get(), 1, {0, 350'000, 699'999}, 1000).size(), 3u);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace damo
