// What RowStore promises, of every implementation.
#include "storage/row_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "row/key.h"
#include "storage/memory_store.h"
#include "storage/row_store_testing.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {
namespace {

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
using testing::WritesOf;

constexpr size_t kSize = 88;
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

struct Implementation {
  std::string name;
  std::function<std::unique_ptr<RowStore>(const std::string& directory)> create;
  std::function<std::unique_ptr<RowStore>(const std::string& checkpoint, const std::string& directory)> restore;

  friend void PrintTo(const Implementation& implementation, std::ostream* out) { *out << implementation.name; }
};

std::unique_ptr<RowStore> OpenRocksDb(const std::string& directory, bool create) {
  RocksDbOptions options;
  options.path = directory;
  options.create = create;
  options.memory_bytes = size_t{8} << 20;
  return OpenRocksDbStore(options);
}

const Implementation kMemory = {
    "Memory", [](const std::string&) { return OpenMemoryStore(); },
    [](const std::string& checkpoint, const std::string&) { return OpenMemoryStore(checkpoint); }};

const Implementation kRocksDb = {"RocksDb", [](const std::string& directory) { return OpenRocksDb(directory, true); },
                                 [](const std::string& checkpoint, const std::string& directory) {
                                   LinkOrCopyRocksDb(checkpoint, directory);
                                   return OpenRocksDb(directory, false);
                                 }};

class RowStoreTest : public ::testing::TestWithParam<Implementation> {
 protected:
  std::unique_ptr<RowStore> Restore(const std::string& checkpoint) {
    return GetParam().restore(checkpoint, directory_ / ("restored" + std::to_string(restored_++)));
  }

  TemporaryDirectory directory_;
  std::unique_ptr<RowStore> store_ = GetParam().create(directory_ / "live");

 private:
  int restored_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Stores, RowStoreTest, ::testing::Values(kMemory, kRocksDb),
                         [](const auto& info) { return info.param.name; });

TEST_P(RowStoreTest, EmptyStoreHasNoRows) {
  EXPECT_EQ(Get(store_.get(), 0, {kMin, 0, kMax}, kSize), Table());
  EXPECT_EQ(ScanAll(store_.get(), 0, kSize), Table());
}

TEST_P(RowStoreTest, EmptyCallsDoNothing) {
  store_->Write({});
  EXPECT_EQ(Get(store_.get(), 0, {}, kSize), Table());
}

TEST_P(RowStoreTest, EveryIdIsValidAndScansAscend) {
  Table rows;
  for (const int64_t id : {kMin, kMin + 1, int64_t{-1}, int64_t{0}, int64_t{1}, kMax - 1, kMax}) {
    rows[id] = Payload(kSize, 5, id);
  }
  Write(store_.get(), 5, Changes(rows.begin(), rows.end()));
  EXPECT_EQ(ScanAll(store_.get(), 5, kSize), rows);
  EXPECT_EQ(Get(store_.get(), 5, {kMin, kMin + 1, -2, -1, 0, 1, 2, kMax - 1, kMax}, kSize), rows);
}

TEST_P(RowStoreTest, SightingsAndRowsAreScannedApart) {
  const RowHeader seen[] = {{7, 2}, {9, 1}, {0xffffffff, 0x7fffffff}};
  std::vector<RowWrite> writes;
  const std::string row = Payload(kSize, 5, 3);
  for (const auto& [id, header] : {std::pair{kMin, 0}, {int64_t{2}, 1}, {kMax, 2}}) {
    writes.push_back({5, id, reinterpret_cast<const char*>(seen + header), sizeof(RowHeader), 0});
    writes.back().sighting = true;
  }
  writes.insert(writes.begin() + 2, {5, 3, row.data(), row.size(), 0});
  store_->Write(writes);
  EXPECT_EQ(ScanAll(store_.get(), 5, kSize), (Table{{3, row}}));
  const uint32_t table = 5;
  const auto snapshot = store_->TakeSnapshot({&table, 1});
  const Table found = ReadAll(snapshot->Scan(5, sizeof(RowHeader), 0, /*sightings=*/true).get(), sizeof(RowHeader));
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found.at(kMin), std::string(reinterpret_cast<const char*>(seen), sizeof(RowHeader)));
  EXPECT_EQ(found.at(kMax), std::string(reinterpret_cast<const char*>(seen + 2), sizeof(RowHeader)));
}

TEST_P(RowStoreTest, TablesAreApart) {
  constexpr uint32_t kTables[] = {0, 1, 0x7fffffff};
  for (const uint32_t table : kTables) {
    const size_t size = 8 + table % 100;
    Write(store_.get(), table, {{kMin, Payload(size, table, kMin)}, {kMax, Payload(size, table, kMax)}});
  }
  Write(store_.get(), 1, {{kMin, std::nullopt}});
  for (const uint32_t table : kTables) {
    const size_t size = 8 + table % 100;
    Table expected = {{kMax, Payload(size, table, kMax)}};
    if (table != 1) expected[kMin] = Payload(size, table, kMin);
    EXPECT_EQ(ScanAll(store_.get(), table, size), expected);
    EXPECT_EQ(Get(store_.get(), table, {kMin, 0, kMax}, size), expected);
  }
}

TEST_P(RowStoreTest, DeletionRecordsOfTheFirstAndTheLastTableAreScanned) {
  for (const uint32_t table : {0u, 0x7fffffffu}) {
    Write(store_.get(), table, {{kMin, Payload(kSize, table, kMin)}, {kMax, Payload(kSize, table, kMax)}});
    Write(store_.get(), table, {{kMin, std::nullopt}, {kMax, std::nullopt}}, /*step=*/9);
    const std::string step("\x09\0\0\0\0\0\0\0", 8);
    const auto records = store_->TakeSnapshot({&table, 1})->Scan(table | kDeletionBit, step.size());
    EXPECT_EQ(ReadAll(records.get(), step.size()), (Table{{kMin, step}, {kMax, step}}));
  }
}

TEST_P(RowStoreTest, ADeletedTableLeavesNothingAndItsNeighboursStay) {
  for (const uint32_t table : {4u, 5u, 6u}) {
    Write(store_.get(), table, {{kMin, Payload(kSize, table, kMin)}, {0, Payload(kSize, table, 0)}});
    Write(store_.get(), table, {{kMax, Payload(kSize, table, kMax)}});
    Write(store_.get(), table, {{0, std::nullopt}}, /*step=*/9);
  }
  const std::string step("\x09\0\0\0\0\0\0\0", 8);
  const auto records = [&](RowStore* store, uint32_t table) {
    return ReadAll(store->TakeSnapshot({&table, 1})->Scan(table | kDeletionBit, step.size()).get(), step.size());
  };
  const uint32_t five = 5;
  const auto before = store_->TakeSnapshot({&five, 1});
  store_->DeleteTable(5);
  store_->ReclaimTable(5);
  const std::string path = directory_ / "checkpoint";
  store_->Checkpoint(path, true);
  const std::unique_ptr<RowStore> restored = Restore(path);
  for (RowStore* store : {store_.get(), restored.get()}) {
    for (const uint32_t table : {4u, 6u}) {
      const Table expected = {{kMin, Payload(kSize, table, kMin)}, {kMax, Payload(kSize, table, kMax)}};
      EXPECT_EQ(ScanAll(store, table, kSize), expected);
      EXPECT_EQ(records(store, table), (Table{{0, step}}));
    }
    EXPECT_EQ(ScanAll(store, 5, kSize), Table());
    EXPECT_EQ(Get(store, 5, {kMin, 0, kMax}, kSize), Table());
    EXPECT_EQ(records(store, 5), Table());
  }
  EXPECT_EQ(ReadAll(before->Scan(5, kSize).get(), kSize).size(), 2u) << "a snapshot keeps them";
  Write(store_.get(), 5, {{0, Payload(kSize, 5, 0)}});
  EXPECT_EQ(ScanAll(store_.get(), 5, kSize).size(), 1u);
}

TEST_P(RowStoreTest, OneWriteSpansTables) {
  const std::string a = Payload(kSize, 1, 7), b = Payload(16, 2, -7);
  const std::vector<RowWrite> rows = {{1, 7, a.data(), a.size(), 0}, {2, -7, b.data(), b.size(), 0}};
  store_->Write(rows);
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize), (Table{{7, a}}));
  EXPECT_EQ(ScanAll(store_.get(), 2, 16), (Table{{-7, b}}));
}

TEST_P(RowStoreTest, CheckpointsHoldTheJournalOverWhatWasWritten) {
  const Changes written = {{1, Payload(kSize, 1, 1)}, {2, Payload(kSize, 1, 2)}, {kMin, Payload(kSize, 1, kMin)}};
  Write(store_.get(), 1, written);
  // Larger than the blocks and the buffer of a log; what comes later counts.
  Changes large;
  for (int64_t id = 100; id < 30000; ++id) large[id] = Payload(kSize, 1, id);
  store_->AddToJournal(WritesOf(1, {{1, Payload(kSize, 1, 1, 7)}, {5, Payload(kSize, 1, 5)}}));
  store_->AddToJournal(WritesOf(1, large));
  store_->Checkpoint(directory_ / "first", /*link=*/true);
  store_->AddToJournal(
      WritesOf(1, {{kMax, Payload(kSize, 1, kMax)}, {2, std::nullopt}, {1, Payload(kSize, 1, 1, 8)}}, 6));
  store_->Checkpoint(directory_ / "second", /*link=*/true);
  store_->Checkpoint(directory_ / "copied", /*link=*/false);
  EXPECT_GT(store_->journal_size().bytes, 29900 * kSize);
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize).size(), 3u) << "scans see the journal";

  Table expected = {
      {1, Payload(kSize, 1, 1, 7)}, {2, *written.at(2)}, {kMin, *written.at(kMin)}, {5, Payload(kSize, 1, 5)}};
  for (const auto& [id, payload] : large) expected[id] = *payload;
  EXPECT_EQ(ScanAll(Restore(directory_ / "first").get(), 1, kSize), expected);
  expected[1] = Payload(kSize, 1, 1, 8);
  expected[kMax] = Payload(kSize, 1, kMax);
  expected.erase(2);
  for (const std::string name : {"second", "copied"}) {
    const std::unique_ptr<RowStore> restored = Restore(directory_ / name);
    EXPECT_EQ(ScanAll(restored.get(), 1, kSize), expected);
    EXPECT_EQ(restored->journal_size().bytes, 0u);
    const std::string step("\x06\0\0\0\0\0\0\0", 8);
    const uint32_t table = 1;
    const auto records = restored->TakeSnapshot({&table, 1})->Scan(table | kDeletionBit, step.size());
    EXPECT_EQ(ReadAll(records.get(), step.size()), (Table{{2, step}}));
    // What is written to what was restored is newer than the journal, and so is its own.
    Write(restored.get(), 1, {{1, Payload(kSize, 1, 1, 9)}, {5, std::nullopt}});
    restored->AddToJournal(WritesOf(1, {{2, Payload(kSize, 1, 2, 9)}}));
    restored->Checkpoint(directory_ / ("again " + name), /*link=*/true);
    Table again = expected;
    again[1] = Payload(kSize, 1, 1, 9);
    again[2] = Payload(kSize, 1, 2, 9);
    again.erase(5);
    EXPECT_EQ(ScanAll(Restore(directory_ / ("again " + name)).get(), 1, kSize), again);
  }
}

TEST_P(RowStoreTest, AClearedJournalIsInNoLaterCheckpoint) {
  Write(store_.get(), 1, {{1, Payload(kSize, 1, 1)}});
  store_->AddToJournal(WritesOf(1, {{1, Payload(kSize, 1, 1, 2)}, {2, Payload(kSize, 1, 2)}}));
  store_->Checkpoint(directory_ / "before", /*link=*/true);
  store_->ClearJournal();
  EXPECT_EQ(store_->journal_size().bytes, 0u);
  store_->Checkpoint(directory_ / "after", /*link=*/true);
  EXPECT_EQ(ScanAll(Restore(directory_ / "after").get(), 1, kSize), (Table{{1, Payload(kSize, 1, 1)}}));
  EXPECT_EQ(ScanAll(Restore(directory_ / "before").get(), 1, kSize).size(), 2u) << "its files went with the journal";
}

TEST_P(RowStoreTest, DeletedRowsComeBackWhenWrittenAgain) {
  Write(store_.get(), 1, {{3, Payload(kSize, 1, 3)}});
  Write(store_.get(), 1, {{3, std::nullopt}, {4, std::nullopt}}, /*step=*/9);
  EXPECT_EQ(Get(store_.get(), 1, {3, 4}, kSize), Table());
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize), Table());
  Write(store_.get(), 1, {{3, Payload(kSize, 1, 3, 2)}});
  EXPECT_EQ(Get(store_.get(), 1, {3, 4}, kSize), (Table{{3, Payload(kSize, 1, 3, 2)}}));
}

TEST_P(RowStoreTest, RandomOperationsMatchAMap) {
  std::mt19937_64 random(42);
  constexpr uint32_t kTables = 3;
  Table expected[kTables];
  const auto random_id = [&] { return static_cast<int64_t>(random() % 1500) - 750; };
  for (uint64_t step = 0; step < 200; ++step) {
    const auto table = static_cast<uint32_t>(random() % kTables);
    Changes changes;
    for (size_t n = random() % 300; n > 0; --n) {
      const int64_t id = random_id();
      changes[id] = std::nullopt;
      if (random() % 4 != 0) changes[id] = Payload(kSize, table, id, step);
    }
    Write(store_.get(), table, changes, step);
    for (const auto& [id, payload] : changes) {
      expected[table].erase(id);
      if (payload) expected[table][id] = *payload;
    }
    std::vector<int64_t> ids;
    for (size_t n = random() % 600; n > 0; --n) ids.push_back(random_id());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    Table expected_rows;
    for (const int64_t id : ids) {
      if (expected[table].contains(id)) expected_rows[id] = expected[table][id];
    }
    ASSERT_EQ(Get(store_.get(), table, ids, kSize), expected_rows) << "step " << step;
    if (step % 50 == 49) {  // go on from a checkpoint
      store_->Checkpoint(directory_ / std::to_string(step), /*link=*/step % 100 == 49);
      store_ = Restore(directory_ / std::to_string(step));
    }
  }
  for (uint32_t table = 0; table < kTables; ++table) EXPECT_EQ(ScanAll(store_.get(), table, kSize), expected[table]);
}

TEST_P(RowStoreTest, ScanSeesTheStateAtItsStart) {
  Table before;
  for (int64_t id = 0; id < 2000; ++id) before[id] = Payload(kSize, 1, id);
  Write(store_.get(), 1, Changes(before.begin(), before.end()));
  const std::unique_ptr<RowIterator> scan = store_->Scan(1, kSize);
  Table after;
  Changes changes;
  for (int64_t id = -500; id < 1500; ++id) {
    if (id % 3 != 0) after[id] = Payload(kSize, 1, id, 1);
    changes[id] = id % 3 == 0 ? std::nullopt : std::optional(after[id]);
  }
  for (int64_t id = 1500; id < 2000; ++id) after[id] = before[id];
  Write(store_.get(), 1, changes);
  EXPECT_EQ(ReadAll(scan.get(), kSize), before);
  int64_t id;
  const char* payload;
  EXPECT_FALSE(scan->Next(&id, &payload)) << "a scan that has ended stays at its end";
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize), after);
}

TEST_P(RowStoreTest, RowsOfAnotherSizeAreCorruption) {
  Write(store_.get(), 6, {{1, Payload(kSize, 6, 1)}, {2, Payload(kSize - 4, 6, 2)}});
  EXPECT_NO_THROW(Get(store_.get(), 6, {1}, kSize));
  ExpectError(ErrorCode::kCorruption, {"table 6", "id 2", "88", "84"}, [&] { Get(store_.get(), 6, {1, 2}, kSize); });
  ExpectError(ErrorCode::kCorruption, {"table 6", "id 2", "88", "84"}, [&] { ScanAll(store_.get(), 6, kSize); });
}

TEST_P(RowStoreTest, TableNumbersStopAt31Bits) {
  constexpr uint32_t kTooLarge = 0x80000000;
  const std::vector<std::function<void()>> calls = {[&] { Write(store_.get(), kTooLarge, {{1, Payload(8, 0, 1)}}); },
                                                    [&] { Get(store_.get(), kTooLarge, {1}, 8); },
                                                    [&] { store_->Scan(kTooLarge, 8); }};
  for (const auto& call : calls) ExpectError(ErrorCode::kInvalidArgument, {"2147483648"}, call);
}

TEST_P(RowStoreTest, CheckpointHoldsTheStateAsOfTheCall) {
  Table before;
  for (int64_t id = -1000; id < 1000; ++id) before[id] = Payload(kSize, 1, id);
  Write(store_.get(), 1, Changes(before.begin(), before.end()));
  store_->Checkpoint(directory_ / "linked", /*link=*/true);
  EXPECT_FALSE(store_->Checkpoint(directory_ / "copied", /*link=*/false));
  Changes changes;
  for (int64_t id = -2000; id < 500; ++id)
    changes[id] = id % 2 ? std::optional(Payload(kSize, 1, id, 1)) : std::nullopt;
  Write(store_.get(), 1, changes);
  store_->Checkpoint(directory_ / "later", /*link=*/true);
  const Table after = ScanAll(store_.get(), 1, kSize);
  store_->Close();

  EXPECT_EQ(ScanAll(Restore(directory_ / "linked").get(), 1, kSize), before);
  EXPECT_EQ(ScanAll(Restore(directory_ / "copied").get(), 1, kSize), before);
  EXPECT_EQ(ScanAll(Restore(directory_ / "later").get(), 1, kSize), after);
  EXPECT_EQ(ScanAll(Restore(directory_ / "linked").get(), 1, kSize), before) << "restoring changed a checkpoint";
}

TEST_P(RowStoreTest, EmptyStoreCanBeCheckpointed) {
  store_->Checkpoint(directory_ / "empty", /*link=*/true);
  const std::unique_ptr<RowStore> restored = Restore(directory_ / "empty");
  EXPECT_EQ(ScanAll(restored.get(), 0, kSize), Table());
  Write(restored.get(), 0, {{1, Payload(kSize, 0, 1)}});
  EXPECT_EQ(ScanAll(restored.get(), 0, kSize).size(), 1u);
}

TEST_P(RowStoreTest, CheckpointRefusesAnExistingPath) {
  store_->Checkpoint(directory_ / "there", /*link=*/true);
  Write(store_.get(), 1, {{1, Payload(kSize, 1, 1)}});
  ExpectError(ErrorCode::kInvalidArgument, {directory_ / "there"},
              [&] { store_->Checkpoint(directory_ / "there", /*link=*/true); });
  EXPECT_EQ(ScanAll(Restore(directory_ / "there").get(), 1, kSize), Table());
  ExpectError(ErrorCode::kIo, {"no parent"}, [&] { store_->Checkpoint(directory_ / "no parent/here", true); });
  EXPECT_EQ(ScanAll(store_.get(), 1, kSize).size(), 1u) << "a failed checkpoint harms nothing";
}

TEST_P(RowStoreTest, CloseTwice) {
  Write(store_.get(), 1, {{1, Payload(kSize, 1, 1)}});
  store_->Close();
  store_->Close();
}

// Writers rewrite whole generations of a table in one Write each; readers must see rows of one write at a time in a
// scan, and never older rows than a Write that had returned before they asked.
TEST_P(RowStoreTest, ConcurrentReadsAndWrites) {
  constexpr int64_t kIds = 300;
  constexpr uint64_t kGenerations = 150;
  const auto write_generation = [&](uint32_t table, uint64_t generation) {
    Changes changes;
    for (int64_t id = 0; id < kIds; ++id) {
      std::string payload = Payload(kSize, table, id, generation);
      payload.replace(0, sizeof(generation), reinterpret_cast<const char*>(&generation), sizeof(generation));
      changes[id] = payload;
    }
    Write(store_.get(), table, changes);
  };
  const auto generation_of = [](const std::string& payload) {
    uint64_t generation;
    std::memcpy(&generation, payload.data(), sizeof(generation));
    return generation;
  };
  std::atomic<uint64_t> written[2] = {0, 0};
  for (const uint32_t table : {0, 1}) write_generation(table, 0);

  std::vector<int64_t> ids;
  for (int64_t id = 0; id < kIds; ++id) ids.push_back(id);
  std::vector<std::thread> threads;
  for (const uint32_t table : {0, 1}) {
    threads.emplace_back([&, table] {
      for (uint64_t generation = 1; generation <= kGenerations; ++generation) {
        write_generation(table, generation);
        written[table] = generation;
      }
    });
    threads.emplace_back([&, table] {
      while (written[table] < kGenerations) {
        const uint64_t least = written[table];
        const Table rows = Get(store_.get(), table, ids, kSize);
        ASSERT_EQ(rows.size(), static_cast<size_t>(kIds));
        for (const auto& [id, payload] : rows) ASSERT_GE(generation_of(payload), least);
      }
    });
    threads.emplace_back([&, table] {
      while (written[table] < kGenerations) {
        const uint64_t least = written[table];
        const Table rows = ScanAll(store_.get(), table, kSize);
        ASSERT_EQ(rows.size(), static_cast<size_t>(kIds));
        for (const auto& [id, payload] : rows) ASSERT_EQ(generation_of(payload), generation_of(rows.at(0)));
        ASSERT_GE(generation_of(rows.at(0)), least);
      }
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < 5; ++i) {
      store_->Checkpoint(directory_ / ("during" + std::to_string(i)), /*link=*/i % 2 == 0);
      store_->Stats();
    }
  });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 5; ++i) {
    const std::unique_ptr<RowStore> restored = Restore(directory_ / ("during" + std::to_string(i)));
    for (const uint32_t table : {0, 1}) {
      const Table rows = ScanAll(restored.get(), table, kSize);
      ASSERT_EQ(rows.size(), static_cast<size_t>(kIds));
      for (const auto& [id, payload] : rows) EXPECT_EQ(generation_of(payload), generation_of(rows.at(0)));
    }
  }
}

}  // namespace
}  // namespace damo
