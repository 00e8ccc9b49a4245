// Direct I/O, where the system writes less than it was asked to.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "storage_rocksdb/rocksdb_store_testing.h"
#include "testing/system_calls.h"

namespace damo {
namespace {

using testing::Changes;
using testing::kMiB;
using testing::Payload;
using testing::ScanAll;
using testing::Table;
using testing::TemporaryDirectory;

class DirectIoTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = directory_ / "probe";
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_DIRECT, 0666);
    if (descriptor < 0) GTEST_SKIP() << "no direct I/O in " << path;
    ::close(descriptor);
  }
  void TearDown() override { testing::most_bytes_per_write = 0; }

  const TemporaryDirectory directory_;
};

// RocksDB itself goes on where a short write has ended, within a block, which the system refuses: the database would
// write nothing any more.
TEST_F(DirectIoTest, WritesThatComeShortGoOn) {
  RocksDbOptions options = testing::Options(directory_ / "live");
  options.create = true;
  options.direct_io = true;
  const std::unique_ptr<RowStore> store = OpenRocksDbStore(options);
  Table rows;
  for (uint64_t version = 1; version <= 40; ++version) {
    testing::most_bytes_per_write = version % 4 == 0 ? 5000 : 0;
    Changes changes;
    std::vector<RowWrite> journal;
    for (int64_t id = 0; id < 2000; ++id) changes[id * static_cast<int64_t>(version)] = Payload(88, 1, id, version);
    testing::Write(store.get(), 1, changes);
    for (const auto& [id, payload] : changes) rows[id] = *payload;
    for (const auto& [id, payload] : changes) journal.push_back({1, id, payload->data(), payload->size(), 0});
    store->AddToJournal(journal);
    if (version % 8 == 0) store->Checkpoint(directory_ / ("rows" + std::to_string(version)), /*link=*/true);
  }
  testing::most_bytes_per_write = 0;
  EXPECT_TRUE(ScanAll(store.get(), 1, 88) == rows);
  EXPECT_TRUE(ScanAll(testing::OpenReadOnly(directory_ / "rows40").get(), 1, 88) == rows);
}

}  // namespace
}  // namespace damo
