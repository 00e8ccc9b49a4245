// A memory store writes all rows of a call or, without memory, none.
#include "storage/memory_store.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "storage/row_store_testing.h"
#include "testing/calls_without_memory.h"

namespace damo {
namespace {

using testing::CallWithoutMemory;
using testing::FailEachAllocation;
using testing::Outcome;
using testing::Payload;
using testing::Table;

constexpr size_t kSize = 88;

// Rows 0 to 3, of which the change sets one, makes one anew and deletes one.
const Table kBefore = {{0, Payload(kSize, 1, 0)}, {1, Payload(kSize, 1, 1)}, {2, Payload(kSize, 1, 2)}};
const testing::Changes kChange = {{1, Payload(kSize, 1, 1, 1)}, {2, std::nullopt}, {3, Payload(kSize, 1, 3)}};
const Table kAfter = {{0, Payload(kSize, 1, 0)}, {1, Payload(kSize, 1, 1, 1)}, {3, Payload(kSize, 1, 3)}};

std::unique_ptr<RowStore> OpenWithRows() {
  std::unique_ptr<RowStore> store = OpenMemoryStore();
  testing::Write(store.get(), 1, {kBefore.begin(), kBefore.end()});
  return store;
}

TEST(MemoryStoreTest, WritesAllRowsOrNone) {
  const std::vector<RowWrite> writes = testing::WritesOf(1, kChange);
  FailEachAllocation([&](size_t n) {
    const std::unique_ptr<RowStore> store = OpenWithRows();
    const Outcome outcome = CallWithoutMemory(n, [&] { store->Write(writes); });
    EXPECT_EQ(testing::ScanAll(store.get(), 1, kSize), outcome.threw ? kBefore : kAfter);
    store->Write(writes);
    EXPECT_EQ(testing::ScanAll(store.get(), 1, kSize), kAfter);
    return outcome.failed;
  });
}

TEST(MemoryStoreTest, JournalsAllRowsOrNone) {
  const testing::TemporaryDirectory directory;
  const std::vector<RowWrite> writes = testing::WritesOf(1, kChange);
  FailEachAllocation([&](size_t n) {
    const std::unique_ptr<RowStore> store = OpenWithRows();
    const Outcome outcome = CallWithoutMemory(n, [&] { store->AddToJournal(writes); });
    const std::string path = directory / std::to_string(n);
    store->Checkpoint(path, false);
    EXPECT_EQ(testing::ScanAll(OpenMemoryStore(path).get(), 1, kSize), outcome.threw ? kBefore : kAfter);
    return outcome.failed;
  });
}

}  // namespace
}  // namespace damo
