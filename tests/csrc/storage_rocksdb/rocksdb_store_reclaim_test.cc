// What a store has go by itself, and where it does not.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo::testing {
namespace {

constexpr uint32_t kTable = 1;

std::string RowOf(int64_t id, uint32_t step) {
  std::string payload = Payload(kSize, kTable, id);
  const RowHeader header = {step, 1};
  std::memcpy(payload.data() + kSize - sizeof header, &header, sizeof header);
  return payload;
}

class StoreReclaimTest : public ::testing::Test {
 protected:
  // Rows of the steps 1 and 2 by turns, in the last level.
  void WriteRows(RowStore* store) {
    for (int64_t id = 0; id < 5000; ++id) rows_[id] = RowOf(id, 1 + static_cast<uint32_t>(id % 2));
    Write(store, kTable, Changes(rows_.begin(), rows_.end()));
    store->ReclaimTable(kTable);
  }
  static void ReclaimTheFirstStep(RowStore* store) {
    Reclaimable reclaimable;
    reclaimable.ladder.Raise(1, PositionOf(2));
    store->SetReclaimable(kTable, reclaimable);
  }
  Table RowsOfTheSecondStep() const {
    Table rows = rows_;
    std::erase_if(rows, [](const auto& row) { return row.first % 2 == 0; });
    return rows;
  }

  TemporaryDirectory directory_;
  Table rows_;
};

TEST_F(StoreReclaimTest, HasDeadRowsGoByItself) {
  const auto store = Create(directory_ / "rows");
  WriteRows(store.get());
  const uint64_t bytes = store->Stats().disk_bytes;
  EXPECT_EQ(store->Stats().reclaimed_records, 0u);
  ReclaimTheFirstStep(store.get());
  while (store->Stats().disk_bytes > bytes * 2 / 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(ScanAll(store.get(), kTable, kSize), RowsOfTheSecondStep());
  const RowStoreStats stats = store->Stats();
  EXPECT_EQ(stats.reclaimed_records, 2500u);
  EXPECT_EQ(stats.reclaimed_bytes, 2500u * (12 + 1 + kSize));
  EXPECT_FALSE(stats.reclaim_lacks_space);
}

TEST_F(StoreReclaimTest, ClosesInTheMiddleOfIt) {
  for (int i = 0; i < 5; ++i) {
    const std::string path = directory_ / ("rows" + std::to_string(i));
    const auto store = Create(path);
    WriteRows(store.get());
    ReclaimTheFirstStep(store.get());
    std::this_thread::sleep_for(std::chrono::milliseconds(i));
    store->Close();
  }
}

TEST_F(StoreReclaimTest, LeavesCheckpointsAndThoseWhoReadThemAlone) {
  const std::string checkpoint = directory_ / "checkpoint";
  const auto store = Create(directory_ / "rows");
  WriteRows(store.get());
  store->Checkpoint(checkpoint, /*link=*/true);
  const auto contents = Contents(checkpoint);
  ReclaimTheFirstStep(store.get());
  store->ReclaimTable(kTable);
  EXPECT_EQ(ScanAll(store.get(), kTable, kSize), RowsOfTheSecondStep());
  EXPECT_TRUE(Contents(checkpoint) == contents);
  EXPECT_EQ(ScanAll(OpenReadOnly(checkpoint).get(), kTable, kSize), rows_);
  LinkOrCopyRocksDb(checkpoint, directory_ / "restored");
  const auto restored = Open(directory_ / "restored");
  restored->ReclaimTable(kTable);
  EXPECT_EQ(ScanAll(restored.get(), kTable, kSize), rows_) << "nothing has been said to be reclaimable there";
}

TEST_F(StoreReclaimTest, KeepsTablesOfWhichNothingWasSaid) {
  const auto store = Create(directory_ / "rows");
  WriteRows(store.get());
  const Table others = SomeRows(100, kTable + 1);
  Write(store.get(), kTable + 1, Changes(others.begin(), others.end()));
  ReclaimTheFirstStep(store.get());
  store->ReclaimTable(kTable);
  store->ReclaimTable(kTable + 1);
  EXPECT_EQ(ScanAll(store.get(), kTable + 1, kSize), others);
}

}  // namespace
}  // namespace damo::testing
