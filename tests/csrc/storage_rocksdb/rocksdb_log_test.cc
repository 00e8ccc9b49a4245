// Logs: that RocksDB reads them is for the tests of RowStore; here is what is damage of one.
#include "storage_rocksdb/rocksdb_log.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "base/crc32c.h"
#include "storage_rocksdb/rocksdb_log_reader.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

using namespace testing;

// Check values of RFC 3720, B.4, and of the catalogue of parametrised CRC algorithms.
TEST(Crc32cTest, IsTheStandards) {
  EXPECT_EQ(ExtendCrc32c(0, ""), 0u);
  EXPECT_EQ(ExtendCrc32c(0, "123456789"), 0xE3069283u);
  EXPECT_EQ(ExtendCrc32c(0, std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(ExtendCrc32c(0, std::string(32, '\xff')), 0x62A8AB43u);
  EXPECT_EQ(ExtendCrc32c(ExtendCrc32c(0, "12345"), "6789"), 0xE3069283u);
}

class RocksDbLogTest : public ::testing::Test {
 protected:
  void Overwrite(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }

  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "000001.log";
};

// Batches of many sizes, so that blocks end within records, within headers and in gaps.
TEST_F(RocksDbLogTest, EveryBitAndEveryLengthIsVerified) {
  RocksDbLogWriter log(path_);
  uint64_t sequence = 1;
  for (size_t n = 1; n < 60; ++n) {
    Changes rows;
    for (size_t i = 0; i < n; ++i) rows[static_cast<int64_t>(i)] = Payload(8 + 7 * n, 1, static_cast<int64_t>(i));
    rows[-1] = std::nullopt;
    sequence = log.Append(WritesOf(1, rows), sequence);
  }
  log.Finish();
  EXPECT_EQ(sequence, 1u + 59 * 60 / 2 + 2 * 59);
  const std::string sound = ReadFile(path_);
  EXPECT_EQ(log.bytes(), sound.size());
  VerifyLogFile(path_);
  for (size_t at = 0; at < sound.size(); at += 613) {
    std::string damaged = sound;
    damaged[at] = static_cast<char>(damaged[at] ^ 1 << at % 8);
    Overwrite(damaged);
    ExpectError(ErrorCode::kCorruption, {path_, "at byte"}, [&] { VerifyLogFile(path_); });
  }
  for (size_t size = sound.size() - 3; size > sound.size() - 20; --size) {
    Overwrite(sound.substr(0, size));
    ExpectError(ErrorCode::kCorruption, {path_}, [&] { VerifyLogFile(path_); });
  }
  Overwrite(sound + "x");
  ExpectError(ErrorCode::kCorruption, {path_}, [&] { VerifyLogFile(path_); });
}

// Each size of the first record puts the end of a block elsewhere in the second one's header.
TEST_F(RocksDbLogTest, ABlockMayEndAnywhereInAHeader) {
  for (size_t size = 32768 - 90; size < 32768 - 20; ++size) {
    const Table rows = {{1, Payload(size, 1, 1)}};
    const std::string live = directory_ / ("live" + std::to_string(size)), copy = live + ".copy";
    const std::unique_ptr<RowStore> store = Create(live);
    store->AddToJournal(WritesOf(1, {{1, rows.at(1)}}));
    store->AddToJournal(WritesOf(2, {{1, Payload(kSize, 2, 1)}}));
    store->Checkpoint(copy, /*link=*/true);
    const std::unique_ptr<RowStore> restored = OpenReadOnly(copy);
    EXPECT_EQ(ScanAll(restored.get(), 1, size), rows);
    EXPECT_EQ(ScanAll(restored.get(), 2, kSize), (Table{{1, Payload(kSize, 2, 1)}}));
  }
}

TEST_F(RocksDbLogTest, DamageIsFoundWhenAStoreIsOpened) {
  const std::unique_ptr<RowStore> store = Create(directory_ / "live");
  for (int64_t part = 0; part < 5; ++part) {
    Changes rows;
    for (int64_t id = 0; id < 1000; ++id) rows[1000 * part + id] = Payload(kSize, 1, id);
    store->AddToJournal(WritesOf(1, rows));
  }
  store->Checkpoint(directory_ / "rows", /*link=*/false);
  for (const auto& file : std::filesystem::directory_iterator(directory_ / "rows")) {
    if (file.path().extension() != ".log") continue;
    const std::string sound = ReadFile(file.path());
    for (size_t at = 0; at < sound.size(); at += sound.size() / 20) {
      std::string damaged = sound;
      damaged[at] = static_cast<char>(damaged[at] ^ 4);
      std::ofstream(file.path(), std::ios::binary) << damaged;
      ExpectError(ErrorCode::kCorruption, {directory_ / "rows"}, [&] { OpenReadOnly(directory_ / "rows"); });
      std::ofstream(file.path(), std::ios::binary) << sound;
    }
  }
  EXPECT_EQ(ScanAll(OpenReadOnly(directory_ / "rows").get(), 1, kSize).size(), 5000u);
}

}  // namespace
}  // namespace damo
