// Calls that meet rows on their way into the cache, reads that fail in the background, and what ends them.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <ostream>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "prefetch_testing.h"
#include "store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ErrorOf;
using testing::ExpectError;
using testing::FailOnce;
using testing::Forward;
using testing::Gate;
using testing::GetRows;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenFilled;
using testing::PlainTable;
using testing::Prefetch;
using testing::Range;
using testing::Step;
using testing::Weights;
using testing::WeightsOfIds;

// A hook that holds up the first read until it is let go, and no other. Prefetches of these tests are small enough to
// be one read.
class FirstRead {
 public:
  void operator()() {
    if (came_.exchange(true)) return;
    gate_();
    if (fails_) throw Error(ErrorCode::kIo, "the disk is on fire");
  }
  void AwaitArrival() { gate_.AwaitArrival(); }
  // Lets it go, to fail or not, from another thread: whatever is called meanwhile may have to wait for it.
  [[nodiscard]] std::jthread LetGoInTheBackground(bool fails) {
    fails_ = fails;
    return std::jthread([this] { gate_.Open(); });
  }

 private:
  Gate gate_;
  std::atomic<bool> came_ = false, fails_ = false;
};

std::unique_ptr<RowStore> Hooked(HookedStore::Hook before_read) {
  return std::make_unique<HookedStore>(std::move(before_read));
}

// ---- calls that need rows that are being read

struct Call {
  std::string name;
  std::function<void(Store*)> make;        // on rows 0 to 9
  std::function<float(int64_t)> expected;  // weight of a row afterwards, or kGone

  friend void PrintTo(const Call& call, std::ostream* out) { *out << call.name; }
};

constexpr float kGone = -1e9f;

void Backward(Store* store, Lookup* lookup, float grad) {
  const std::vector<float> grads(lookup->batch.batch * 4, grad);
  const GradientPart part{lookup, grads.data(), 4};
  store->Backward({&part, 1}, 1, NonFinite::kRaise);
}

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
    {"Get",
     [](Store* store) {
       EXPECT_EQ(GetRows(store, 0, {9, 0}), Weights({9, 0}));
     },
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
  store->Checkpoint(directory / "checkpoint", false);
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

// ---- between a forward and its backward

TEST(PrefetchLookupTest, RowsThatPrefetchesDroveOutAreUpdated) {
  constexpr int kDim = 64;
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 20000), kDim, {}, testing::kTightCache);
  const Batch batch = BatchOf(Range(0, 1000));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), kDim);
  for (int64_t i = 1; i < 20; ++i) {  // each with its forward, so that the next one is read, too
    Prefetch(store.get(), 0, Range(1000 * i, 1000 * (i + 1)));
    const Batch other = BatchOf(Range(1000 * i, 1000 * (i + 1)));
    Forward(store.get(), other.lookup(OneFeature(0)).get(), kDim);
  }
  Prefetch(store.get(), 0, Range(500, 600));  // some of them are on their way back
  const std::vector<float> grad(1000 * kDim, 1);
  const GradientPart part{lookup.get(), grad.data(), kDim};
  const uint64_t before = store->row_counts().read;
  store->Backward({&part, 1}, 1, NonFinite::kRaise);
  EXPECT_EQ(store->row_counts().read - before, 900u) << "the test needs rows that are gone";
  const std::vector<float> rows = GetRows(store.get(), 0, Range(0, 1000));
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], static_cast<float>(i / kDim) - 1);
}

TEST(PrefetchLookupTest, RowsThatWereDeletedAreMadeAnew) {
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 10));
  const Batch batch = BatchOf(Range(0, 10));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), 4);
  store->Delete(0, Range(0, 5));
  Prefetch(store.get(), 0, Range(0, 12));
  Backward(store.get(), lookup.get(), 1);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), Weights({-1, -1, -1, -1, -1, 4, 5, 6, 7, 8}));
  EXPECT_EQ(store->rows(0), 10);
}

TEST(PrefetchLookupTest, AFailedReadOfOthersLeavesTheirSlots) {
  FailOnce failure;
  const std::unique_ptr<Store> store =
      OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { failure(); }));
  const Batch batch = BatchOf(Range(0, 10));
  const auto lookup = batch.lookup(OneFeature(0));
  Forward(store.get(), lookup.get(), 4);
  failure.Arm(1);
  Prefetch(store.get(), 0, Range(5, 15));
  Backward(store.get(), lookup.get(), 1);
  EXPECT_EQ(GetRows(store.get(), 0, Range(10, 15)), WeightsOfIds(Range(10, 15)));
  EXPECT_TRUE(failure.Fired());
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), WeightsOfIds(Range(-1, 9)));
}

// A backward that failed has found a row that is being read. Its repetition has to wait for that row, too.
TEST(PrefetchLookupTest, ABackwardThatIsRepeatedWaitsForRowsOnTheirWay) {
  constexpr int kDim = 64;
  constexpr size_t kBags = 4000;
  const std::thread::id caller = std::this_thread::get_id();
  Gate gate;
  std::atomic<bool> hold = false, disk_full = false, caller_reads = false;
  const auto before_read = [&] {
    if (std::this_thread::get_id() == caller) {
      caller_reads = true;
    } else if (hold) {
      gate();
    }
  };
  const auto before_write = [&] {  // in the background never: evictions have to write
    if (disk_full || std::this_thread::get_id() != caller) throw Error(ErrorCode::kOutOfSpace, "full");
  };
  auto rows = std::make_unique<HookedStore>(before_read, before_write);
  TableSchema schema = testing::FillTable(rows.get(), Range(0, 50000), kDim);
  schema.iter = 1000000;  // the cache keeps none of its rows for their updates
  const std::unique_ptr<Store> store = testing::OpenStore({}, testing::kTightCache, std::move(rows));
  store->OpenTable(schema);

  // Row 1 alone, and enough others that room has to be made for them.
  Batch batch;
  batch.keys = 2;
  batch.batch = kBags;
  batch.ids = Range(20000, 20000 + kBags);
  batch.ids.insert(batch.ids.begin(), 1);
  batch.lengths.assign(2 * kBags, 1);
  std::fill_n(batch.lengths.begin() + 1, kBags - 1, 0);
  const auto lookup =
      batch.lookup({{0, Pooling::kSum, UnseenRows::kInitial, 0, 0}, {0, Pooling::kSum, UnseenRows::kInitial, 1, kDim}});
  const std::vector<float> grad(kBags * 2 * kDim, 1);
  const GradientPart part{lookup.get(), grad.data(), 2 * kDim};
  // Row 2 is used again and again, so that it is kept in a part of the cache where row 1 will come back to: nothing has
  // moved there since the forward.
  for (int i = 0; i < 3; ++i) GetRows(store.get(), 0, {2});
  for (int64_t i = 30; i < 40; ++i) GetRows(store.get(), 0, Range(1000 * i, 1000 * (i + 1)));
  Forward(store.get(), lookup.get(), 2 * kDim);
  std::vector<Batch> others;
  for (int64_t i = 40; i < 46; ++i) others.push_back(BatchOf(Range(1000 * i, 1000 * (i + 1))));
  std::vector<std::unique_ptr<Lookup>> lookups;
  for (const Batch& other : others) {
    lookups.push_back(other.lookup(OneFeature(0)));
    Forward(store.get(), lookups.back().get(), kDim);
  }

  hold = true;
  const uint64_t before = store->row_counts().read;
  Prefetch(store.get(), 0, {1});
  ASSERT_EQ(store->row_counts().read, before + 1);
  gate.AwaitArrival();
  for (const auto& other : lookups) {
    const GradientPart of_other{other.get(), grad.data(), kDim};
    store->Backward({&of_other, 1}, 1, NonFinite::kRaise);
  }
  disk_full = true;
  ExpectError(ErrorCode::kOutOfSpace, {"full"}, [&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
  disk_full = caller_reads = false;
  {
    const std::jthread opener([&] {
      for (int i = 0; i < 1000000 && !caller_reads; ++i) std::this_thread::yield();
      for (int i = 0; i < 10000; ++i) std::this_thread::yield();  // time for a backward that does not wait
      gate.Open();
    });
    store->Backward({&part, 1}, 1, NonFinite::kRaise);
  }
  EXPECT_EQ(GetRows(store.get(), 0, {1}), std::vector<float>(kDim, 0));
  EXPECT_EQ(store->rows(0), 50000);
}

// ---- reads that fail

TEST(PrefetchFailureTest, IsTheForwardsToReport) {
  std::atomic<bool> broken = true;
  const auto before_read = [&] {
    if (broken) throw Error(ErrorCode::kCorruption, "a bad checksum");
  };
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 1000), 4, {}, testing::kRoomyCache, Hooked(before_read));
  store->OpenTable(PlainTable("other", 2, 4, 7));
  for (int round = 0; round < 3; ++round) {
    EXPECT_NO_THROW(Prefetch(store.get(), 0, Range(0, 1000)));
    ExpectError(ErrorCode::kCorruption, {"\"t_user\"", "a bad checksum"},
                [&] { GetRows(store.get(), 0, Range(500, 510)); });
    ExpectError(ErrorCode::kCorruption, {"\"t_user\"", "a bad checksum"}, [&] { Step(store.get(), 0, {0, 999}, 1); });
    EXPECT_EQ(store->table_stats(0).cached_rows, 0u);
  }
  broken = false;
  Prefetch(store.get(), 0, Range(0, 1000));
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 1000)), WeightsOfIds(Range(0, 1000)));
  EXPECT_EQ(store->rows(0), 1000);
  EXPECT_EQ(store->iter(0), 0u);
  EXPECT_EQ(store->row_counts().written, 0u);
}

TEST(PrefetchFailureTest, ThatIsOverWhenTheForwardComesIsNotSeen) {
  for (const bool out_of_memory : {false, true}) {
    std::atomic<bool> failed = false;
    const auto before_read = [&] {
      if (failed.exchange(true)) return;
      if (out_of_memory) throw std::bad_alloc();
      throw Error(ErrorCode::kIo, "the disk is on fire");
    };
    const std::unique_ptr<Store> store = OpenFilled(Range(0, 1000), 4, {}, testing::kRoomyCache, Hooked(before_read));
    Prefetch(store.get(), 0, Range(0, 1000));
    EXPECT_EQ(GetRows(store.get(), 0, Range(0, 1000)), WeightsOfIds(Range(0, 1000)));
    EXPECT_EQ(store->row_counts().read, 2000u);
  }
}

// One table's rows cannot be read, but the prefetch was for two.
TEST(PrefetchFailureTest, OfOneTableLosesNothingOfAnother) {
  std::atomic<bool> broken = false;
  std::atomic<int> reads = 0;
  const auto before_read = [&] {
    if (broken && ++reads == 2) throw Error(ErrorCode::kIo, "the disk is on fire");
  };
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 10), 4, {}, testing::kRoomyCache, Hooked(before_read));
  store->OpenTable(PlainTable("other", 2, 4, 7));
  Step(store.get(), 1, {1}, 1);
  broken = true;
  const Batch batch = {{1, 2, 1, 2}, {2, 2}, {}, false, 2, 1};
  const std::vector<Feature> features = {{0, Pooling::kSum, UnseenRows::kInitial, 0, 0},
                                         {1, Pooling::kSum, UnseenRows::kInitial, 1, 4}};
  store->Prefetch(batch.lookup(features).get());
  EXPECT_EQ(Forward(store.get(), batch.lookup(features).get(), 8), Weights({3, 13}));
  EXPECT_EQ(Contents(store.get(), 1).size(), 1u);
}

// ---- the end

TEST(PrefetchCloseTest, WaitsForTheReadUnderWayAndDropsTheOthers) {
  FirstRead first;
  std::atomic<int> reads = 0;
  const std::unique_ptr<Store> store =
      OpenFilled(Range(0, 1000), 4, {}, testing::kRoomyCache, Hooked([&] { ++reads, first(); }));
  for (int64_t i = 0; i < 10; ++i) Prefetch(store.get(), 0, Range(10 * i, 10 * (i + 1)));
  first.AwaitArrival();
  EXPECT_EQ(reads, 1) << "the test needs reads that have not begun";
  const std::jthread opener = first.LetGoInTheBackground(false);
  store->Close();
  ExpectError(ErrorCode::kClosed, {"closed"}, [&] { Prefetch(store.get(), 0, {1}); });
  store->Close();
}

TEST(PrefetchCloseTest, AStoreThatGoesDuringAReadWaitsForIt) {
  for (const bool fails : {false, true}) {
    FirstRead first;
    std::unique_ptr<Store> store = OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { first(); }));
    Prefetch(store.get(), 0, Range(0, 10));
    Prefetch(store.get(), 0, Range(5, 20));
    first.AwaitArrival();
    const std::jthread opener = first.LetGoInTheBackground(fails);
    store.reset();
  }
}

TEST(PrefetchForkTest, AChildCannotPrefetchAndTheParentGoesOn) {
  FirstRead first;
  const std::unique_ptr<Store> store = OpenFilled(Range(0, 20), 4, {}, testing::kRoomyCache, Hooked([&] { first(); }));
  Prefetch(store.get(), 0, Range(0, 10));
  first.AwaitArrival();
  const pid_t child = fork();
  if (child == 0) {
    const auto error = ErrorOf([&] { Prefetch(store.get(), 0, {15}); });
    store->Close();  // does nothing, and waits for nothing
    _exit(error && error->code() == ErrorCode::kClosed ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  const std::jthread opener = first.LetGoInTheBackground(false);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 20)), WeightsOfIds(Range(0, 20)));
}

// ---- several threads

class PrefetchThreadsTest : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Reads, PrefetchThreadsTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Wide" : "Narrow"; });

// One thread reads ahead, at random, while others train, delete and set rows, and the cache is too small. Now and then
// a read fails; who made the call makes it again.
TEST_P(PrefetchThreadsTest, NothingIsLost) {
  constexpr int kDim = 64;
  constexpr int64_t kShared = 15000, kOwn = 100000;
  constexpr int kRounds = 40;
  StoreOptions options;
  options.num_threads = 2;
  options.direct_io = GetParam();
  std::atomic<bool> trained = false;
  std::atomic<int> reads = 0;
  const auto before_read = [&] {
    std::this_thread::yield();
    if (!trained && ++reads % 101 == 0) throw Error(ErrorCode::kIo, "the disk is on fire");
  };
  const std::unique_ptr<Store> store = OpenFilled(Range(0, kShared), kDim, options, testing::kTightCache,
                                                  std::make_unique<HookedStore>(before_read, std::this_thread::yield));
  const auto random_ids = [](std::mt19937_64* random, size_t n) {
    std::vector<int64_t> ids(n);
    for (int64_t& id : ids) id = static_cast<int64_t>((*random)() % kShared);
    return ids;
  };
  std::vector<std::vector<int>> updates(2, std::vector<int>(kShared));
  std::vector<std::jthread> threads;
  for (int trainer = 0; trainer < 2; ++trainer) {
    threads.emplace_back([&, trainer] {
      std::mt19937_64 random(static_cast<uint64_t>(trainer));
      for (int round = 0; round < kRounds; ++round) {
        const std::vector<int64_t> ids = random_ids(&random, 600);
        while (ErrorOf([&] { Step(store.get(), 0, ids, 1); })) {
        }
        for (const int64_t id : ids) ++updates[static_cast<size_t>(trainer)][static_cast<size_t>(id)];
      }
    });
  }
  std::atomic<int> wrong = 0;
  threads.emplace_back([&] {  // rows that come and go
    const std::vector<int64_t> ids = Range(kOwn, kOwn + 300);
    for (int round = 1; round <= kRounds; ++round) {
      const std::vector<float> weights(ids.size() * kDim, static_cast<float>(round));
      while (ErrorOf([&] {
        store->Set(0, ids, weights.data());
        wrong += GetRows(store.get(), 0, ids) == weights ? 0 : 1;
        store->Delete(0, ids);
        wrong += GetRows(store.get(), 0, ids) == std::vector<float>(weights.size(), 0) ? 0 : 1;
      })) {
      }
    }
  });
  std::jthread prefetcher([&] {
    std::mt19937_64 random(10);
    while (!trained) {
      Prefetch(store.get(), 0, random_ids(&random, 400));
      Prefetch(store.get(), 0, Range(kOwn, kOwn + 300));
    }
  });
  threads.clear();
  trained = true;
  prefetcher.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(store->rows(0), kShared);
  const std::vector<float> rows = GetRows(store.get(), 0, Range(0, kShared));
  for (size_t id = 0; id < kShared; ++id) {
    const float expected = static_cast<float>(static_cast<int>(id) - updates[0][id] - updates[1][id]);
    ASSERT_EQ(rows[id * kDim], expected) << id;
    ASSERT_EQ(rows[id * kDim + kDim - 1], expected) << id;
  }
}

TEST(PrefetchThreadsTest, CloseEndsThemAll) {
  const auto yield = [] { std::this_thread::yield(); };
  const std::unique_ptr<Store> store =
      OpenFilled({}, 64, {}, testing::kTightCache, std::make_unique<HookedStore>(yield, yield));
  std::atomic<int> prefetches = 0, wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (int64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        const auto error = ErrorOf([&] {
          for (int64_t i = 0;; ++i, ++prefetches) {
            const std::vector<int64_t> ids = Range(1000 * ((i + 30 * t) % 90), 1000 * ((i + 30 * t) % 90) + 500);
            Prefetch(store.get(), 0, ids);
            if (t == 0) Step(store.get(), 0, ids, 1);
          }
        });
        wrong += error->code() == ErrorCode::kClosed ? 0 : 1;
      });
    }
    while (prefetches < 60) std::this_thread::yield();
    store->Close();
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace damo
