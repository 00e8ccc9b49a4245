// When a RowStore is told which rows have died: as soon as no checkpoint needs them.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "engine/store_testing.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

using testing::OpenStore;
using testing::PlainTable;
using testing::Step;

// Notes the position below which rows of one update are dead.
class TellingStore : public testing::HookedStore {
 public:
  explicit TellingStore(Position* dead_below) : HookedStore([] {}), dead_below_(dead_below) {}
  void SetReclaimable(uint32_t, const Reclaimable& reclaimable) noexcept override {
    *dead_below_ = reclaimable.ladder.position(1);
  }

 private:
  Position* const dead_below_;
};

TEST(Reclaimable, IsWhatHasDiedUnlessACheckpointNeedsIt) {
  const testing::TemporaryDirectory directory;
  Position dead_below = 0;
  const auto store = OpenStore({}, testing::kRoomyCache, std::make_unique<TellingStore>(&dead_below));
  store->OpenTable(PlainTable("t", 1, 4));
  LifeOptions options;
  options.idle.push_back({2, 0, 0});
  store->SetLife(0, options, 0);
  const auto ladder = [&] { return store->life_stats(0)->ladder.position(1); };
  for (int64_t i = 0; i < 6; ++i) Step(store.get(), 0, {i}, 1);
  EXPECT_GT(ladder(), 0u);
  EXPECT_EQ(dead_below, ladder());

  const Position before = dead_below;
  store->BeginCheckpoint();
  for (int64_t i = 6; i < 9; ++i) Step(store.get(), 0, {i}, 1);
  EXPECT_GT(ladder(), before);
  EXPECT_EQ(dead_below, before);
  store->WriteCheckpoint(directory / "checkpoint", false);
  EXPECT_EQ(dead_below, ladder());

  store->BeginCheckpoint();
  for (int64_t i = 9; i < 12; ++i) Step(store.get(), 0, {i}, 1);
  EXPECT_LT(dead_below, ladder());
  store->AbandonCheckpoint();
  EXPECT_EQ(dead_below, ladder());
}

}  // namespace
}  // namespace damo
