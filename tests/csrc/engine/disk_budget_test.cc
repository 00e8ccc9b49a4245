#include "engine/disk_budget.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/store_testing.h"
#include "testing/errors.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

using testing::ExpectError;
using testing::GetRows;
using testing::HookedStore;
using testing::OpenStore;
using testing::PlainTable;
using testing::Step;
using testing::TemporaryDirectory;

// Has written as many bytes as a test says, of which no file tells.
class WritingStore : public HookedStore {
 public:
  WritingStore() : HookedStore([] {}, [this] { ++writes; }) {}
  RowStoreStats Stats() const override {
    RowStoreStats stats = HookedStore::Stats();
    stats.bytes_written = written;
    return stats;
  }

  uint64_t written = 0;
  int writes = 0;
};

class DiskBudgetTest : public ::testing::Test {
 protected:
  void MakeFile(const std::string& name, size_t bytes) {
    std::ofstream(directory_ / name, std::ios::binary) << std::string(bytes, 'x');
  }
  void Remove(const std::string& name) { std::filesystem::remove(directory_ / name); }

  const TemporaryDirectory directory_;
  WritingStore rows_;
};

TEST_F(DiskBudgetTest, WithoutALimitItIsNeverFull) {
  MakeFile("a", 1000);
  DiskBudget budget(0, directory_ / "", &rows_);
  EXPECT_FALSE(budget.IsFull());
  budget.RequireRoom();
  EXPECT_EQ(budget.used(), 0u);
}

TEST_F(DiskBudgetTest, LooksAtTheFilesOnlyWhenTheyMayHaveReachedTheLimit) {
  MakeFile("a", 500);
  DiskBudget budget(1000, directory_ / "", &rows_);
  MakeFile("b", 600);
  EXPECT_FALSE(budget.IsFull());
  rows_.written = 300;
  EXPECT_FALSE(budget.IsFull());
  EXPECT_EQ(budget.used(), 500u);
  rows_.written = 500;
  EXPECT_TRUE(budget.IsFull());
  EXPECT_EQ(budget.used(), 1100u);
}

TEST_F(DiskBudgetTest, LooksAtThemForEachHundredthNearTheLimit) {
  MakeFile("a", 900);
  DiskBudget budget(1000, directory_ / "", &rows_);
  MakeFile("b", 50);
  rows_.written = 9;
  EXPECT_FALSE(budget.IsFull());
  EXPECT_EQ(budget.used(), 900u);
  rows_.written = 10;
  EXPECT_FALSE(budget.IsFull());
  EXPECT_EQ(budget.used(), 950u);
}

TEST_F(DiskBudgetTest, IsFullFromTheLimitOnAndNoMoreOnceThereIsSpace) {
  MakeFile("a", 999);
  DiskBudget budget(1000, directory_ / "", &rows_);
  EXPECT_FALSE(budget.IsFull());
  MakeFile("b", 1);
  rows_.written = 1;
  ExpectError(ErrorCode::kOutOfSpace, {directory_ / "", "1000 bytes of the disk_budget of 1000", "prune"},
              [&] { budget.RequireRoom(); });
  Remove("b");
  budget.RequireRoom();
  EXPECT_EQ(budget.used(), 999u);
}

TEST_F(DiskBudgetTest, CountsHardLinksOnceAndWhatIsInDirectories) {
  MakeFile("a", 400);
  std::filesystem::create_directory(directory_ / "checkpoints");
  std::filesystem::create_hard_link(directory_ / "a", directory_ / "checkpoints/a");
  MakeFile("checkpoints/b", 300);
  EXPECT_EQ(DiskBudget(1000, directory_ / "", &rows_).used(), 700u);
}

// A store whose limit is used up by a file.
class StoreWithDiskBudgetTest : public DiskBudgetTest {
 protected:
  static constexpr uint64_t kLimit = 1000;

  void Open(uint64_t limit = kLimit) {
    auto rows = std::make_unique<WritingStore>();
    opened_ = rows.get();
    StoreOptions options;
    options.disk_budget = limit;
    options.directory = directory_ / "";
    store_ = OpenStore(options, testing::kRoomyCache, std::move(rows));
    table_ = store_->OpenTable(PlainTable("t", 1, 4));
  }
  void FillDisk() {
    MakeFile("full", kLimit);
    opened_->written += kLimit;
  }
  void Set(const std::vector<int64_t>& ids) {
    const std::vector<float> weights(4 * ids.size(), 5);
    store_->Set(table_, ids, weights.data(), 0);
  }
  void ExpectRefused(const std::function<void()>& call) {
    const int writes = opened_->writes;
    const auto iter = store_->iter(table_);
    const auto count = store_->rows(table_);
    const std::vector<float> before = GetRows(store_.get(), table_, {1, 2, 3});
    ExpectError(ErrorCode::kOutOfSpace, {"disk_budget of 1000"}, call);
    EXPECT_EQ(opened_->writes, writes);
    EXPECT_EQ(store_->iter(table_), iter);
    EXPECT_EQ(store_->rows(table_), count);
    EXPECT_EQ(GetRows(store_.get(), table_, {1, 2, 3}), before);
  }

  WritingStore* opened_ = nullptr;
  std::unique_ptr<Store> store_;
  uint16_t table_ = 0;
};

TEST_F(StoreWithDiskBudgetTest, RefusesWhatGrowsBeforeAnythingIsWrittenAndGoesOnWithTheRest) {
  Open();
  Step(store_.get(), table_, {1, 2}, 1);
  FillDisk();
  ExpectRefused([&] { Step(store_.get(), table_, {1, 3}, 1); });
  ExpectRefused([&] { Set({2, 3}); });
  ExpectRefused([&] { store_->RequireDisk(); });
  Step(store_.get(), table_, {1, 2}, 1);
  Set({2});
  store_->Delete(table_, std::vector<int64_t>{1});
  EXPECT_EQ(store_->rows(table_), 1);
  ExpectRefused([&] { Step(store_.get(), table_, {1}, 1); });  // it has no row any more
}

TEST_F(StoreWithDiskBudgetTest, GoesOnOnceThereIsSpace) {
  Open();
  FillDisk();
  ExpectRefused([&] { Step(store_.get(), table_, {3}, 1); });
  Remove("full");
  Step(store_.get(), table_, {3}, 1);
  Set({4});
  EXPECT_EQ(store_->rows(table_), 2);
  EXPECT_EQ(GetRows(store_.get(), table_, {3}), std::vector<float>(4, -1));
}

TEST_F(StoreWithDiskBudgetTest, GoesOnWithALargerLimit) {
  Open();
  FillDisk();
  ExpectRefused([&] { Step(store_.get(), table_, {3}, 1); });
  store_->Close();
  Open(2 * kLimit);
  EXPECT_EQ(store_->disk_used(), kLimit);
  Step(store_.get(), table_, {3}, 1);
  EXPECT_EQ(store_->rows(table_), 1);
}

}  // namespace
}  // namespace damo
