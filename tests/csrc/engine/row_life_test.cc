// Rows that die, and ids that have to be seen more than once, against a map from which the dead are deleted at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "engine/store_testing.h"
#include "life/table_life.h"
#include "row/ladder.h"
#include "storage_rocksdb/rocksdb_store.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

using testing::BatchOf;
using testing::OneFeature;
using testing::OpenStore;
using testing::PlainTable;

constexpr int kDim = 64;
constexpr int64_t kIds = 3000;

struct ModelRow {
  RowHeader header;
  float weight;
  bool operator==(const ModelRow& other) const {
    return header.last_step == other.header.last_step && header.count == other.header.count && weight == other.weight;
  }
};

// A table whose rows begin at 0 and lose 1 for each time that an update names them.
class Model {
 public:
  explicit Model(uint32_t sightings) : sightings_(sightings) {}

  void Step(const std::vector<int64_t>& ids) {
    ++iter;
    std::map<int64_t, uint32_t> occurrences;
    for (const int64_t id : ids) ++occurrences[id];
    for (const auto& [id, n] : occurrences) {
      if (!rows.contains(id) && sighted[id].count + n < sightings_) {
        sighted[id] = {iter, sighted[id].count + n};
        continue;
      }
      sighted.erase(id);
      ModelRow& row = rows.try_emplace(id, ModelRow{{0, 0}, 0}).first->second;
      row = {{iter, row.header.count + 1}, row.weight - static_cast<float>(n)};
    }
  }
  void Set(int64_t id, float weight) {
    sighted.erase(id);
    rows[id] = {{iter, 0}, weight};
  }
  void Delete(int64_t id) {
    sighted.erase(id);
    rows.erase(id);
  }
  void Sweep(const Ladder& ladder) {
    std::erase_if(rows, [&](const auto& row) { return ladder.IsDead(row.second.header, row.first); });
    std::erase_if(sighted, [&](const auto& seen) { return ladder.IsDeadSighting(seen.second); });
  }

  std::map<int64_t, ModelRow> rows;
  std::map<int64_t, RowHeader> sighted;
  uint32_t iter = 0;

 private:
  const uint32_t sightings_;
};

struct Case {
  std::string name;
  LifeOptions options;
  size_t cache_bytes;
  bool on_disk;
};

class RowLifeTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<RowStore> NewRows() {
    if (!GetParam().on_disk) return OpenMemoryStore();
    RocksDbOptions options;
    options.path = directory_ / "rows";
    options.create = true;
    options.memory_bytes = size_t{8} << 20;
    return OpenRocksDbStore(options);
  }

  std::vector<int64_t> SomeIds(size_t n) {
    std::vector<int64_t> ids;
    for (size_t i = 0; i < n; ++i) {
      const int64_t fresh = static_cast<int64_t>(random_() % kIds);
      ids.push_back(random_() % 3 == 0 ? fresh % 50 : fresh);
    }
    return ids;
  }

  void Check(Store* store, const Model& model) {
    const auto stats = store->life_stats(0);
    ASSERT_TRUE(stats);
    ASSERT_EQ(stats->rows, model.rows.size());
    ASSERT_EQ(stats->sighted, model.sighted.size());
    ASSERT_EQ(store->rows(0), static_cast<int64_t>(model.rows.size()));
    const std::vector<int64_t> ids = testing::Range(0, kIds);
    std::vector<RowHeader> headers(ids.size());
    std::vector<uint8_t> contains(ids.size());
    store->Describe(0, ids, nullptr, headers.data(), contains.data());
    const std::vector<float> weights = testing::GetRows(store, 0, ids, UnseenRows::kZeros);
    for (size_t id = 0; id < ids.size(); ++id) {
      const auto row = model.rows.find(ids[id]);
      ASSERT_EQ(contains[id], row != model.rows.end()) << id;
      const auto seen = model.sighted.find(ids[id]);
      const RowHeader expected = row != model.rows.end()       ? row->second.header
                                 : seen != model.sighted.end() ? seen->second
                                                               : RowHeader{};
      ASSERT_EQ(headers[id].last_step, expected.last_step) << id;
      ASSERT_EQ(headers[id].count, expected.count) << id;
      ASSERT_EQ(weights[id * kDim], row == model.rows.end() ? 0 : row->second.weight) << id;
    }
    ASSERT_EQ(testing::Contents(store, 0).size(), model.rows.size());
  }

  const testing::TemporaryDirectory directory_;
  std::mt19937_64 random_{7};
};

TEST_P(RowLifeTest, IsAsIfTheDeadWereDeletedAtOnce) {
  const std::unique_ptr<Store> store = OpenStore({.num_threads = 2}, GetParam().cache_bytes, NewRows());
  store->OpenTable(PlainTable("t", 1, kDim));
  store->SetLife(0, GetParam().options, 0);
  Model model(GetParam().options.sightings);
  int checkpoints = 0;
  for (int i = 0; i < 160; ++i) {
    const auto what = random_() % 20;
    if (what < 15) {
      const std::vector<int64_t> ids = SomeIds(1 + random_() % 300);
      const testing::Batch batch = BatchOf(ids);
      const auto lookup = batch.lookup(OneFeature(0));
      if (what % 3 == 0) store->Prefetch(batch.lookup(OneFeature(0)).get());
      testing::Step(store.get(), 0, ids, 1);
      model.Step(ids);
      model.Sweep(store->life_stats(0)->ladder);
      ASSERT_LE(model.rows.size(),
                std::max<size_t>(GetParam().options.max_rows, std::set(ids.begin(), ids.end()).size()));
    } else if (what == 15) {
      const std::vector<int64_t> ids = SomeIds(20);
      if (store->life_stats(0)->rows + 20 > GetParam().options.max_rows) continue;
      store->Set(0, ids, std::vector<float>(ids.size() * kDim, static_cast<float>(i)).data());
      for (const int64_t id : ids) model.Set(id, static_cast<float>(i));
    } else if (what == 16) {
      const std::vector<int64_t> ids = SomeIds(20);
      store->Delete(0, ids);
      for (const int64_t id : ids) model.Delete(id);
    } else if (what == 17) {
      store->BeginCheckpoint();
      testing::Step(store.get(), 0, {1, 2, 3}, 1);
      store->WriteCheckpoint(directory_ / std::to_string(checkpoints++), true);
      model.Step({1, 2, 3});
      model.Sweep(store->life_stats(0)->ladder);
    } else {
      Check(store.get(), model);
    }
    if (HasFatalFailure()) return;
  }
  Check(store.get(), model);
}

LifeOptions Options(uint32_t sightings, uint32_t idle, uint32_t rare, uint64_t max_rows, uint32_t credit) {
  LifeOptions options;
  options.sightings = sightings;
  options.within_steps = sightings > 1 ? 40 : 0;
  if (idle > 0) options.idle.push_back({idle, 0, 0});
  if (rare > 0) options.idle.push_back({rare, 0, 4});
  options.max_rows = max_rows;
  options.keep_rows = max_rows == kNoLimit ? kNoLimit : max_rows - max_rows / 16;
  options.credit = credit;
  return options;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const std::map<std::string, LifeOptions> options = {
      {"Idle", Options(1, 20, 0, kNoLimit, 0)},    {"Rare", Options(1, 60, 5, kNoLimit, 0)},
      {"Capped", Options(1, 0, 0, 900, 0)},        {"CappedByCredit", Options(1, 0, 0, 900, 10)},
      {"Admitted", Options(3, 0, 0, kNoLimit, 0)}, {"All", Options(2, 80, 10, 1200, 5)},
  };
  for (const auto& [name, of] : options) {
    for (const bool on_disk : {false, true}) {
      const std::string where = on_disk ? "OnDisk" : "InMemory";
      cases.push_back({name + where, of, testing::kRoomyCache, on_disk});
      cases.push_back({name + where + "Tight", of, size_t{13} << 18, on_disk});
    }
  }
  return cases;
}

// By the name `make sanitize` knows what RocksDB is in, which the thread sanitizer cannot see into.
INSTANTIATE_TEST_SUITE_P(, RowLifeTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name + (info.param.on_disk ? "RocksDb" : ""); });

}  // namespace
}  // namespace damo
