// What the tests of prefetches share: a store that has rows on disk and none in memory, and reads that are held up.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo::testing {

// Writes the rows `ids` of table 1, "t_user": every weight of row i is i. Returns the table's schema.
inline TableSchema FillTable(RowStore* rows, const std::vector<int64_t>& ids, int dim) {
  Changes payloads;
  for (const int64_t id : ids) {
    const std::vector<float> weights(static_cast<size_t>(dim), static_cast<float>(id));
    payloads[id].emplace(reinterpret_cast<const char*>(weights.data()), weights.size() * sizeof(float));
    payloads[id]->append(2 * sizeof(uint32_t), '\0');
  }
  TableSchema schema = PlainTable("t_user", 1, dim);
  schema.rows = static_cast<int64_t>(ids.size());
  Write(rows, schema.number, payloads);
  return schema;
}

// A store with that table, and nothing in its cache.
inline std::unique_ptr<Store> OpenFilled(const std::vector<int64_t>& ids, int dim = 4, const StoreOptions& options = {},
                                         size_t cache_bytes = kRoomyCache,
                                         std::unique_ptr<RowStore> rows = OpenMemoryStore()) {
  const TableSchema schema = FillTable(rows.get(), ids, dim);
  std::unique_ptr<Store> store = OpenStore(options, cache_bytes, std::move(rows));
  store->OpenTable(schema);
  return store;
}

// Weights that are the same in every column, by row.
inline std::vector<float> Weights(const std::vector<float>& of_rows, int dim = 4) {
  std::vector<float> weights;
  for (const float weight : of_rows) weights.insert(weights.end(), static_cast<size_t>(dim), weight);
  return weights;
}
inline std::vector<float> WeightsOfIds(const std::vector<int64_t>& ids, int dim = 4) {
  return Weights({ids.begin(), ids.end()}, dim);
}

// A prefetch of one table with one id in each bag.
inline void Prefetch(Store* store, uint16_t table, const std::vector<int64_t>& ids) {
  const Batch batch = BatchOf(ids);
  store->Prefetch(batch.lookup(OneFeature(table)).get());
}

// The backward of a lookup, in which every element of the output has the gradient `grad`.
inline void Backward(Store* store, Lookup* lookup, float grad, size_t columns = 4) {
  const std::vector<float> grads(lookup->batch.batch * columns, grad);
  const GradientPart part{lookup, grads.data(), columns};
  store->Backward({&part, 1}, 1, NonFinite::kRaise);
}

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

inline std::unique_ptr<RowStore> Hooked(HookedStore::Hook before_read) {
  return std::make_unique<HookedStore>(std::move(before_read));
}

}  // namespace damo::testing
