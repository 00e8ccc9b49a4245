// What the tests of the store share: batches, and a row store that fails, blocks or counts on request.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/store.h"
#include "kernels/kernels_testing.h"
#include "storage/memory_store.h"
#include "storage/row_store.h"
#include "storage/row_store_testing.h"
#include "testing/gate.h"

namespace damo::testing {

// A batch that owns its arrays.
struct Batch {
  std::vector<int64_t> ids;
  std::vector<int64_t> lengths;
  std::vector<float> weights;
  bool weighted = false;
  size_t keys = 1;
  size_t batch = 0;

  JaggedBatch view() const {
    return {ids.data(), lengths.data(), weighted ? weights.data() : nullptr, ids.size(), keys, batch};
  }
  std::unique_ptr<Lookup> lookup(const std::vector<Feature>& features) const { return MakeLookup(features, view()); }
};

// One id in each bag.
inline Batch BatchOf(const std::vector<int64_t>& ids) {
  return {ids, std::vector<int64_t>(ids.size(), 1), {}, false, 1, ids.size()};
}

// One key into one table.
inline std::vector<Feature> OneFeature(uint16_t table, UnseenRows unseen = UnseenRows::kInitial) {
  return {{table, Pooling::kSum, unseen, 0, 0}};
}

inline std::vector<float> Forward(Store* store, Lookup* lookup, size_t columns) {
  std::vector<float> out(lookup->batch.batch * columns, -77);
  store->Forward(lookup, out.data(), columns);
  return out;
}

// A training step of one table with one id in each bag, the gradient of every element being `grad`.
inline void Step(Store* store, uint16_t table, const std::vector<int64_t>& ids, float grad) {
  const Batch batch = BatchOf(ids);
  const std::unique_ptr<Lookup> lookup = batch.lookup(OneFeature(table));
  const size_t dim = static_cast<size_t>(store->layout(table).dim);
  Forward(store, lookup.get(), dim);
  const std::vector<float> grads(ids.size() * dim, grad);
  const GradientPart part{lookup.get(), grads.data(), dim};
  store->Backward({&part, 1}, 1, NonFinite::kRaise);
}

inline std::vector<float> GetRows(Store* store, uint16_t table, const std::vector<int64_t>& ids,
                                  UnseenRows unseen = UnseenRows::kInitial) {
  std::vector<float> weights(ids.size() * static_cast<size_t>(store->layout(table).dim));
  store->Get(table, ids, unseen, weights.data());
  return weights;
}

inline std::vector<int64_t> Range(int64_t begin, int64_t end) {
  std::vector<int64_t> ids;
  for (int64_t id = begin; id < end; ++id) ids.push_back(id);
  return ids;
}

// All payloads of a table. Writes what is dirty.
inline Table Contents(Store* store, uint16_t table) {
  return ReadAll(store->Scan(table).get(), store->layout(table).payload_size());
}

// Calls what it was given before each read and each write, in the thread that reads or writes.
class HookedStore : public RowStore {
 public:
  using Hook = std::function<void()>;

  explicit HookedStore(
      Hook before_read, Hook before_write = [] {})
      : before_read_(std::move(before_read)), before_write_(std::move(before_write)) {}

  void MultiGet(uint32_t table, std::span<const int64_t> ids, size_t payload_size, char* const* dst,
                Found* found) override {
    before_read_();
    rows_->MultiGet(table, ids, payload_size, dst, found);
  }
  void Write(std::span<const RowWrite> rows) override {
    before_write_();
    rows_->Write(rows);
  }
  void DeleteTable(uint32_t table) override {
    before_write_();
    rows_->DeleteTable(table);
  }
  std::unique_ptr<RowStoreSnapshot> TakeSnapshot(std::span<const uint32_t> tables) override {
    return rows_->TakeSnapshot(tables);
  }
  bool Checkpoint(const std::string& path, bool link) override { return rows_->Checkpoint(path, link); }
  void AddToJournal(std::span<const RowWrite> rows) override {
    before_write_();
    rows_->AddToJournal(rows);
  }
  void ClearJournal() override { rows_->ClearJournal(); }
  JournalSize journal_size() const override { return rows_->journal_size(); }
  RowStoreStats Stats() const override { return rows_->Stats(); }
  void Close() override { rows_->Close(); }

 private:
  const std::unique_ptr<RowStore> rows_ = OpenMemoryStore();
  const Hook before_read_;
  const Hook before_write_;
};

// A hook that throws kIo at the n-th call after Arm(n), and then no more.
class FailOnce {
 public:
  void Arm(int n) { calls_left_ = n; }
  // Whether a call has failed since.
  bool Fired() const { return calls_left_ <= 0; }
  void operator()() {
    if (calls_left_.load() > 0 && calls_left_.fetch_sub(1) == 1) throw Error(ErrorCode::kIo, "the disk is on fire");
  }

 private:
  std::atomic<int> calls_left_{0};
};

// The shares of the least budget, with `cache_bytes` for the cache.
inline BudgetShares SharesWithCache(size_t cache_bytes) {
  BudgetShares shares = DivideBudget(size_t{64} << 20);
  shares.cache = cache_bytes;
  return shares;
}

constexpr size_t kRoomyCache = size_t{8} << 20;
// Eleven segments for rows: with rows of 64 floats, some 10,000.
constexpr size_t kTightCache = size_t{3} << 20;

inline std::unique_ptr<Store> OpenStore(const StoreOptions& options = {}, size_t cache_bytes = kRoomyCache,
                                        std::unique_ptr<RowStore> rows = OpenMemoryStore()) {
  return std::make_unique<Store>(std::move(rows), SharesWithCache(cache_bytes), options);
}

// A table with SGD of learning rate 1 whose rows begin at `initial`: gradients of whole numbers leave whole numbers.
inline TableSchema PlainTable(const std::string& name, uint32_t number, int dim, float initial = 0) {
  TableSchema schema;
  schema.name = name;
  schema.number = number;
  schema.dim = dim;
  schema.initializer.a = initial;
  schema.optimizer.lr = 1;
  return schema;
}

}  // namespace damo::testing
