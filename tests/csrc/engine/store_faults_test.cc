// A row store that fails leaves the store as it was, and a call that can be made again.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/store_model.h"
#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Batch;
using testing::BatchOf;
using testing::Contents;
using testing::ErrorOf;
using testing::ExpectError;
using testing::FailOnce;
using testing::Forward;
using testing::GetRows;
using testing::HookedStore;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;
using testing::Range;
using testing::Step;
using testing::Training;

// The same training with the n-th read or write failing, for ever larger n, while whatever fails is done again: no
// update may get lost or be applied twice.
class StoreFaultTest : public ::testing::TestWithParam<size_t> {
 protected:
  StoreFaultTest() {
    options_.num_threads = 2;
    options_.cache_bytes = GetParam();
  }

  // Makes the call until it does not fail with the injected error.
  static void Retry(const std::function<void()>& call) {
    while (const std::optional<Error> error = ErrorOf(call)) {
      ASSERT_EQ(error->code(), ErrorCode::kIo) << error->what();
      ASSERT_NE(std::string(error->what()).find("on fire"), std::string::npos) << error->what();
    }
  }

  void ExpectFaultsChangeNothing(const std::function<std::unique_ptr<RowStore>(FailOnce*)>& open) {
    const std::unique_ptr<Store> reference = OpenStore(options_);
    training_.OpenTables(reference.get());
    const std::vector<std::vector<float>> outputs = training_.Run(reference.get());
    const std::vector<testing::Table> contents = training_.AllContents(reference.get());
    int faults = 0;
    for (int n = 1;; n += 1 + n / 4, ++faults) {
      FailOnce failure;
      const std::unique_ptr<Store> store = OpenStore(options_, testing::kRoomyCache, open(&failure));
      training_.OpenTables(store.get());
      failure.Arm(n);
      for (size_t step = 0; step < Training::kSteps; ++step) {
        const auto lookup = training_.batches[step].lookup(training_.features);
        std::vector<float> output;
        Retry([&] { output = Forward(store.get(), lookup.get(), training_.columns); });
        ASSERT_TRUE(output == outputs[step]) << "fault " << n << ", step " << step;
        Retry([&] { training_.Backward(store.get(), step, lookup.get()); });
      }
      Retry([&] { store->Flush(); });
      ASSERT_TRUE(training_.AllContents(store.get()) == contents) << "fault " << n;
      for (uint16_t table = 0; table < 3; ++table) {
        ASSERT_EQ(store->rows(table), reference->rows(table)) << "fault " << n;
        ASSERT_EQ(store->iter(table), reference->iter(table)) << "fault " << n;
      }
      if (!failure.Fired()) break;
    }
    EXPECT_GT(faults, 0) << "nothing failed";
  }

  StoreOptions options_;
  const Training training_{OptimizerKind::kRowWiseAdagrad};
};

INSTANTIATE_TEST_SUITE_P(Caches, StoreFaultTest, ::testing::Values(0, 1),
                         [](const auto& info) { return "Bytes" + std::to_string(info.param); });

TEST_P(StoreFaultTest, AFailedReadLeavesACallThatCanBeRepeated) {
  ExpectFaultsChangeNothing(
      [](FailOnce* failure) { return std::make_unique<HookedStore>([failure] { (*failure)(); }); });
}

TEST_P(StoreFaultTest, AFailedWriteLeavesACallThatCanBeRepeated) {
  ExpectFaultsChangeNothing(
      [](FailOnce* failure) { return std::make_unique<HookedStore>([] {}, [failure] { (*failure)(); }); });
}

// A cache that is truly full: evictions in the midst of forwards and backwards have to write.
TEST(StoreFullCacheTest, AFailedWriteLeavesACallThatCanBeRepeated) {
  constexpr size_t kDim = 64;
  int faults = 0;
  for (int n = 1;; n += 1 + n / 2, ++faults) {
    FailOnce failure;
    const std::thread::id caller = std::this_thread::get_id();
    // Only those writes that the caller waits for.
    const auto fail = [&] {
      if (std::this_thread::get_id() == caller) failure();
    };
    const std::unique_ptr<Store> store =
        OpenStore({}, testing::kTightCache, std::make_unique<HookedStore>([] {}, fail));
    store->OpenTable(PlainTable("t", 1, kDim));
    failure.Arm(n);
    int errors = 0;
    const auto retry = [&](const std::function<void()>& call) {
      while (ErrorOf(call)) ++errors;
    };
    for (int64_t i = 0; i < 16; ++i) {
      const Batch a = BatchOf(Range(1500 * i, 1500 * i + 2500)), b = BatchOf(Range(1500 * i + 2500, 1500 * i + 5000));
      const auto lookup_a = a.lookup(OneFeature(0)), lookup_b = b.lookup(OneFeature(0));
      retry([&] { Forward(store.get(), lookup_a.get(), kDim); });
      retry([&] { Forward(store.get(), lookup_b.get(), kDim); });  // evicts much of the other
      const std::vector<float> grad(2500 * kDim, 1);
      for (Lookup* lookup : {lookup_a.get(), lookup_b.get()}) {
        const GradientPart part{lookup, grad.data(), kDim};
        retry([&] { store->Backward({&part, 1}, 1, NonFinite::kRaise); });
      }
    }
    retry([&] { store->Flush(); });
    EXPECT_EQ(errors, failure.Fired() ? 1 : 0);
    const int64_t end = 1500 * 15 + 5000;
    ASSERT_EQ(store->rows(0), end);
    for (int64_t id = 0; id < end; id += 500) {
      float expected = 0;
      for (int64_t i = 0; i < 16; ++i) expected -= 1500 * i <= id && id < 1500 * i + 5000 ? 1 : 0;
      ASSERT_EQ(GetRows(store.get(), 0, {id})[0], expected) << "id " << id << ", fault " << n;
    }
    if (!failure.Fired()) break;
  }
  EXPECT_GT(faults, 0) << "nothing failed";
}

TEST(StoreFullCacheTest, FailuresInTheBackgroundLoseNothing) {
  std::atomic<int> failures = 0;
  std::atomic<bool> healed = false;
  const std::thread::id caller = std::this_thread::get_id();
  const auto fail = [&] {
    if (healed || std::this_thread::get_id() == caller) return;
    if (++failures % 2) throw Error(ErrorCode::kOutOfSpace, "full");
    throw std::bad_alloc();
  };
  const std::unique_ptr<Store> store = OpenStore({}, testing::kTightCache, std::make_unique<HookedStore>([] {}, fail));
  store->OpenTable(PlainTable("t", 1, 64));
  for (int64_t i = 0; i < 40; ++i) {
    if (i == 30) healed = true;
    Step(store.get(), 0, Range(1000 * i, 1000 * i + 3000), 1);
  }
  EXPECT_GT(failures, 0);
  const std::vector<float> rows = GetRows(store.get(), 0, Range(20000, 23000));
  for (const float weight : rows) ASSERT_EQ(weight, -3);
  ASSERT_EQ(Contents(store.get(), 0).size(), 42000u);
  for (int64_t id = 3000; id < 39000; id += 250) ASSERT_EQ(GetRows(store.get(), 0, {id})[0], -3) << id;
}

TEST(StoreFullCacheTest, AFailedDeleteDeletesNothing) {
  FailOnce failure;
  const std::unique_ptr<Store> store =
      OpenStore({}, testing::kRoomyCache, std::make_unique<HookedStore>([] {}, [&] { failure(); }));
  store->OpenTable(PlainTable("t", 1, 1));
  Step(store.get(), 0, Range(0, 10), 1);
  failure.Arm(1);
  ExpectError(ErrorCode::kIo, {"on fire"}, [&] { store->Delete(0, Range(0, 5)); });
  EXPECT_EQ(store->rows(0), 10);
  EXPECT_EQ(GetRows(store.get(), 0, Range(0, 10)), std::vector<float>(10, -1));
  store->Delete(0, Range(0, 5));
  EXPECT_EQ(Contents(store.get(), 0).size(), 5u);
}

TEST(StoreFullCacheTest, AnErrorOfAReadNamesTheTable) {
  FailOnce failure;
  const std::unique_ptr<Store> store =
      OpenStore({}, testing::kRoomyCache, std::make_unique<HookedStore>([&] { failure(); }));
  store->OpenTable(PlainTable("t_user", 1, 1));
  failure.Arm(1);
  ExpectError(ErrorCode::kIo, {"t_user", "on fire"}, [&] { GetRows(store.get(), 0, {1}); });
}

}  // namespace
}  // namespace damo
