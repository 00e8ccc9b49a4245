// What changed since a step, beside a scan of all rows; and how few files are read for it.

#include "storage/row_changes.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/table_properties.h>
#include <rocksdb/version.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/store_testing.h"
#include "storage_rocksdb/rocksdb_changes.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::Table;
using testing::TemporaryDirectory;

constexpr int kDim = 16;

struct Changed {
  Table rows;
  std::vector<int64_t> deleted;
};

Changed ChangesSince(const RowSnapshot& snapshot, size_t position, uint32_t since) {
  RowChanges changes(&snapshot, position, since);
  Changed found;
  int64_t id;
  for (const char* payload; changes.NextRow(&id, &payload);) {
    EXPECT_TRUE(found.rows.empty() || found.rows.rbegin()->first < id);
    found.rows[id] = {payload, changes.layout().payload_size()};
  }
  while (changes.NextDeleted(&id)) found.deleted.push_back(id);
  return found;
}

Changed ChangesSince(Store* store, uint16_t table, uint32_t since) {
  return ChangesSince(store->TakeSnapshot(std::vector<uint16_t>{table}), 0, since);
}

// What ChangesSince should find: of all rows those of `since` or later, and ids that were deleted by then, by id.
Changed Expected(Store* store, uint16_t table, const std::map<int64_t, uint32_t>& deletions, uint32_t since) {
  const RowLayout layout = store->layout(table);
  const Table all = testing::Contents(store, table);
  Changed expected;
  for (const auto& [id, payload] : all) {
    if (PayloadHeader(payload.data(), layout).last_step >= since) expected.rows[id] = payload;
  }
  for (const auto& [id, step] : deletions) {
    if (step >= since && !all.contains(id)) expected.deleted.push_back(id);
  }
  return expected;
}

// How many of the table files of a checkpoint are read for what changed in a table, and how many there are.
std::pair<size_t, size_t> FilesRead(const std::string& checkpoint, uint32_t table, uint32_t since) {
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> opened;
#else
  rocksdb::DB* opened = nullptr;
#endif
  EXPECT_TRUE(rocksdb::DB::OpenForReadOnly({}, checkpoint, &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(std::move(opened));
  rocksdb::TablePropertiesCollection files;
  EXPECT_TRUE(db->GetPropertiesOfAllTables(&files).ok());
  const auto read = ChangedSince(table, since);
  const auto n = std::count_if(files.begin(), files.end(), [&](const auto& file) { return read(*file.second); });
  return {static_cast<size_t>(n), files.size()};
}

TEST(RocksDbRowChangesTest, AreThoseOfAFullScanWhateverHappens) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    TemporaryDirectory directory;
    const auto store = OpenStore({}, testing::kRoomyCache, testing::Create(directory / "live"));
    // The second table has far fewer steps than the first.
    store->OpenTable(PlainTable("a", 1, kDim));
    store->OpenTable(PlainTable("b", 2, kDim));
    std::vector<std::map<int64_t, uint32_t>> deletions(2);
    size_t passed_over = 0;
    for (int operation = 0; operation < 150; ++operation) {
      const uint16_t table = random() % 4 == 0 ? 1 : 0;
      std::set<int64_t> distinct;
      for (size_t n = 1 + random() % 40; n > 0; --n) distinct.insert(static_cast<int64_t>(random() % 200) - 100);
      const std::vector<int64_t> ids(distinct.begin(), distinct.end());
      switch (random() % 6) {
        case 0: {
          const std::vector<float> weights(ids.size() * kDim, static_cast<float>(operation));
          store->Set(table, ids, weights.data());
          break;
        }
        case 1: {
          std::vector<uint8_t> there(ids.size());
          store->Contains(table, ids, there.data());
          for (size_t i = 0; i < ids.size(); ++i) {
            if (there[i]) deletions[table][ids[i]] = store->iter(table);
          }
          store->Delete(table, ids);
          break;
        }
        case 2: {
          const std::string checkpoint = directory / std::to_string(operation);
          store->Flush();
          store->Checkpoint(checkpoint, /*link=*/true);  // each leaves a table file, and compactions merge them
          const auto [read, files] = FilesRead(checkpoint, 1, store->iter(0));
          passed_over += files - read;
          break;
        }
        default:
          Step(store.get(), table, ids, 1);
      }
      for (const uint16_t t : {0, 1}) {
        const uint32_t since = static_cast<uint32_t>(random() % (store->iter(t) + 2));
        const Changed found = ChangesSince(store.get(), t, since);
        const Changed expected = Expected(store.get(), t, deletions[t], since);
        ASSERT_EQ(found.rows, expected.rows) << "since " << since << ", operation " << operation;
        ASSERT_EQ(found.deleted, expected.deleted) << "since " << since << ", operation " << operation;
      }
    }
    EXPECT_GT(passed_over, 0u);
  }
}

TEST(RocksDbRowChangesTest, ADeletedRowDoesNotComeBackFromAnOlderFile) {
  TemporaryDirectory directory;
  const auto store = OpenStore({}, testing::kRoomyCache, testing::Create(directory / "live"));
  store->OpenTable(PlainTable("t", 1, kDim));
  Step(store.get(), 0, {1, 2}, 1);
  store->Flush();
  store->Checkpoint(directory / "rows", true);
  store->Delete(0, std::vector<int64_t>{1});
  store->Flush();
  store->Checkpoint(directory / "tombstone", true);  // a file without rows
  const Changed changed = ChangesSince(store.get(), 0, 1);
  EXPECT_EQ(testing::IdsOf(changed.rows), std::vector<int64_t>{2});
  EXPECT_EQ(changed.deleted, std::vector<int64_t>{1});
  const Changed later = ChangesSince(store.get(), 0, 2);
  EXPECT_TRUE(later.rows.empty());
  EXPECT_TRUE(later.deleted.empty());
}

TEST(RocksDbRowChangesTest, FewFilesAreReadForFewChanges) {
  TemporaryDirectory directory;
  const auto store = OpenStore({}, testing::kRoomyCache, testing::Create(directory / "live"));
  store->OpenTable(PlainTable("t", 1, 64));
  store->OpenTable(PlainTable("other", 2, 64));
  constexpr int64_t kRows = 100'000;  // of some 28 MB
  for (int64_t first = 0; first < kRows; first += 5000) Step(store.get(), 0, Range(first, first + 5000), 1);
  store->Flush();
  store->Checkpoint(directory / "before", true);
  const uint32_t since = store->iter(0) + 1;
  std::vector<int64_t> ids;
  for (int64_t id = 0; id < kRows; id += 100) ids.push_back(id);  // 1 %, everywhere
  Step(store.get(), 0, ids, 1);
  store->Flush();
  store->Checkpoint(directory / "after", true);
  const auto [read, files] = FilesRead(directory / "after", 1, since);
  EXPECT_EQ(read, 1u);
  EXPECT_GE(files, 3u);
  EXPECT_EQ(FilesRead(directory / "after", 1, 0).first, files);
  EXPECT_EQ(FilesRead(directory / "after", 2, 0).first, 0u) << "none has rows of that table";
  EXPECT_EQ(testing::IdsOf(ChangesSince(store.get(), 0, since).rows), ids);
}

TEST(RowChangesTest, OfASnapshotStayAsTheyWere) {
  const auto store = OpenStore();
  store->OpenTable(PlainTable("t", 1, kDim));
  Step(store.get(), 0, {1, 2, 3}, 1);
  Step(store.get(), 0, {2}, 1);
  store->Delete(0, std::vector<int64_t>{3});
  const RowSnapshot snapshot = store->TakeSnapshot(std::vector<uint16_t>{0});
  const Changed before = ChangesSince(snapshot, 0, 2);
  Step(store.get(), 0, {1, 2, 3, 4}, 1);
  const Changed after = ChangesSince(snapshot, 0, 2);
  EXPECT_EQ(testing::IdsOf(before.rows), std::vector<int64_t>{2});
  EXPECT_EQ(before.deleted, std::vector<int64_t>{3});
  EXPECT_EQ(after.rows, before.rows);
  EXPECT_EQ(after.deleted, before.deleted);
  store->Close();
  testing::ExpectError(ErrorCode::kClosed, {}, [&] { ChangesSince(snapshot, 0, 2); });
}

}  // namespace
}  // namespace damo
