#include "serving/serving_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/store_testing.h"
#include "testing/system_calls.h"

namespace damo {
namespace {

using testing::ExpectError;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::TemporaryDirectory;

constexpr size_t kMiB = size_t{1} << 20;

ServingOptions Options(const TemporaryDirectory& directory, int dim, size_t memory_bytes = 64 * kMiB, int threads = 2) {
  return {directory / "", "g", dim, RowDtype::kFloat32, 1000, memory_bytes, threads};
}

void Ignore(uint64_t) {}

ServingTable Add(ServingRows* rows, const RowSnapshot& snapshot, size_t position, const RowFilter& filter = {},
                 const ServingRows::Progress& progress = Ignore) {
  return rows->Add(snapshot, position, filter, progress);
}

std::map<std::string, std::string> Files(const TemporaryDirectory& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory / "")) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

RowSnapshot Snapshot(Store* store, const std::vector<uint16_t>& tables) { return store->TakeSnapshot(tables); }

// Row i of the array in a file.
template <class T>
T At(const std::string& bytes, size_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
  return value;
}

void SetRows(Store* store, uint16_t table, const std::vector<int64_t>& ids) {
  const size_t dim = static_cast<size_t>(store->layout(table).dim);
  std::vector<float> weights(ids.size() * dim);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i);
  store->Set(table, ids, weights.data());
}

TEST(ServingRowsTest, TablesLieOneBehindTheOther) {
  TemporaryDirectory directory;
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("a", 1, 2));
  store->OpenTable(PlainTable("b", 2, 2));
  store->OpenTable(PlainTable("c", 3, 2));
  store->OpenTable(PlainTable("empty", 4, 2));
  SetRows(store.get(), 0, Range(-700, 700));
  SetRows(store.get(), 2, {std::numeric_limits<int64_t>::max()});
  const RowSnapshot snapshot = Snapshot(store.get(), {2, 0, 3});
  ASSERT_EQ(snapshot.tables().size(), 3u);
  EXPECT_EQ(snapshot.tables()[1].state.rows, 1400);
  ServingRows rows(Options(directory, 2));
  const ServingTable c = Add(&rows, snapshot, 0);
  const ServingTable a = Add(&rows, snapshot, 1);
  const ServingTable empty = Add(&rows, snapshot, 2);
  rows.Finish();
  EXPECT_EQ(c.rows, 1);
  EXPECT_EQ(a.rows, 1400);
  EXPECT_EQ(empty.rows, 0);
  const std::vector<HashPart>& parts = rows.parts();
  const auto first_row = [&](size_t part) {
    return parts[part].middle_row - static_cast<int64_t>(parts[part].scale * 0x1p63);
  };
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].middle_row, 0);
  EXPECT_EQ(parts[0].scale, 0x1p-64);
  EXPECT_EQ(parts[1].middle_row, 1);
  EXPECT_EQ(first_row(2), 2);
  EXPECT_EQ(rows.num_rows(), 2 * parts[2].middle_row - 1);
  EXPECT_EQ(empty.hash.first_bucket, 0);
  EXPECT_EQ(empty.hash.bucket_mask, 0);
  EXPECT_EQ(rows.num_shards(), 2);

  const std::map<std::string, std::string> files = Files(directory);
  ASSERT_EQ(files.size(), 4u);
  EXPECT_EQ(files.at("g.rows.0").size(), 1000 * 2 * sizeof(float));
  const std::string weights = files.at("g.rows.0") + files.at("g.rows.1");
  const std::string& keys = files.at("g.keys");
  ASSERT_EQ(keys.size(), static_cast<size_t>(rows.num_rows()) * sizeof(int64_t));
  ASSERT_EQ(weights.size(), keys.size());
  const std::vector<int64_t> buckets = [&] {
    std::vector<int64_t> values;
    for (int64_t i = 0; i < rows.num_buckets(); ++i) values.push_back(At<int64_t>(files.at("g.buckets"), i));
    return values;
  }();
  const auto row_of = [&](const ServingTable& table, int64_t id) {
    const int64_t bucket = buckets[static_cast<size_t>(BucketOf(MixId(id), table.hash))];
    return static_cast<size_t>(RowOf(MixId(id), bucket, parts[static_cast<size_t>(PartOf(bucket))]));
  };
  EXPECT_EQ(At<float>(weights, 0), 0);
  EXPECT_EQ(At<float>(weights, 1), 0);
  for (int64_t id = -2000; id < 2000; ++id) {
    const size_t row = row_of(a, id);
    const bool is_there = id >= -700 && id < 700;
    EXPECT_EQ(At<int64_t>(keys, row) == id, is_there) << id;
    if (is_there) {
      EXPECT_EQ(At<float>(weights, 2 * row), static_cast<float>(2 * (id + 700))) << id;
    }
    EXPECT_EQ(row_of(empty, id), 0u);
    EXPECT_NE(At<int64_t>(keys, row_of(c, id)), id);
  }
}

TEST(ServingRowsTest, WhatDoesNotFitIsSpilledAndComesOutTheSame) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 256));
  SetRows(store.get(), 0, Range(0, 30'000));
  const RowSnapshot snapshot = Snapshot(store.get(), {0});
  std::vector<std::map<std::string, std::string>> files;
  for (const auto& [memory_bytes, threads] : {std::pair{256 * kMiB, 1}, {256 * kMiB, 3}, {32 * kMiB, 3}}) {
    TemporaryDirectory directory;
    ServingRows rows(Options(directory, 256, memory_bytes, threads));
    bool spilled = false;
    Add(&rows, snapshot, 0, {}, [&](uint64_t) { spilled |= Files(directory).contains("g.spill.0"); });
    rows.Finish();
    EXPECT_GT(rows.parts().size(), 3u);
    files.push_back(Files(directory));
    EXPECT_EQ(files.back().size(), 2 + static_cast<size_t>(rows.num_shards()));
    EXPECT_EQ(spilled, memory_bytes == 32 * kMiB);
  }
  EXPECT_TRUE(files[0] == files[1]);
  EXPECT_TRUE(files[0] == files[2]);
}

TEST(ServingRowsTest, RowsAreFiltered) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 1));
  // Id i has i + 1 updates, the last of them in step i + 1.
  for (int64_t step = 0; step < 10; ++step) Step(store.get(), 0, Range(step, 10), 1);
  const RowSnapshot snapshot = Snapshot(store.get(), {0});
  const auto rows_of = [&](const RowFilter& filter) {
    TemporaryDirectory directory;
    ServingRows rows(Options(directory, 1));
    return Add(&rows, snapshot, 0, filter).rows;
  };
  EXPECT_EQ(rows_of({}), 10);
  EXPECT_EQ(rows_of({4, 0, {}}), 7);
  EXPECT_EQ(rows_of({0, 9, {}}), 2);
  EXPECT_EQ(rows_of({0, 0, 3}), 3);
  EXPECT_EQ(rows_of({0, 9, 3}), 2);
  EXPECT_EQ(rows_of({0, 0, 0}), 0);
  EXPECT_EQ(rows_of({uint64_t{1} << 40, 0, {}}), 0);
}

TEST(ServingRowsTest, RowsWithAsManyUpdatesAreTakenInOrder) {
  RowSelection selection({0, 0, 3});
  const std::vector<uint32_t> counts = {7, 2, 7, 9, 7, 7};
  for (const uint32_t count : counts) selection.Count({0, count});
  EXPECT_EQ(selection.Choose(), 3u);
  std::vector<bool> taken;
  for (const uint32_t count : counts) taken.push_back(selection.Takes({0, count}));
  EXPECT_EQ(taken, (std::vector<bool>{true, false, true, true, false, false}));
}

TEST(ServingRowsTest, WeightsThatDoNotFitNameTheirRow) {
  TemporaryDirectory directory;
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 2));
  SetRows(store.get(), 0, Range(0, 40'000));
  ServingOptions options = Options(directory, 2);
  options.dtype = RowDtype::kFloat16;
  ServingRows rows(options);
  ExpectError(ErrorCode::kInvalidArgument, {"table \"t\", id 32760: weight 0 is 65520"},
              [&] { Add(&rows, Snapshot(store.get(), {0}), 0); });
  ExpectError(ErrorCode::kInvalidArgument, {"given up"}, [&] { rows.Finish(); });
}

TEST(ServingRowsTest, ATableWithAnotherNumberOfRowsThanItIsSaidToHaveIsCorruption) {
  for (const int64_t rows : {int64_t{0}, int64_t{9}, int64_t{11}, int64_t{1} << 36}) {
    SCOPED_TRACE(rows);
    TemporaryDirectory directory;
    const std::unique_ptr<Store> store = OpenStore();
    TableSchema schema = PlainTable("a", 1, 2);
    schema.rows = rows - 10;
    store->OpenTable(schema);
    SetRows(store.get(), 0, Range(0, 10));
    const RowSnapshot snapshot = Snapshot(store.get(), {0});
    for (const RowFilter& filter : {RowFilter{}, RowFilter{0, 0, 5}}) {
      ServingRows exported(Options(directory, 2));
      ExpectError(ErrorCode::kCorruption, {"table \"a\"", std::to_string(rows)},
                  [&] { Add(&exported, snapshot, 0, filter); });
      std::filesystem::remove_all(directory / "");
      std::filesystem::create_directory(directory / "");
    }
  }
}

TEST(ServingRowsTest, ASnapshotEndsWithItsStore) {
  TemporaryDirectory directory;
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 2));
  SetRows(store.get(), 0, Range(0, 10));
  const RowSnapshot snapshot = Snapshot(store.get(), {0, 0});
  const std::unique_ptr<RowIterator> first = snapshot.Scan(0);
  const std::unique_ptr<RowIterator> second = snapshot.Scan(1);
  store->Delete(0, Range(0, 10));
  int64_t id;
  const char* payload;
  EXPECT_TRUE(first->Next(&id, &payload));
  EXPECT_TRUE(first->Next(&id, &payload));
  EXPECT_EQ(id, 1);
  EXPECT_TRUE(second->Next(&id, &payload));
  EXPECT_EQ(id, 0);
  store->Close();
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { first->Next(&id, &payload); }, [&] { snapshot.Scan(0); }, [&] { Snapshot(store.get(), {0}); }}) {
    ExpectError(ErrorCode::kClosed, {"closed"}, call);
  }
}

class ServingRowsFullDiskTest : public ::testing::Test {
 protected:
  ~ServingRowsFullDiskTest() override { testing::system_call_hook = nullptr; }

  static void FillDiskAfter(int writes) {
    writes_left_ = writes;
    testing::system_call_hook = [](const char* call) {
      return std::string_view(call) == "write" && writes_left_-- <= 0 ? ENOSPC : 0;
    };
  }

  static inline std::atomic<int> writes_left_;
};

TEST_F(ServingRowsFullDiskTest, ItIsSaidWhereverItHappens) {
  const std::unique_ptr<Store> store = OpenStore();
  store->OpenTable(PlainTable("t", 1, 256));
  SetRows(store.get(), 0, Range(0, 20'000));
  const RowSnapshot snapshot = Snapshot(store.get(), {0});
  const auto write = [&](const TemporaryDirectory& directory) {
    ServingRows rows(Options(directory, 256, 32 * kMiB));
    Add(&rows, snapshot, 0);
    rows.Finish();
  };
  TemporaryDirectory whole;
  FillDiskAfter(1 << 30);
  write(whole);
  const int writes = (1 << 30) - writes_left_;
  ASSERT_GT(writes, 20);
  // Spilled rows, rows, and the last buffers.
  for (const int after : {0, 1, writes / 4, writes / 2, writes - 2, writes - 1}) {
    TemporaryDirectory directory;
    FillDiskAfter(after);
    ExpectError(ErrorCode::kOutOfSpace, {directory / "", "/g."}, [&] { write(directory); });
    for (const auto& [name, contents] : Files(directory)) EXPECT_EQ(name.find("spill"), std::string::npos);
  }
}

}  // namespace
}  // namespace damo
