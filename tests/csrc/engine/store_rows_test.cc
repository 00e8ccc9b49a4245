// Rows by id, checkpoints, and a store's life.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::BatchOf;
using testing::Contents;
using testing::ExpectError;
using testing::GetRows;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::TemporaryDirectory;

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// The last iteration that changed a row, and how many have.
std::pair<uint32_t, uint32_t> Counters(const std::string& payload) {
  uint32_t counters[2];
  std::memcpy(counters, payload.data() + payload.size() - sizeof counters, sizeof counters);
  return {counters[0], counters[1]};
}

// With everything evicted after every call, and with nothing ever.
class StoreRowsTest : public ::testing::TestWithParam<size_t> {
 protected:
  StoreRowsTest() {
    StoreOptions options;
    options.cache_bytes = GetParam();
    store_ = OpenStore(options);
  }

  std::unique_ptr<Store> store_;
};

INSTANTIATE_TEST_SUITE_P(Caches, StoreRowsTest, ::testing::Values(0, 1),
                         [](const auto& info) { return info.param ? "Evicting" : "Keeping"; });

TEST_P(StoreRowsTest, TheCacheHoldsWhatItsNameSays) {
  store_->OpenTable(PlainTable("t", 1, 4));
  Step(store_.get(), 0, Range(0, 1000), 1);
  EXPECT_EQ(store_->table_stats(0).cached_rows, GetParam() == 0 ? 1000u : 0u);
}

TEST_P(StoreRowsTest, RandomCallsMatchAMap) {
  constexpr uint16_t kTables = 2;
  constexpr size_t kDim = 3;
  const float initial[kTables] = {0, 0.5f};
  for (uint16_t table = 0; table < kTables; ++table) {
    store_->OpenTable(PlainTable("t", 5 - table, kDim, initial[table]));
  }
  std::map<int64_t, float> rows[kTables];  // all elements of a row are equal
  std::mt19937_64 random(3);
  for (int call = 0; call < 1000; ++call) {
    const uint16_t table = static_cast<uint16_t>(random() % kTables);
    std::vector<int64_t> ids;
    for (size_t n = random() % 40; n > 0; --n) {
      ids.push_back(random() % 20 == 0 ? (random() % 2 ? kMin : kMax) : static_cast<int64_t>(random() % 200) - 100);
    }
    std::map<int64_t, float>& expected = rows[table];
    switch (random() % 6) {
      case 0: {  // in order: the last duplicate wins
        std::vector<float> weights;
        for (size_t i = 0; i < ids.size(); ++i) {
          expected[ids[i]] = static_cast<float>(1000 * call) + static_cast<float>(i);
          weights.insert(weights.end(), kDim, expected[ids[i]]);
        }
        store_->Set(table, ids, weights.data());
        break;
      }
      case 1:
        store_->Delete(table, ids);
        for (const int64_t id : ids) expected.erase(id);
        break;
      case 2: {
        Step(store_.get(), table, ids, 2);
        for (const int64_t id : ids) expected.emplace(id, initial[table]).first->second -= 2;
        break;
      }
      case 3: {
        std::vector<uint8_t> contains(ids.size(), 7);
        store_->Contains(table, ids, contains.data());
        for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(contains[i], expected.contains(ids[i]) ? 1 : 0);
        break;
      }
      default: {
        const UnseenRows unseen = random() % 2 ? UnseenRows::kInitial : UnseenRows::kZeros;
        std::vector<float> wanted;
        for (const int64_t id : ids) {
          const auto row = expected.find(id);
          const float value = unseen == UnseenRows::kInitial ? initial[table] : 0;
          wanted.insert(wanted.end(), kDim, row == expected.end() ? value : row->second);
        }
        ASSERT_EQ(GetRows(store_.get(), table, ids, unseen), wanted) << "call " << call;
      }
    }
    ASSERT_EQ(store_->rows(table), static_cast<int64_t>(expected.size())) << "call " << call;
  }
  for (uint16_t table = 0; table < kTables; ++table) {
    const testing::Table contents = Contents(store_.get(), table);
    ASSERT_EQ(contents.size(), rows[table].size());
    for (const auto& [id, value] : rows[table]) {
      float found;
      std::memcpy(&found, contents.at(id).data(), sizeof found);
      EXPECT_EQ(found, value) << id;
    }
  }
}

// More than one of the runs that such calls are cut into.
TEST_P(StoreRowsTest, CallsTakeAnyNumberOfIds) {
  store_->OpenTable(PlainTable("t", 1, 2));
  std::vector<int64_t> ids = Range(0, 40000);
  std::vector<float> weights;
  for (const int64_t id : ids) weights.insert(weights.end(), 2, static_cast<float>(id));
  store_->Set(0, ids, weights.data());
  EXPECT_EQ(GetRows(store_.get(), 0, ids), weights);
  store_->Delete(0, std::vector<int64_t>(ids.begin(), ids.begin() + 20000));
  std::fill(weights.begin(), weights.begin() + 40000, 0.0f);
  EXPECT_EQ(GetRows(store_.get(), 0, ids), weights);
  EXPECT_EQ(store_->rows(0), 20000);
  store_->Set(0, {}, nullptr);
  store_->Get(0, {}, UnseenRows::kInitial, nullptr);
  store_->Delete(0, {});
  EXPECT_EQ(store_->rows(0), 20000);
}

TEST(StoreManyRowsTest, CallsTakeMoreRowsThanTheCacheHolds) {
  constexpr size_t kDim = 64;
  const std::unique_ptr<Store> store = OpenStore({}, testing::kTightCache);
  store->OpenTable(PlainTable("t", 1, kDim));
  const std::vector<int64_t> ids = Range(0, 30000);
  std::vector<float> weights;
  for (const int64_t id : ids) weights.insert(weights.end(), kDim, static_cast<float>(id));
  store->Set(0, ids, weights.data());
  EXPECT_TRUE(GetRows(store.get(), 0, ids) == weights);
  store->Delete(0, Range(100, 30000));
  std::vector<uint8_t> contains(ids.size());
  store->Contains(0, ids, contains.data());
  EXPECT_EQ(std::count(contains.begin(), contains.end(), 1), 100);
}

TEST_P(StoreRowsTest, SetBeginsARowAnew) {
  TableSchema schema = PlainTable("t", 1, 2);
  schema.optimizer.kind = OptimizerKind::kAdagrad;
  schema.optimizer.initial_accumulator_value = 0.125;
  store_->OpenTable(schema);
  for (int i = 0; i < 3; ++i) Step(store_.get(), 0, {7}, 1);
  EXPECT_EQ(Counters(Contents(store_.get(), 0).at(7)), std::pair(3u, 3u));
  const float weights[] = {4, 5};
  store_->Set(0, std::vector<int64_t>{7}, weights);
  EXPECT_EQ(store_->iter(0), 3u) << "setting rows is no training step";
  const std::string payload = Contents(store_.get(), 0).at(7);
  float floats[4];
  std::memcpy(floats, payload.data(), sizeof floats);
  EXPECT_EQ((std::vector<float>(floats, floats + 4)), (std::vector<float>{4, 5, 0.125f, 0.125f}));
  EXPECT_EQ(Counters(payload), std::pair(3u, 0u));
}

TEST_P(StoreRowsTest, ADeletedRowComesBackFromItsInitialValue) {
  store_->OpenTable(PlainTable("t", 1, 1, 0.5f));
  Step(store_.get(), 0, {1, 2}, 4);
  store_->Delete(0, std::vector<int64_t>{1, 1, 99});
  EXPECT_EQ(store_->rows(0), 1);
  EXPECT_EQ(GetRows(store_.get(), 0, {1, 2}, UnseenRows::kZeros), (std::vector<float>{0, -3.5f}));
  Step(store_.get(), 0, {1}, 1);
  EXPECT_EQ(GetRows(store_.get(), 0, {1}), std::vector<float>{-0.5f});
  EXPECT_EQ(Counters(Contents(store_.get(), 0).at(1)), std::pair(2u, 1u));
}

TEST_P(StoreRowsTest, AScanIsASnapshot) {
  store_->OpenTable(PlainTable("t", 1, 1));
  Step(store_.get(), 0, Range(0, 100), 1);
  const std::unique_ptr<RowIterator> scan = store_->Scan(0);
  const testing::Table before = Contents(store_.get(), 0);
  Step(store_.get(), 0, Range(50, 150), 1);
  store_->Delete(0, Range(0, 50));
  EXPECT_EQ(testing::ReadAll(scan.get(), store_->layout(0).payload_size()), before);
  EXPECT_EQ(Contents(store_.get(), 0).size(), 100u);
}

TEST_P(StoreRowsTest, ACheckpointIsTheStoreAsOfTheCall) {
  TemporaryDirectory directory;
  TableSchema schema = PlainTable("t", 1, 8);
  schema.optimizer.kind = OptimizerKind::kAdam;
  store_->OpenTable(schema);
  for (int i = 0; i < 3; ++i) Step(store_.get(), 0, Range(100 * i, 100 * i + 500), 1);
  store_->BeginCheckpoint();
  store_->WriteCheckpoint(directory / "checkpoint", true);
  const testing::Table contents = Contents(store_.get(), 0);
  Step(store_.get(), 0, Range(0, 1000), 1);
  schema.iter = 3;
  schema.rows = 700;
  const std::unique_ptr<Store> restored =
      OpenStore({}, testing::kRoomyCache, OpenMemoryStore(directory / "checkpoint"));
  restored->OpenTable(schema);
  EXPECT_EQ(restored->rows(0), 700);
  EXPECT_EQ(Contents(restored.get(), 0), contents);
  // Both go on to the same bits.
  Step(restored.get(), 0, Range(0, 1000), 1);
  EXPECT_EQ(Contents(restored.get(), 0), Contents(store_.get(), 0));
}

TEST_P(StoreRowsTest, TablesMayBeOpenedWhileOthersHaveRows) {
  store_->OpenTable(PlainTable("wide", 1, 64));
  Step(store_.get(), 0, Range(0, 3000), 1);
  const testing::Table before = Contents(store_.get(), 0);
  for (int dim : {32, 8, 1}) store_->OpenTable(PlainTable("narrow", static_cast<uint32_t>(100 - dim), dim));
  EXPECT_EQ(Contents(store_.get(), 0), before);
  for (uint16_t table = 0; table < 4; ++table) Step(store_.get(), table, Range(0, 3000), 1);
  for (uint16_t table = 0; table < 4; ++table) {
    const size_t n = 3000 * static_cast<size_t>(store_->layout(table).dim);
    EXPECT_EQ(GetRows(store_.get(), table, Range(0, 3000)), std::vector<float>(n, table == 0 ? -2 : -1));
  }
}

TEST_P(StoreRowsTest, ADroppedTableIsGoneInMemoryOnDiskAndInCheckpoints) {
  store_->OpenTable(PlainTable("t", 1, 4));
  store_->OpenTable(PlainTable("u", 2, 4));
  for (const uint16_t table : {0, 1}) {
    Step(store_.get(), table, Range(0, 500), 1);
    store_->Flush();
    Step(store_.get(), table, Range(400, 900), 1);
    const std::vector<int64_t> some = Range(0, 100);
    store_->Delete(table, some);
  }
  const TemporaryDirectory directory;
  store_->Checkpoint(directory / "first", true);  // its journal holds rows of both
  const testing::Table kept = Contents(store_.get(), 0);
  store_->DropTable(2);
  store_->ReclaimTable(2);
  EXPECT_EQ(Contents(store_.get(), 0), kept);
  store_->Checkpoint(directory / "second", true);
  const std::unique_ptr<Store> restored = OpenStore({}, testing::kRoomyCache, OpenMemoryStore(directory / "second"));
  TableSchema t = PlainTable("t", 1, 4), u = PlainTable("u", 2, 4);
  t.rows = static_cast<int64_t>(kept.size());
  restored->OpenTable(t);
  restored->OpenTable(u);
  EXPECT_EQ(Contents(restored.get(), 0), kept);
  EXPECT_EQ(Contents(restored.get(), 1), testing::Table());
}

TEST_P(StoreRowsTest, CallsForADroppedTableAreRefused) {
  store_->OpenTable(PlainTable("t", 1, 1));
  store_->OpenTable(PlainTable("u", 2, 1));
  const auto batch = BatchOf({1});
  const auto lookup = batch.lookup(OneFeature(1));
  float out = 0;
  store_->Forward(lookup.get(), &out, 1);
  store_->DropTable(2);
  store_->DropTable(2);
  const GradientPart part{lookup.get(), &out, 1};
  const std::vector<int64_t> ids = {1};
  uint8_t contains;
  RowHeader header;
  const std::vector<std::function<void()>> calls = {
      [&] { store_->Forward(lookup.get(), &out, 1); },
      [&] { store_->Prefetch(lookup.get()); },
      [&] { store_->Backward({&part, 1}, 1, NonFinite::kRaise); },
      [&] { store_->WeightGradient(lookup.get(), &out, 1, &out); },
      [&] { store_->Get(1, ids, UnseenRows::kInitial, &out); },
      [&] { store_->Set(1, ids, &out); },
      [&] { store_->SetState(1, ids, &out); },
      [&] { store_->Describe(1, ids, nullptr, &header, nullptr); },
      [&] { store_->InitialWeights(1, ids, &out); },
      [&] { store_->AddRows(1, ids, &out, nullptr, &header); },
      [&] { store_->Delete(1, ids); },
      [&] { store_->Contains(1, ids, &contains); },
      [&] { store_->Scan(1); },
      [&] { store_->layout(1); },
      [&] { store_->rows(1); },
      [&] { store_->iter(1); },
      [&] { store_->RenameTable(1, "v"); },
  };
  for (const auto& call : calls) ExpectError(ErrorCode::kInvalidArgument, {"\"u\" was dropped"}, call);
  Step(store_.get(), 0, {1}, 1);
  EXPECT_EQ(store_->rows(0), 1);
}

TEST_P(StoreRowsTest, ADropThatFailsChangesNothing) {
  testing::FailOnce fail;
  StoreOptions options;
  options.cache_bytes = GetParam();
  const std::unique_ptr<Store> store =
      OpenStore(options, testing::kRoomyCache, std::make_unique<testing::HookedStore>([] {}, std::ref(fail)));
  store->OpenTable(PlainTable("t", 1, 4));
  Step(store.get(), 0, Range(0, 100), 1);
  const testing::Table before = Contents(store.get(), 0);
  fail.Arm(1);
  ExpectError(ErrorCode::kIo, {"fire"}, [&] { store->DropTable(1); });
  EXPECT_EQ(Contents(store.get(), 0), before);
  store->DropTable(1);
  ExpectError(ErrorCode::kInvalidArgument, {"was dropped"}, [&] { store->rows(0); });
}

TEST_P(StoreRowsTest, RowsThatAreAddedAreThereWithStateAndCounts) {
  TableSchema schema = PlainTable("t", 1, 2, 0.5f);
  schema.optimizer.kind = OptimizerKind::kAdagrad;
  schema.iter = 9;
  store_->OpenTable(schema);
  const std::vector<int64_t> ids = {-7, 3, kMax};
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6}, state = {10, 20, 30, 40, 50, 60};
  const std::vector<RowHeader> headers = {{1, 2}, {3, 4}, {9, 5}};
  store_->AddRows(0, ids, weights.data(), state.data(), headers.data());
  EXPECT_EQ(store_->rows(0), 3);
  const std::vector<int64_t> asked = {3, 404, -7};
  std::vector<float> found_state(6);
  std::vector<RowHeader> found(3);
  std::vector<uint8_t> contains(3);
  store_->Describe(0, asked, found_state.data(), found.data(), contains.data());
  EXPECT_EQ(found_state, (std::vector<float>{30, 40, 0, 0, 10, 20}));
  EXPECT_EQ(contains, (std::vector<uint8_t>{1, 0, 1}));
  EXPECT_EQ(found[0].last_step, 3u);
  EXPECT_EQ(found[0].count, 4u);
  EXPECT_EQ(found[1].count, 0u);
  EXPECT_EQ(GetRows(store_.get(), 0, {-7, 3, kMax}), weights);
  const std::vector<float> other = {7, 8};
  store_->SetState(0, {{3}}, other.data());
  store_->Describe(0, {{3}}, found_state.data(), found.data(), nullptr);
  EXPECT_EQ(std::vector<float>(found_state.begin(), found_state.begin() + 2), other);
  EXPECT_EQ(found[0].count, 4u);
  ExpectError(ErrorCode::kInvalidArgument, {"id 404 has no row"}, [&] { store_->SetState(0, {{404}}, other.data()); });
  std::vector<float> initial(4);
  store_->InitialWeights(0, {{3, 404}}, initial.data());
  EXPECT_EQ(initial, std::vector<float>(4, 0.5f));
  EXPECT_EQ(store_->rows(0), 3);
}

TEST_P(StoreRowsTest, AClosedStoreRefusesCalls) {
  store_->OpenTable(PlainTable("t", 1, 1));
  const auto batch = BatchOf({1});
  const auto lookup = batch.lookup(OneFeature(0));
  float out = 0;
  store_->Forward(lookup.get(), &out, 1);
  const std::unique_ptr<RowIterator> scan = store_->Scan(0);
  store_->Close();
  store_->Close();
  int64_t id;
  const char* payload;
  const GradientPart part{lookup.get(), &out, 1};
  const std::vector<int64_t> ids = {1};
  uint8_t contains;
  const std::vector<std::function<void()>> calls = {
      [&] { store_->OpenTable(PlainTable("u", 2, 1)); },
      [&] { store_->Forward(lookup.get(), &out, 1); },
      [&] { store_->Backward({&part, 1}, 1, NonFinite::kRaise); },
      [&] { store_->WeightGradient(lookup.get(), &out, 1, &out); },
      [&] { store_->Get(0, ids, UnseenRows::kInitial, &out); },
      [&] { store_->Set(0, ids, &out); },
      [&] { store_->Delete(0, ids); },
      [&] { store_->Contains(0, ids, &contains); },
      [&] { store_->Scan(0); },
      [&] { scan->Next(&id, &payload); },
      [&] { store_->layout(0); },
      [&] { store_->rows(0); },
      [&] { store_->iter(0); },
      [&] { store_->Flush(); },
      [&] { store_->BeginCheckpoint(); },
      [&] { store_->WriteCheckpoint("unused", true); },
      [&] { store_->table_stats(0); },
      [&] { store_->row_store_stats(); },
      [&] { store_->cache_memory_bytes(); },
  };
  for (const auto& call : calls) ExpectError(ErrorCode::kClosed, {"closed"}, call);
}

TEST(ReadOnlyStoreTest, ReadsAndRefusesChanges) {
  StoreOptions options;
  options.read_only = true;
  const std::unique_ptr<Store> store = OpenStore(options);
  store->OpenTable(PlainTable("t", 1, 1, 3));
  EXPECT_EQ(GetRows(store.get(), 0, {1}), std::vector<float>{3});
  const std::vector<int64_t> ids = {1};
  const float weight = 1;
  for (const auto& call :
       std::vector<std::function<void()>>{[&] { Step(store.get(), 0, {1}, 1); }, [&] { store->Set(0, ids, &weight); },
                                          [&] { store->Delete(0, ids); }}) {
    ExpectError(ErrorCode::kInvalidArgument, {"read-only"}, call);
  }
  EXPECT_TRUE(Contents(store.get(), 0).empty());
}

TEST(StoreOptionsTest, AnUnknownInstructionSetIsRefused) {
  StoreOptions options;
  options.instruction_set = "abacus";
  ExpectError(ErrorCode::kInvalidArgument, {"instruction_set", "plain", "\"abacus\""}, [&] { OpenStore(options); });
}

}  // namespace
}  // namespace damo
