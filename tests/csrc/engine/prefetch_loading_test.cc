// Calls that meet rows on their way into the cache.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "engine/prefetch_testing.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Backward;
using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::FirstRead;
using testing::Forward;
using testing::GetRows;
using testing::Hooked;
using testing::OneFeature;
using testing::OpenFilled;
using testing::PlainTable;
using testing::Prefetch;
using testing::Range;
using testing::Step;
using testing::Weights;
using testing::WeightsOfIds;

struct Call {
  std::string name;
  std::function<void(Store*)> make;        // on rows 0 to 9
  std::function<float(int64_t)> expected;  // weight of a row afterwards, or kGone

  friend void PrintTo(const Call& call, std::ostream* out) { *out << call.name; }
};

constexpr float kGone = -1e9f;

const Call kCalls[] = {
    {"Forward",
     [](Store* store) {
       const Batch batch = BatchOf(Range(0, 10));
       EXPECT_EQ(Forward(store, batch.lookup(OneFeature(0)).get(), 4), WeightsOfIds(Range(0, 10)));
     },
     [](int64_t id) { return static_cast<float>(id); }},
    {"ForwardOfMore",  // some of them more than once, some that are missing, some that were never seen
     [](Store* store) {
       const std::vector<int64_t> ids = {3, 11, 3, 9, 12, 0, 1000};
       const Batch batch = BatchOf(ids);
       EXPECT_EQ(Forward(store, batch.lookup(OneFeature(0)).get(), 4), Weights({3, 11, 3, 9, 12, 0, 0}));
     },
     [](int64_t id) { return static_cast<float>(id); }},
    {"Backward",  // without a forward
     [](Store* store) {
       const Batch batch = BatchOf(Range(0, 10));
       Backward(store, batch.lookup(OneFeature(0)).get(), 2);
     },
     [](int64_t id) { return static_cast<float>(id) - 2; }},
    {"Step", [](Store* store) { Step(store, 0, Range(0, 5), 2); },
     [](int64_t id) { return static_cast<float>(id < 5 ? id - 2 : id); }},
    {"WeightGradient",
     [](Store* store) {
       Batch batch = BatchOf({7, 8});
       batch.weighted = true;
       batch.weights = {1, 1};
       const std::vector<float> grad(8, 1);
       std::vector<float> gradient(2);
       store->WeightGradient(batch.lookup(OneFeature(0)).get(), grad.data(), 4, gradient.data());
       EXPECT_EQ(gradient, (std::vector<float>{28, 32}));
     },
     [](int64_t id) { return static_cast<float>(id); }},
    {"Get", [](Store* store) { EXPECT_EQ(GetRows(store, 0, {9, 0}), Weights({9, 0})); },
     [](int64_t id) { return static_cast<float>(id); }},
    {"Contains",
     [](Store* store) {
       uint8_t contains[3] = {7, 7, 7};
       store->Contains(0, std::vector<int64_t>{9, 1000, 0}, contains);
       EXPECT_EQ(std::vector<uint8_t>(contains, contains + 3), (std::vector<uint8_t>{1, 0, 1}));
     },
     [](int64_t id) { return static_cast<float>(id); }},
    {"Set", [](Store* store) { store->Set(0, Range(0, 10), std::vector<float>(40, -5).data()); },
     [](int64_t) { return -5.0f; }},
    {"Delete", [](Store* store) { store->Delete(0, Range(0, 8)); },
     [](int64_t id) { return id < 8 ? kGone : static_cast<float>(id); }},
    {"DeleteAndStep",
     [](Store* store) {
       store->Delete(0, Range(0, 8));
       Step(store, 0, {0}, 3);
     },
     [](int64_t id) { return id == 0  ? -3.0f
                             : id < 8 ? kGone
                                      : static_cast<float>(id); }},
};

enum class Read { kWorks, kFails };

class PrefetchLoadingTest : public ::testing::TestWithParam<std::tuple<Call, Read, size_t>> {};

INSTANTIATE_TEST_SUITE_P(Calls, PrefetchLoadingTest,
                         ::testing::Combine(::testing::ValuesIn(kCalls), ::testing::Values(Read::kWorks, Read::kFails),
                                            ::testing::Values(0, 1)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name +
                                  (std::get<1>(info.param) == Read::kFails ? "FailingRead" : "") +
                                  (std::get<2>(info.param) == 1 ? "TinyCache" : "");
                         });

// The call has to wait for the rows: they are read once, or, if that fails, once more by the call.
TEST_P(PrefetchLoadingTest, ACallWaitsForTheRows) {
  const auto& [call, read, cache_bytes] = GetParam();
  FirstRead first;
  StoreOptions options;
  options.num_threads = 2;
  options.cache_bytes = cache_bytes;
  const std::unique_ptr<Store> store =
      OpenFilled(Range(0, 20), 4, options, testing::kRoomyCache, Hooked([&] { first(); }));
  Prefetch(store.get(), 0, Range(0, 10));
  first.AwaitArrival();
  {
    const std::jthread opener = first.LetGoInTheBackground(read == Read::kFails);
    call.make(store.get());
  }
  int64_t rows = 0;
  for (int64_t id = 0; id < 20; ++id) rows += call.expected(id < 10 ? id : 10) == kGone ? 0 : 1;
  EXPECT_EQ(store->rows(0), rows);
  const testing::Table contents = Contents(store.get(), 0);
  EXPECT_EQ(contents.size(), static_cast<size_t>(rows));
  for (int64_t id = 0; id < 10; ++id) {
    ASSERT_EQ(contents.count(id), call.expected(id) == kGone ? 0u : 1u) << id;
    const float expected = call.expected(id) == kGone ? 0 : call.expected(id);
    ASSERT_EQ(GetRows(store.get(), 0, {id}), std::vector<float>(4, expected)) << id;
  }
}

TEST(PrefetchLoadingTest, AForwardWaitsInsteadOfReadingAgain) {
  FirstRead first;
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { first(); }));
  Prefetch(store.get(), 0, Range(0, 10));
  first.AwaitArrival();
  const std::jthread opener = first.LetGoInTheBackground(false);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), WeightsOfIds(Range(0, 10)));
  EXPECT_EQ(store->row_counts().read, 10u);
}

// Everything but the rows that are being read is as free as ever.
TEST(PrefetchLoadingTest, CallsThatDoNotNeedTheRowsDoNotWait) {
  const testing::TemporaryDirectory directory;
  FirstRead first;
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { first(); }));
  Prefetch(store.get(), 0, Range(0, 10));
  first.AwaitArrival();

  Prefetch(store.get(), 0, Range(0, 10));
  Step(store.get(), 0, Range(10, 15), 1);
  EXPECT_EQ(GetRows(store.get(), 0, {12, 17}), Weights({11, 17}));
  store->Set(0, std::vector<int64_t>{18}, std::vector<float>(4, -1).data());
  store->Delete(0, std::vector<int64_t>{19});
  EXPECT_EQ(store->rows(0), 19);
  store->Flush();
  EXPECT_EQ(Contents(store.get(), 0).size(), 19u);
  store->BeginCheckpoint();
  store->WriteCheckpoint(directory / "checkpoint", false);
  TableSchema other = PlainTable("other", 2, 1);  // smaller rows: the cache's index is made anew
  EXPECT_EQ(store->OpenTable(other), 1);
  Step(store.get(), 1, {1, 2, 3}, 1);
  EXPECT_EQ(store->table_stats(0).cached_rows, 10u + 7u);
  EXPECT_GT(store->cache_memory_bytes(), 0u);
  EXPECT_EQ(store->row_counts().read, 10u + 5u + 1u + 1u + 1u + 3u);

  const std::jthread opener = first.LetGoInTheBackground(false);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), WeightsOfIds(Range(0, 10)));
  // What the checkpoint has is what was there when it was made.
  const std::unique_ptr<RowStore> checkpoint = OpenMemoryStore(directory / "checkpoint");
  EXPECT_EQ(testing::ScanAll(checkpoint.get(), 1, store->layout(0).payload_size()), Contents(store.get(), 0));
}

}  // namespace
}  // namespace damo
