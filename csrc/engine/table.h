// A table of a store: its schema, fixed when the store first sees it, and what changes from step to step.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/update_rules.h"
#include "life/table_life.h"
#include "row/initializer.h"
#include "row/row.h"
#include "row/row_bounds.h"

namespace damo {

struct TableSchema {
  std::string name;
  uint32_t number = 0;  // on disk; never used again for another table
  int dim = 0;
  WeightType weight_type = WeightType::kFloat32;
  Initializer initializer;
  OptimizerConfig optimizer;  // its kind is part of the schema, its numbers may change between steps
  uint32_t iter = 0;          // applied updates so far
  int64_t rows = 0;

  // Throws kInvalidArgument for a dim that sizes are not computed for.
  RowLayout layout() const {
    if (dim < 1 || dim > kMostDim) {
      throw Error(ErrorCode::kInvalidArgument,
                  "dim must be in 1.." + std::to_string(kMostDim) + ", got " + std::to_string(dim));
    }
    return {dim, StateSize(optimizer.kind, dim), weight_type};
  }
};

// What rows are looked up for.
enum class LookupUse : uint8_t { kTraining, kEvaluation, kById };
constexpr size_t kLookupUses = 3;

// Occurrences of ids in lookups, by where their rows were.
struct LookupCounts {
  std::atomic<uint64_t> hits{0};        // in the cache
  std::atomic<uint64_t> prefetched{0};  // there, or on its way, for a prefetch: at its first use
  std::atomic<uint64_t> late{0};        // of these, on its way
  std::atomic<uint64_t> misses{0};      // neither
};

// RowBounds that several threads raise.
class SharedRowBounds {
 public:
  RowBounds get() const { return {weights_.load(std::memory_order_relaxed), state_.load(std::memory_order_relaxed)}; }
  void Add(const RowBounds& bounds) {
    Raise(&weights_, bounds.weights);
    Raise(&state_, bounds.state);
  }

 private:
  static void Raise(std::atomic<uint32_t>* to, uint32_t value) {
    uint32_t now = to->load(std::memory_order_relaxed);
    while (now < value && !to->compare_exchange_weak(now, value, std::memory_order_relaxed)) {
    }
  }

  std::atomic<uint32_t> weights_{0};
  std::atomic<uint32_t> state_{0};
};

// The mean of a table's rows, [dim]; zeros of a table without any.
using MeanRow = std::shared_ptr<const std::vector<float>>;

// What a table's rows are at a moment: while it stays the same, so do they.
struct RowsVersion {
  uint32_t iter;
  int64_t rows;
  uint64_t writes;
  bool operator==(const RowsVersion&) const = default;
};

struct Table {
  explicit Table(const TableSchema& s) : schema(s), layout(s.layout()) {}

  TableSchema schema;
  RowLayout layout;
  bool dropped = false;  // its rows are gone, and nobody may ask for them
  std::array<LookupCounts, kLookupUses> lookups;
  std::unique_ptr<TableLife> life;  // or nullptr: its rows live until they are deleted
  std::optional<Ladder> followed;   // in the place of a life: that of another store, whose rows the table gets

  Ladder reclaimable;  // that the RowStore knows of

  // Of every row that has come into the cache or changed there.
  SharedRowBounds bounds;

  // By which rows that are stored, or in memory, are none; nullptr if all live.
  const Ladder* ladder() const {
    if (life != nullptr) return &life->ladder();
    return followed ? &*followed : nullptr;
  }
  // Whether a row that is stored, or in memory, is none: the ladder has risen above it.
  bool IsDead(RowHeader row, int64_t id) const { return ladder() != nullptr && ladder()->IsDead(row, id); }
  uint64_t writes = 0;  // calls that changed rows by their ids
  RowsVersion version() const { return {schema.iter, schema.rows, writes}; }
  // The last mean that was asked for, and the rows that it is of.
  MeanRow mean;
  RowsVersion mean_of{};

  // A row's payload before its first update; every element of its state is `state`.
  void DrawPayload(void (*draw_row)(const Initializer&, int64_t, int, float*), int64_t id, float state,
                   char* row) const {
    if (layout.weight_type == WeightType::kFloat32) {
      draw_row(schema.initializer, id, layout.dim, RowWeights(row));
    } else {
      std::vector<float> weights(static_cast<size_t>(layout.dim));
      draw_row(schema.initializer, id, layout.dim, weights.data());
      EncodeWeights(layout.weight_type, layout.dim, weights.data(), row + kPayloadOffset);
    }
    std::fill_n(RowState(row, layout), layout.state_size, state);
    *HeaderOf(row, layout) = {.last_step = 0, .count = 0};
  }
};

}  // namespace damo
