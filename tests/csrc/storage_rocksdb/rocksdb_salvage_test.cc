// Rows whose files are damaged: what is found, what is read around it, and that what is written is what was read.
#include "storage_rocksdb/rocksdb_salvage.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "storage_rocksdb/rocksdb_store.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using namespace testing;

constexpr int64_t kRows = 2000;
constexpr Key kFirst = {};

void Flip(const fs::path& file, size_t offset) {
  std::string contents = ReadFile(file);
  contents[offset] ^= 1;
  std::ofstream(file, std::ios::binary | std::ios::trunc) << contents;
}

// Rows 0 to kRows - 1 of tables 1 and 2, and deletion records of two that were in table 1.
class RocksDbSalvageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::unique_ptr<RowStore> store = Create(directory_ / "made");
    for (const uint32_t table : {1u, 2u}) {
      const Table rows = SomeRows(kRows, table);
      Write(store.get(), table, Changes(rows.begin(), rows.end()));
    }
    Write(store.get(), 1, {{-5, std::nullopt}, {kRows, std::nullopt}}, /*step=*/7);
    store->Checkpoint(path_, /*link=*/false);
    store->Close();
    file_ = TableFiles(path_).at(0);
  }

  std::unique_ptr<RecordReader> Reader(size_t size_of_2 = kSize) const {
    return std::make_unique<RecordReader>(path_, std::map<uint32_t, size_t>{{1, kSize}, {2, size_of_2}});
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "rows";
  fs::path file_;
};

TEST_F(RocksDbSalvageTest, WritesWhatItReads) {
  RecordWriter writer(directory_ / "scratch");
  const auto reader = Reader();
  ASSERT_TRUE(reader->Seek(kFirst));
  EXPECT_EQ(reader->Read(3000, &writer), 3000u);
  EXPECT_EQ(reader->Read(3000, &writer), 2u * kRows + 2 - 3000);
  EXPECT_EQ(reader->Read(3000, &writer), 0u);
  EXPECT_EQ(reader->error(), "");
  writer.Finish(directory_ / "copy");

  const auto rows = OpenReadOnly(directory_ / "copy");
  EXPECT_EQ(ScanAll(rows.get(), 1, kSize), SomeRows(kRows, 1));
  EXPECT_EQ(ScanAll(rows.get(), 2, kSize), SomeRows(kRows, 2));
  RecordReader copy(directory_ / "copy", {{1, kSize}, {2, kSize}});
  ASSERT_TRUE(copy.Seek(kFirst));
  copy.Read(2 * kRows + 2, nullptr);
  EXPECT_EQ(copy.tallies().at(1 | kDeletionBit).records, 2u);
  EXPECT_EQ(*copy.last_key(), EncodeDeletionKey(1, kRows));
}

TEST_F(RocksDbSalvageTest, SharesRowsButNoDeletionsAmongRanks) {
  uint64_t rows = 0;
  for (uint64_t rank = 0; rank < 3; ++rank) {
    const RankShare share{rank, 3};
    RecordWriter writer(directory_ / ("scratch-" + std::to_string(rank)));
    const auto reader = Reader();
    ASSERT_TRUE(reader->Seek(kFirst));
    EXPECT_EQ(reader->ReadShare(3 * kRows, &writer, share), 2u * kRows + 2);
    EXPECT_FALSE(reader->tallies().contains(1 | kDeletionBit));
    rows += reader->tallies().at(1).records;
    const std::string path = directory_ / ("share-" + std::to_string(rank));
    writer.Finish(path);
    Table expected = SomeRows(kRows, 1);
    std::erase_if(expected, [&](const auto& row) { return !share.Has(row.first); });
    EXPECT_EQ(ScanAll(OpenReadOnly(path).get(), 1, kSize), expected);
  }
  EXPECT_EQ(rows, static_cast<uint64_t>(kRows));
}

TEST_F(RocksDbSalvageTest, ReadsOnBehindABlockThatCannotBeRead) {
  Flip(file_, 40 * 4096 + 100);
  const auto reader = Reader();
  ASSERT_TRUE(reader->Seek(kFirst));
  const size_t before = reader->Read(2 * kRows, nullptr);
  EXPECT_NE(reader->error().find(file_.string()), std::string::npos) << reader->error();
  const int64_t last = DecodeId(reader->last_key()->view());
  EXPECT_EQ(before, static_cast<size_t>(last) + 1);

  EXPECT_FALSE(reader->Seek(EncodeKey(1, last + 1)));
  EXPECT_EQ(reader->last_key(), nullptr);
  ASSERT_TRUE(reader->Seek(EncodeKey(1, last + 100)));
  EXPECT_EQ(reader->error(), "");
  EXPECT_EQ(reader->Read(2 * kRows + 2, nullptr), 2u * kRows + 2 - static_cast<size_t>(last) - 100);
  // Where it failed before, and from where it can be read.
  EXPECT_FALSE(reader->Seek(EncodeKey(1, last + 1)));
  EXPECT_TRUE(reader->Seek(EncodeKey(1, last)));
}

TEST_F(RocksDbSalvageTest, TellsMalformedRecordsFromOthers) {
  const auto reader = Reader(/*size_of_2=*/kSize + 4);
  ASSERT_TRUE(reader->Seek(kFirst));
  reader->Read(2 * kRows + 2, nullptr);
  EXPECT_EQ(reader->tallies().at(1).records, static_cast<uint64_t>(kRows));
  EXPECT_FALSE(reader->tallies().contains(2));
  ASSERT_EQ(reader->malformed().size(), 1u);
  EXPECT_EQ(reader->malformed()[0].first, EncodeKey(2, 0));
  EXPECT_EQ(reader->malformed()[0].last, EncodeKey(2, kRows - 1));
  EXPECT_EQ(reader->malformed()[0].reason, "table 2, id 0: expected a row of 92 bytes, found 88");
}

TEST_F(RocksDbSalvageTest, VerifiesEveryBlockOfATableFile) {
  VerifyTableFile(file_.string());
  const size_t size = fs::file_size(file_);
  // Rows, then filters and index, then the list of what there is.
  for (const size_t offset : {size_t{100}, size / 2 / 4096 * 4096 + 100, size - 2000, size - 60}) {
    Flip(file_, offset);
    ExpectError(ErrorCode::kCorruption, {file_.string()}, [&] { VerifyTableFile(file_.string()); });
    Flip(file_, offset);
  }
  VerifyTableFile(file_.string());
  ExpectError(ErrorCode::kIo, {directory_ / "absent.sst"}, [&] { VerifyTableFile(directory_ / "absent.sst"); });
}

TEST_F(RocksDbSalvageTest, ListsTableFilesThatAreNotThere) {
  fs::remove(file_);
  const std::vector<TableFile> files = ListTableFiles(path_);
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].name, file_.filename());
  EXPECT_EQ(files[0].smallest, EncodeKey(1, -5).view());
  EXPECT_EQ(files[0].largest, EncodeDeletionKey(1, kRows).view());
  EXPECT_LT(files[0].oldest, files[0].newest);
  ExpectError(ErrorCode::kCorruption, {path_}, [&] { Reader(); });
}

TEST_F(RocksDbSalvageTest, RebuildsADatabaseFromItsTableFiles) {
  fs::create_directory(directory_ / "rebuilt");
  fs::copy(file_, directory_ / "rebuilt");
  RebuildRocksDb(directory_ / "rebuilt");
  EXPECT_EQ(ScanAll(OpenReadOnly(directory_ / "rebuilt").get(), 2, kSize), SomeRows(kRows, 2));
}

}  // namespace
}  // namespace damo
