// The journal's files without memory. RocksDB itself, which is not made for that, has no part in them.
#include "storage_rocksdb/rocksdb_journal.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "storage/row_store_testing.h"
#include "storage_rocksdb/rocksdb_log_reader.h"
#include "testing/calls_without_memory.h"
#include "testing/failing_allocations.h"

namespace damo {
namespace {

using testing::CallWithoutMemory;
using testing::FailEachAllocation;
using testing::FailingAllocation;
using testing::Outcome;
using testing::Payload;

TEST(RocksDbJournalTest, CanBeClearedWhereverThereWasNoMemory) {
  const testing::TemporaryDirectory directory;
  const testing::Changes changes = {{1, Payload(88, 1, 1)}, {2, std::nullopt}};
  const std::vector<RowWrite> rows = testing::WritesOf(1, changes);
  FailEachAllocation([&](size_t n) {
    RocksDbJournal journal(directory / "");
    journal.Add(rows, 1);
    journal.Finish();
    const Outcome outcome = CallWithoutMemory(n, [&] {
      journal.Add(rows, 1);
      journal.Finish();
    });
    EXPECT_EQ(journal.files(), outcome.threw ? 1u : 2u);
    {
      const FailingAllocation failing(0);
      journal.Clear();
      EXPECT_EQ(failing.seen(), 0u);
    }
    EXPECT_TRUE(std::filesystem::is_empty(directory / ""));
    EXPECT_EQ(journal.bytes(), 0u);
    journal.Add(rows, 1);
    for (const RocksDbJournal::LogFile& file : journal.Finish()) VerifyLogFile(file.path);
    EXPECT_EQ(journal.files(), 1u);
    return outcome.failed;
  });
}

}  // namespace
}  // namespace damo
