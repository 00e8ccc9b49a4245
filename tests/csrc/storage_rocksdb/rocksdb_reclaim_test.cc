// What compactions remove, and that no reader sees it.
#include <gtest/gtest.h>
#include <rocksdb/compaction_filter.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_compaction_filter.h"
#include "storage_rocksdb/rocksdb_options.h"
#include "storage_rocksdb/rocksdb_reclaimable.h"
#include "storage_rocksdb/rocksdb_reclaimer.h"
#include "storage_rocksdb/rocksdb_scan.h"
#include "storage_rocksdb/rocksdb_store_testing.h"
#include "testing/system_calls.h"

namespace damo {
namespace {

using testing::kMiB;
using testing::kSize;
using testing::ReadAll;
using testing::Table;
using testing::TemporaryDirectory;

constexpr uint32_t kTable = 1;

std::string RowOf(RowHeader header, int64_t id = 0) {
  std::string payload = testing::Payload(kSize, kTable, id);
  std::memcpy(payload.data() + kSize - sizeof header, &header, sizeof header);
  return payload;
}

Reclaimable AllBelow(uint32_t step) {
  Reclaimable reclaimable;
  for (size_t c = 0; c < kLadderClasses; ++c) reclaimable.ladder.Raise(c, PositionOf(step));
  return reclaimable;
}

// A database as a RocksDbStore's, in memory, that compacts only what a test says, unless it `compacts` by itself.
class Database {
 public:
  explicit Database(const std::string& path, bool compacts = false) {
    std::filesystem::create_directory(path);  // where a reclaimer looks for space
    RocksDbOptions rocksdb = testing::Options(path);
    rocksdb.create = true;
    rocksdb.env = env.get();
    rocksdb::Options options = MakeOptions(rocksdb);
    options.disable_auto_compactions = !compacts;
    options.compaction_filter_factory = ReclaimingFilterFactory(reclaimable, counts);
#if ROCKSDB_MAJOR >= 11
    std::unique_ptr<rocksdb::DB> opened;
#else
    rocksdb::DB* opened = nullptr;
#endif
    EXPECT_TRUE(rocksdb::DB::Open(options, path, &opened).ok());
    db = std::shared_ptr<rocksdb::DB>(std::move(opened));
    reclaimer.emplace(db.get(), reclaimable);
  }

  void Put(int64_t id, const std::string& payload) { Put(EncodeKey(kTable, id), kRecordVersion + payload); }
  void Delete(int64_t id, uint64_t step) {
    EXPECT_TRUE(db->Delete(write_, EncodeKey(kTable, id).view()).ok());
    const DeletionRecord record = EncodeDeletion(step);
    Put(EncodeDeletionKey(kTable, id), {record.data(), record.size()});
  }
  void Flush() { EXPECT_TRUE(db->Flush({}).ok()); }

  std::vector<rocksdb::LiveFileMetaData> Files() {
    std::vector<rocksdb::LiveFileMetaData> files;
    db->GetLiveFilesMetaData(&files);
    return files;
  }
  void Compact(const std::vector<std::string>& files, int level) {
    rocksdb::CompactionOptions options;
    options.compression = rocksdb::kNoCompression;
    const rocksdb::Status status = db->CompactFiles(options, files, level);
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
  void CompactAll() {
    rocksdb::CompactRangeOptions options;
    options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
    EXPECT_TRUE(db->CompactRange(options, nullptr, nullptr).ok());
  }

  // Until RocksDB has nothing to compact.
  void AwaitCompactions() {
    const auto waits_for = [&](const std::string& property) {
      uint64_t value = 0;
      EXPECT_TRUE(db->GetIntProperty(property, &value));
      return value > 0;
    };
    using Properties = rocksdb::DB::Properties;
    while (waits_for(Properties::kCompactionPending) || waits_for(Properties::kNumRunningCompactions)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  std::unique_ptr<RowStoreSnapshot> TakeSnapshot() { return TakeRocksDbSnapshot(db, reclaimable->Hold(), kMiB / 8); }
  Table Rows() { return ReadAll(TakeSnapshot()->Scan(kTable, kSize).get(), kSize); }
  Table Deletions() { return ReadAll(TakeSnapshot()->Scan(kTable | kDeletionBit, kDeletionSize).get(), kDeletionSize); }
  uint64_t Bytes() {
    uint64_t bytes = 0;
    for (const auto& file : Files()) bytes += file.size;
    return bytes;
  }

  const std::unique_ptr<rocksdb::Env> env{rocksdb::NewMemEnv(rocksdb::Env::Default())};  // outlives the rest
  const std::shared_ptr<ReclaimableRecords> reclaimable = std::make_shared<ReclaimableRecords>();
  const std::shared_ptr<ReclaimedCounts> counts = std::make_shared<ReclaimedCounts>();
  std::shared_ptr<rocksdb::DB> db;
  std::optional<RocksDbReclaimer> reclaimer;

 private:
  void Put(const Key& key, const std::string& value) { EXPECT_TRUE(db->Put(write_, key.view(), value).ok()); }

  const rocksdb::WriteOptions write_ = [] {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return options;
  }();
};

class ReclaimTest : public ::testing::Test {
 protected:
  TemporaryDirectory directory_;
  Database database_{directory_ / "rows"};
};

TEST_F(ReclaimTest, RemovesDeadRowsAndDeletionsAndKeepsTheOthers) {
  for (int64_t id = 0; id < 100; ++id) database_.Put(id, RowOf({static_cast<uint32_t>(id), 1}, id));
  for (int64_t id = 100; id < 200; ++id) database_.Delete(id, static_cast<uint64_t>(id));
  database_.Flush();
  database_.CompactAll();
  EXPECT_EQ(database_.Rows().size(), 100u);
  EXPECT_EQ(database_.Deletions().size(), 100u);
  Reclaimable reclaimable = AllBelow(30);
  reclaimable.deletions_before = 150;
  database_.reclaimable->Add(kTable, reclaimable);
  database_.CompactAll();
  const Table rows = database_.Rows(), deletions = database_.Deletions();
  EXPECT_EQ(rows.size(), 70u);
  EXPECT_EQ(rows.begin()->first, 30);
  EXPECT_EQ(deletions.size(), 50u);
  EXPECT_EQ(deletions.begin()->first, 150);
  EXPECT_EQ(database_.counts->records, 80u);
}

// A set begins to count anew: of two versions the older one may be alive where the newer is dead.
TEST_F(ReclaimTest, HidesOlderVersions) {
  database_.Put(1, RowOf({5, 8}));
  database_.Flush();
  database_.CompactAll();
  database_.Put(1, RowOf({5, 0}));
  database_.Flush();
  const std::string newest = database_.Files().front().level == 0 ? database_.Files().front().relative_filename
                                                                  : database_.Files().back().relative_filename;
  Reclaimable reclaimable;
  reclaimable.ladder.Raise(0, PositionOf(6));
  database_.reclaimable->Add(kTable, reclaimable);
  database_.Compact({newest}, 3);
  EXPECT_EQ(database_.counts->records, 1u);
  EXPECT_TRUE(database_.Rows().empty());
  database_.CompactAll();
  EXPECT_TRUE(database_.Rows().empty());
  EXPECT_TRUE(database_.Files().empty());
}

TEST_F(ReclaimTest, LeavesSnapshotsAndTheirIteratorsWhatWasAliveWhenTheyWereTaken) {
  database_.Put(1, RowOf({5, 1}));
  database_.Put(2, RowOf({7, 1}));
  database_.Flush();
  database_.reclaimable->Add(kTable, AllBelow(6));
  auto snapshot = database_.TakeSnapshot();
  auto rows = snapshot->Scan(kTable, kSize);
  database_.reclaimable->Add(kTable, AllBelow(8));
  database_.CompactAll();
  EXPECT_EQ(ReadAll(snapshot->Scan(kTable, kSize).get(), kSize).count(2), 1u);
  snapshot.reset();
  database_.CompactAll();
  auto table = ReadAll(rows.get(), kSize);
  EXPECT_EQ(table.count(2), 1u);
  rows.reset();
  database_.CompactAll();
  EXPECT_TRUE(database_.Files().empty());
}

// Any order of writes, sets, deletions, rising ladders, snapshots and compactions, of any files into any level.
class RandomRun {
 public:
  RandomRun(const std::string& path, uint32_t seed) : database_(path), random_(seed) {}

  void Run(int operations) {
    for (int i = 0; i < operations; ++i) {
      Write();
      if (Chance(3)) RaiseLadder();
      if (Chance(2)) database_.Flush();
      if (Chance(2)) Compact();
      if (Chance(10)) snapshots_.push_back({database_.TakeSnapshot(), rows_, deletions_, ladder_, deletions_before_});
      if (!snapshots_.empty() && Chance(8)) snapshots_.erase(snapshots_.begin() + Below(snapshots_.size()));
      if (Chance(5)) Check();
    }
    snapshots_.clear();
    database_.Flush();
    database_.CompactAll();
    Check();
    EXPECT_EQ(database_.Rows(), Alive(rows_, ladder_)) << "what is dead is there still";
    EXPECT_GT(database_.counts->records, 0u);
  }

 private:
  using Deletions = std::map<int64_t, uint64_t>;
  struct Snapshot {
    std::unique_ptr<RowStoreSnapshot> snapshot;
    Table rows;
    Deletions deletions;
    Ladder ladder;
    uint64_t deletions_before;
  };

  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }
  bool Chance(size_t one_in) { return Below(one_in) == 0; }

  void Write() {
    ++step_;
    for (size_t n = Below(8); n > 0; --n) {
      const auto id = static_cast<int64_t>(Below(40));
      if (Chance(6)) {
        rows_.erase(id);
        deletions_[id] = step_;
        database_.Delete(id, step_);
        continue;
      }
      const auto count = static_cast<uint32_t>(Chance(3) ? 0 : Below(10));
      rows_[id] = RowOf({step_ - static_cast<uint32_t>(Below(2)), count}, id);
      database_.Put(id, rows_[id]);
    }
  }

  void RaiseLadder() {
    ladder_.Raise(Below(5), PositionOf(step_ - Below(std::min<size_t>(step_, 20))));
    if (Chance(3)) ladder_.Raise(Below(5), PositionOf(step_ - 1, static_cast<uint32_t>(Below(kIdParts))));
    deletions_before_ = std::max(deletions_before_, step_ - Below(std::min<size_t>(step_, 50)));
    database_.reclaimable->Add(kTable, {ladder_, deletions_before_});
  }

  void Compact() {
    const auto files = database_.Files();
    if (Chance(6)) return database_.CompactAll();
    if (Chance(4)) return static_cast<void>(database_.reclaimer->Run());
    if (files.empty()) return;
    const auto& file = files[Below(files.size())];
    database_.Compact({file.relative_filename}, std::max(file.level, static_cast<int>(1 + Below(6))));
  }

  static Table Alive(const Table& rows, const Ladder& ladder) {
    Table alive;
    for (const auto& [id, row] : rows) {
      if (!ladder.IsDead(PayloadHeader(row.data(), row.size()), id)) alive[id] = row;
    }
    return alive;
  }

  static void Check(const Snapshot& of) {
    EXPECT_EQ(Alive(ReadAll(of.snapshot->Scan(kTable, kSize).get(), kSize), of.ladder), Alive(of.rows, of.ladder));
    const Table found = ReadAll(of.snapshot->Scan(kTable | kDeletionBit, kDeletionSize).get(), kDeletionSize);
    for (const auto& [id, step] : of.deletions) {
      if (step >= of.deletions_before) {
        EXPECT_EQ(DecodeDeletion(found.at(id).data()), step);
      }
    }
  }
  void Check() {
    for (const Snapshot& snapshot : snapshots_) Check(snapshot);
    Check({database_.TakeSnapshot(), rows_, deletions_, ladder_, deletions_before_});
  }

  Database database_;
  std::mt19937 random_;
  uint32_t step_ = 1;
  Table rows_;  // the newest of each, dead or not
  Deletions deletions_;
  Ladder ladder_;
  uint64_t deletions_before_ = 0;
  std::vector<Snapshot> snapshots_;
};

TEST(Reclaim, ChangesNothingThatAReaderSees) {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    const TemporaryDirectory directory;
    RandomRun(directory / "rows", seed).Run(250);
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
  }
}

// Endless new ids, the ladder some steps behind, in ascending order or in any.
class EndlessIdsTest : public ::testing::TestWithParam<bool> {};

TEST_P(EndlessIdsTest, TakeAsMuchDiskAsLiveRowsAndAHalf) {
  constexpr uint32_t kSteps = 800, kLife = 200;
  constexpr int64_t kRowsOfAStep = 250, kRowsOfAFlush = 40 * kRowsOfAStep;
  const TemporaryDirectory directory;
  Database database(directory / "rows", /*compacts=*/true);
  std::mt19937_64 random(1);
  double most = 0;
  for (uint32_t step = 1; step <= kSteps; ++step) {
    for (int64_t i = 0; i < kRowsOfAStep; ++i) {
      const int64_t id = GetParam() ? step * kRowsOfAStep + i : static_cast<int64_t>(random());
      database.Put(id, RowOf({step, 1}, id));
    }
    if (step > kLife) database.reclaimable->Add(kTable, AllBelow(step - kLife));
    if (step * kRowsOfAStep % kRowsOfAFlush != 0) continue;
    database.Flush();
    database.AwaitCompactions();
    while (database.reclaimer->Run() > 0) database.AwaitCompactions();
    if (step <= 2 * kLife) continue;
    // What of the newest rows is in the first level is merged once there is more of it.
    uint64_t bytes = 0;
    for (const auto& file : database.Files()) bytes += file.level == 0 ? 0 : file.size;
    const double live = kLife * kRowsOfAStep * static_cast<double>(kKeySize + 1 + kSize);
    most = std::max(most, static_cast<double>(bytes) / live);
  }
  RecordProperty("most", std::to_string(most));
  EXPECT_LT(most, 1.5);
  EXPECT_GT(database.counts->records, (kSteps - 2 * kLife) * kRowsOfAStep);
}

INSTANTIATE_TEST_SUITE_P(Orders, EndlessIdsTest, ::testing::Bool());

TEST_F(ReclaimTest, CompactsColdFilesOfWhichAThirdIsDead) {
  constexpr int64_t kRows = 3000;
  for (int64_t file = 0; file < 3; ++file) {
    for (int64_t i = 0; i < kRows; ++i) {
      const int64_t id = file * kRows + i;
      // Of the first file a sixth is of step 1, of the others a half, and all.
      const bool old = i % 6 < (file == 0 ? 1 : 3 * file);
      database_.Put(id, RowOf({old ? 1u : 2u, 1}, id));
    }
    database_.Flush();
    for (const auto& flushed : database_.Files()) {
      if (flushed.level == 0) database_.Compact({flushed.relative_filename}, 6);
    }
  }
  ASSERT_EQ(database_.Files().size(), 3u);
  const uint64_t bytes = database_.Bytes();
  EXPECT_EQ(database_.reclaimer->Run(), 0u);
  {
    const auto snapshot = database_.TakeSnapshot();
    database_.reclaimable->Add(kTable, AllBelow(2));
    EXPECT_EQ(database_.reclaimer->Run(), 0u);
    EXPECT_EQ(database_.reclaimer->dead_bytes(), 0u);
  }
  {
    const auto snapshot = database_.TakeSnapshot();
    EXPECT_EQ(database_.reclaimer->Run(), 0u) << "the files would stay as long as the snapshot does";
    EXPECT_NEAR(static_cast<double>(database_.reclaimer->dead_bytes()), static_cast<double>(bytes) * 10 / 18,
                static_cast<double>(bytes) / 10);
  }
  EXPECT_EQ(database_.reclaimer->Run(), 2u);
  EXPECT_EQ(database_.Files().size(), 2u);
  EXPECT_NEAR(static_cast<double>(database_.Bytes()), static_cast<double>(bytes) / 2, static_cast<double>(bytes) / 20);
  EXPECT_EQ(database_.Rows().size(), static_cast<size_t>(kRows * 3 / 2));
  EXPECT_EQ(database_.reclaimer->Run(), 0u);
  EXPECT_FALSE(database_.reclaimer->lacks_space());
}

TEST_F(ReclaimTest, StopsWhereTheDiskIsFullAndGoesOnOnceItIsNot) {
  for (int64_t id = 0; id < 1000; ++id) database_.Put(id, RowOf({id % 2 == 0 ? 1u : 2u, 1}, id));
  database_.Flush();
  database_.CompactAll();
  database_.reclaimable->Add(kTable, AllBelow(2));
  testing::system_call_hook = [](const char* call) { return std::string_view(call) == "write" ? ENOSPC : 0; };
  EXPECT_EQ(database_.reclaimer->Run(), 0u);
  testing::system_call_hook = nullptr;
  EXPECT_TRUE(database_.reclaimer->lacks_space());
  EXPECT_GT(database_.reclaimer->dead_bytes(), 0u);
  EXPECT_EQ(database_.Rows().size(), 1000u);
  EXPECT_EQ(database_.reclaimer->Run(), 1u);
  EXPECT_FALSE(database_.reclaimer->lacks_space());
  EXPECT_EQ(database_.reclaimer->dead_bytes(), 0u);
  EXPECT_EQ(database_.Rows().size(), 500u);
}

}  // namespace
}  // namespace damo
