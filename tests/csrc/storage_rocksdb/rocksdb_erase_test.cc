// Rows of which no byte is to be left: what is found of them, in table files and logs, and that the rest stays.
#include "storage_rocksdb/rocksdb_erase.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "storage_rocksdb/rocksdb_store.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using namespace testing;

constexpr int64_t kRows = 2000;
constexpr int64_t kSmallest = std::numeric_limits<int64_t>::min();

class RocksDbEraseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(empty_);
    rows_ = SomeRows(kRows);
    rows_[kSmallest] = Payload(kSize, 1, kSmallest);
    Write(store_.get(), 1, Changes(rows_.begin(), rows_.end()));
  }

  // A checkpoint of the store, and its logs.
  std::vector<std::string> Checkpoint(const std::string& path) {
    store_->Checkpoint(path, /*link=*/true);
    std::vector<std::string> logs;
    for (const auto& file : fs::directory_iterator(path)) {
      if (file.path().extension() == ".log" && file.file_size() > 0) logs.push_back(file.path());
    }
    std::sort(logs.begin(), logs.end());
    return logs;
  }

  // Adds a row's payload to the journal.
  void AddToJournal(int64_t id, const std::string& payload) {
    const RowWrite write{1, id, payload.data(), payload.size(), 0};
    store_->AddToJournal({&write, 1});
  }

  FoundRows Find(const std::string& path, const std::vector<std::string>& logs, const std::vector<int64_t>& ids) {
    return FindRows(path, logs, empty_, {{1, ids}});
  }

  void Erase(const std::string& path, const std::vector<std::string>& logs, const FoundRows& found) {
    LinkOrCopyRocksDb(path, directory_ / "scratch", /*logs=*/false);
    EraseRows(directory_ / "scratch", logs, found, {{1, 9}}, directory_ / "erased");
    fs::remove_all(directory_ / "scratch");
  }

  bool HasBytes(const std::string& path, const std::string& payload) const {
    const std::string piece = payload.substr(kSize / 2);
    const auto contents = Contents(path);
    return std::any_of(contents.begin(), contents.end(),
                       [&](const auto& file) { return file.second.find(piece) != std::string::npos; });
  }

  TemporaryDirectory directory_;
  const std::string empty_ = directory_ / "empty";
  const std::unique_ptr<RowStore> store_ = Create(directory_ / "made");
  Table rows_;
};

TEST_F(RocksDbEraseTest, ErasesRowsAndKeepsAllOthers) {
  const std::string path = directory_ / "rows";
  Checkpoint(path);
  const FoundRows found = Find(path, {}, {kSmallest, 7, kRows});
  EXPECT_EQ(found.held, (IdsByTable{{1, {kSmallest, 7}}}));
  EXPECT_EQ(found.rows, found.held);
  EXPECT_EQ(found.files.size(), 1u);
  ASSERT_TRUE(HasBytes(path, rows_[7]));
  Erase(path, {}, found);
  EXPECT_FALSE(HasBytes(directory_ / "erased", rows_[7]));
  EXPECT_FALSE(HasBytes(directory_ / "erased", rows_[kSmallest]));
  rows_.erase(7);
  rows_.erase(kSmallest);
  const std::unique_ptr<RowStore> erased = Open(directory_ / "erased");
  EXPECT_EQ(ScanAll(erased.get(), 1, kSize), rows_);
  EXPECT_TRUE(Find(directory_ / "erased", {}, {kSmallest, 7}).held.empty());
}

TEST_F(RocksDbEraseTest, FindsWhatWasOverwrittenOrDeletedSince) {
  Checkpoint(directory_ / "before");  // which flushes
  Write(store_.get(), 1, {{3, Payload(kSize, 5, 5)}, {4, std::nullopt}}, /*step=*/2);
  const std::string path = directory_ / "rows";
  Checkpoint(path);
  const FoundRows found = Find(path, {}, {3, 4});
  EXPECT_EQ(found.held, (IdsByTable{{1, {3, 4}}}));
  EXPECT_EQ(found.rows, (IdsByTable{{1, {3}}}));
  EXPECT_EQ(found.files.size(), 2u);
  Erase(path, {}, found);
  for (const std::string& payload : {rows_[3], rows_[4], Payload(kSize, 5, 5)}) {
    EXPECT_FALSE(HasBytes(directory_ / "erased", payload));
  }
}

TEST_F(RocksDbEraseTest, ErasesWhatLogsHave) {
  const std::string one = Payload(kSize, 8, 1), two = Payload(kSize, 8, 2), other = Payload(kSize, 8, 3);
  AddToJournal(1, one);
  Checkpoint(directory_ / "before");  // ends the first log
  AddToJournal(kRows, two);
  AddToJournal(2, other);
  const std::string path = directory_ / "rows";
  const std::vector<std::string> logs = Checkpoint(path);
  ASSERT_EQ(logs.size(), 2u);
  const FoundRows found = Find(path, logs, {kRows});
  EXPECT_EQ(found.rows, (IdsByTable{{1, {kRows}}}));
  EXPECT_EQ(found.files, (std::vector<std::string>{fs::path(logs[1]).filename()}));
  Erase(path, logs, found);
  EXPECT_FALSE(HasBytes(directory_ / "erased", two));
  EXPECT_TRUE(HasBytes(directory_ / "erased", one));  // in the log that both have
  rows_[1] = one;
  rows_[2] = other;
  const std::unique_ptr<RowStore> erased = Open(directory_ / "erased");
  EXPECT_EQ(ScanAll(erased.get(), 1, kSize), rows_);
}

TEST_F(RocksDbEraseTest, FindsSightingsAndRowsThatAreDeadButForNoRowsThatLive) {
  const std::string row = Payload(kSize, 8, 1), sighted = Payload(sizeof(RowHeader), 8, 2);
  const auto sighting_of = [&](int64_t id) {
    RowWrite write{1, id, sighted.data(), sighted.size(), 0};
    write.sighting = true;
    return write;
  };
  const RowWrite in_table[] = {sighting_of(kRows), sighting_of(kRows + 1)};
  store_->Write(in_table);
  AddToJournal(kRows, row);                                            // which has become one
  const RowWrite in_log[] = {sighting_of(4), sighting_of(kRows + 2)};  // one was a row, which had died
  store_->AddToJournal(in_log);
  const std::string path = directory_ / "rows";
  const std::vector<std::string> logs = Checkpoint(path);
  std::vector<std::pair<int64_t, bool>> asked;
  const std::vector<int64_t> ids = {3, 4, 5, kRows, kRows + 1, kRows + 2};
  const FoundRows found =
      FindRows(path, logs, empty_, {{1, ids}}, [&](uint32_t, int64_t id, RowHeader header, bool sighting) {
        asked.emplace_back(id, sighting);
        if (sighting) {
          EXPECT_EQ(header.last_step, PayloadHeader(sighted.data(), sighted.size()).last_step);
        }
        return id != 5;
      });
  EXPECT_EQ(asked, (std::vector<std::pair<int64_t, bool>>{
                       {3, false}, {4, true}, {5, false}, {kRows, false}, {kRows + 1, true}, {kRows + 2, true}}));
  EXPECT_EQ(found.held, (IdsByTable{{1, ids}}));
  EXPECT_EQ(found.rows, (IdsByTable{{1, {3, kRows}}}));
  Erase(path, logs, found);
  std::vector<std::string> erased_logs;
  for (const auto& file : fs::directory_iterator(directory_ / "erased")) {
    if (file.path().extension() == ".log") erased_logs.push_back(file.path());
  }
  EXPECT_TRUE(Find(directory_ / "erased", erased_logs, ids).held.empty());
}

TEST_F(RocksDbEraseTest, AStoreErasesDeletedRowsAndTellsWhatASnapshotKeeps) {
  const uint32_t table = 1;
  Checkpoint(directory_ / "before");
  auto snapshot = store_->TakeSnapshot({&table, 1});
  Write(store_.get(), 1, {{7, std::nullopt}}, /*step=*/2);
  const std::vector<int64_t> ids = {7, kRows};
  EXPECT_EQ(store_->EraseDeleted(table, ids), std::vector<int64_t>{7});
  snapshot.reset();
  EXPECT_TRUE(store_->EraseDeleted(table, ids).empty());
  EXPECT_FALSE(HasBytes(directory_ / "made", rows_[7]));
  rows_.erase(7);
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize), rows_);
}

}  // namespace
}  // namespace damo
