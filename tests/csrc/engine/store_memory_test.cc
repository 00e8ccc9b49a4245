// A call for which there is no memory is done or not done, whichever of its allocations fails, and the store goes on.
//
// Rows are in a MemoryStore: how RocksDB fares without memory is its own affair.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/open.h"
#include "engine/store_testing.h"
#include "testing/calls_without_memory.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

using testing::BatchOf;
using testing::CallWithoutMemory;
using testing::Contents;
using testing::FailEachAllocation;
using testing::Forward;
using testing::GetRows;
using testing::OneFeature;
using testing::OpenStore;
using testing::Outcome;
using testing::PlainTable;
using testing::Range;
using testing::Step;

// As long as rows can be: the cache has room for some forty.
constexpr int kDim = 16000;

// What a table holds whose rows are of one number each.
struct Model {
  std::map<int64_t, float> rows;
  uint32_t iter = 0;

  // A step with the gradient -1 of each element.
  Model Stepped(const std::vector<int64_t>& ids) const {
    Model model = *this;
    for (const int64_t id : ids) ++model.rows[id];
    ++model.iter;
    return model;
  }
  Model Set(const std::vector<int64_t>& ids, float weight) const {
    Model model = *this;
    for (const int64_t id : ids) model.rows[id] = weight;
    return model;
  }
  Model Deleted(const std::vector<int64_t>& ids) const {
    Model model = *this;
    for (const int64_t id : ids) model.rows.erase(id);
    return model;
  }
  bool operator==(const Model&) const = default;
};

std::map<int64_t, float> RowsOf(const testing::Table& contents) {
  std::map<int64_t, float> rows;
  for (const auto& [id, payload] : contents) {
    const auto weight = [&](size_t i) {
      float w;
      std::memcpy(&w, payload.data() + i * sizeof w, sizeof w);
      return w;
    };
    EXPECT_EQ(weight(0), weight(kDim - 1)) << "row " << id;
    rows[id] = weight(0);
  }
  return rows;
}

void Train(Store* store, const std::vector<int64_t>& ids) { Step(store, 0, ids, -1); }

void SetAll(Store* store, const std::vector<int64_t>& ids, float weight) {
  store->Set(0, ids, std::vector<float>(ids.size() * kDim, weight).data());
}

class StoreMemoryTest : public ::testing::Test {
 protected:
  using Call = std::function<void(Store*)>;

  std::unique_ptr<Store> Open(std::unique_ptr<RowStore> rows = OpenMemoryStore()) {
    StoreOptions options;
    options.num_threads = 2;
    return OpenStore(options, testing::kTightCache, std::move(rows));
  }

  // For each allocation of `call` on a store that holds `before`: it fails, and the table is as before the call or, if
  // it did not throw, as after it; the call can then be made, and so can others.
  void ExpectDoneOrNot(const Call& prepare, const Model& before, const Call& call, const Model& after) {
    FailEachAllocation([&](size_t n) {
      const std::unique_ptr<Store> store = Open();
      store->OpenTable(PlainTable("t", 1, kDim));
      prepare(store.get());
      const Outcome outcome = CallWithoutMemory(n, [&] { call(store.get()); });
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, "allocation " + std::to_string(n));
      ExpectHolds(store.get(), outcome.threw ? before : after);
      if (outcome.threw) call(store.get());
      Train(store.get(), Range(0, 4));
      ExpectHolds(store.get(), after.Stepped(Range(0, 4)));
      ExpectCheckpointHolds(store.get(), after.Stepped(Range(0, 4)));
      return outcome.failed;
    });
  }
  void ExpectDoneOrNot(const Call& prepare, const Model& before, const Call& call) {
    ExpectDoneOrNot(prepare, before, call, before);
  }

  void ExpectHolds(Store* store, const Model& model) {
    EXPECT_EQ(store->iter(0), model.iter);
    EXPECT_EQ(store->rows(0), static_cast<int64_t>(model.rows.size()));
    std::vector<int64_t> ids;
    for (const auto& [id, weight] : model.rows) ids.push_back(id);
    const std::vector<float> weights = GetRows(store, 0, ids);
    for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(weights[i * kDim], model.rows.at(ids[i])) << "row " << ids[i];
  }
  void ExpectCheckpointHolds(Store* store, const Model& model) {
    const std::string path = directory_ / std::to_string(checkpoints_++);
    const auto [states, linked] = store->Checkpoint(path, false);
    EXPECT_EQ(states[0].iter, model.iter);
    EXPECT_EQ(states[0].rows, static_cast<int64_t>(model.rows.size()));
    EXPECT_EQ(RowsIn(path, store->layout(0)), model.rows);
  }
  std::map<int64_t, float> RowsIn(const std::string& checkpoint, const RowLayout& layout) const {
    return RowsOf(testing::ScanAll(OpenMemoryStore(checkpoint).get(), 1, layout.payload_size()));
  }

  const testing::TemporaryDirectory directory_;
  int checkpoints_ = 0;
};

const Model kFew = Model().Stepped(Range(0, 6));
void MakeFew(Store* store) { Train(store, Range(0, 6)); }

// More than the cache has room for, so that what comes next evicts rows, and dirty ones among them.
const Model kMany = Model().Stepped(Range(0, 20)).Stepped(Range(20, 40)).Stepped(Range(40, 60));
void MakeMany(Store* store) {
  for (int64_t begin = 0; begin < 60; begin += 20) Train(store, Range(begin, begin + 20));
}

void ForwardOf(Store* store, const std::vector<int64_t>& ids) {
  const testing::Batch batch = BatchOf(ids);
  Forward(store, batch.lookup(OneFeature(0)).get(), kDim);
}

TEST_F(StoreMemoryTest, OfAForwardOfNewRows) {
  ExpectDoneOrNot(MakeFew, kFew, [](Store* store) { ForwardOf(store, Range(0, 12)); });
}

TEST_F(StoreMemoryTest, OfAForwardThatEvicts) {
  ExpectDoneOrNot(MakeMany, kMany, [](Store* store) { ForwardOf(store, Range(0, 16)); });
}

TEST_F(StoreMemoryTest, OfAPrefetchAndItsForward) {
  ExpectDoneOrNot(MakeMany, kMany, [](Store* store) {
    const testing::Batch batch = BatchOf(Range(0, 8));
    const auto lookup = batch.lookup(OneFeature(0));
    store->Prefetch(lookup.get());
    Forward(store, lookup.get(), kDim);
  });
}

TEST_F(StoreMemoryTest, OfReads) {
  ExpectDoneOrNot(MakeFew, kFew, [](Store* store) {
    GetRows(store, 0, Range(0, 10));
    uint8_t contains;
    store->Contains(0, std::vector<int64_t>{50}, &contains);
  });
}

TEST_F(StoreMemoryTest, OfSet) {
  ExpectDoneOrNot(MakeMany, kMany, [](Store* store) { SetAll(store, Range(0, 8), 7); }, kMany.Set(Range(0, 8), 7));
  ExpectDoneOrNot(MakeFew, kFew, [](Store* store) { SetAll(store, Range(3, 10), 7); }, kFew.Set(Range(3, 10), 7));
}

TEST_F(StoreMemoryTest, OfDelete) {
  ExpectDoneOrNot(MakeMany, kMany, [](Store* store) { store->Delete(0, Range(0, 8)); }, kMany.Deleted(Range(0, 8)));
}

TEST_F(StoreMemoryTest, OfCallsWhereRowsHaveALife) {
  const auto prepare = [](Store* store) {
    MakeFew(store);
    LifeOptions options;
    options.max_rows = options.keep_rows = 100;
    options.idle.push_back({1000, 0, 0});
    store->SetLife(0, options, 0);
  };
  ExpectDoneOrNot(prepare, kFew, [](Store* store) { SetAll(store, Range(3, 10), 7); }, kFew.Set(Range(3, 10), 7));
  ExpectDoneOrNot(prepare, kFew, [](Store* store) { store->Delete(0, Range(0, 4)); }, kFew.Deleted(Range(0, 4)));
  ExpectDoneOrNot(prepare, kFew, [](Store* store) { Train(store, Range(4, 9)); }, kFew.Stepped(Range(4, 9)));
}

TEST_F(StoreMemoryTest, OfFlush) {
  ExpectDoneOrNot(MakeFew, kFew, [](Store* store) { store->Flush(); });
}

TEST_F(StoreMemoryTest, OfASnapshot) {
  ExpectDoneOrNot(MakeFew, kFew, [](Store* store) { Contents(store, 0); });
}

// The checkpoint before it has a journal, to which this one adds.
TEST_F(StoreMemoryTest, OfACheckpoint) {
  const auto prepare = [&](Store* store) {
    MakeFew(store);
    store->Checkpoint(directory_ / std::to_string(checkpoints_++), false);
    Train(store, Range(2, 4));
  };
  ExpectDoneOrNot(prepare, kFew.Stepped(Range(2, 4)),
                  [&](Store* store) { store->Checkpoint(directory_ / std::to_string(checkpoints_++), false); });
}

TEST_F(StoreMemoryTest, OfOpeningATable) {
  // Narrower than the other, so that the index is made anew and rows have to go.
  const TableSchema narrow = PlainTable("u", 2, 1);
  ExpectDoneOrNot(MakeMany, kMany, [&](Store* store) { ASSERT_EQ(store->OpenTable(narrow), 1); });
}

// Nothing of it may throw: there is nobody to tell.
TEST_F(StoreMemoryTest, OfClosing) {
  std::unique_ptr<Store> store = Open();
  store->OpenTable(PlainTable("t", 1, kDim));
  MakeMany(store.get());
  const RowSnapshot snapshot = store->TakeSnapshot(std::vector<uint16_t>{0});
  store->BeginCheckpoint();
  const testing::FailingAllocation failing(0);
  store->Close();
  store.reset();
}

TEST_F(StoreMemoryTest, OfOpening) {
  const std::string path = directory_ / "checkpoint";
  {
    const std::unique_ptr<Store> store = Open();
    store->OpenTable(PlainTable("t", 1, kDim));
    MakeFew(store.get());
    store->Checkpoint(path, false);
  }
  TableSchema schema = PlainTable("t", 1, kDim);
  schema.iter = kFew.iter;
  schema.rows = static_cast<int64_t>(kFew.rows.size());
  FailEachAllocation([&](size_t n) {
    std::unique_ptr<Store> store;
    const Outcome outcome = CallWithoutMemory(n, [&] { store = Open(OpenMemoryStore(path)); });
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, "allocation " + std::to_string(n));
    if (outcome.threw) store = Open(OpenMemoryStore(path));
    store->OpenTable(schema);
    ExpectHolds(store.get(), kFew);
    return outcome.failed;
  });
}

}  // namespace
}  // namespace damo
