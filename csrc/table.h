// A table of a store: its schema, fixed when the store first sees it, and what changes from step to step.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "initializer.h"
#include "optimizer.h"
#include "row.h"

namespace damo {

struct TableSchema {
  std::string name;
  uint32_t number = 0;  // on disk; never used again for another table
  int dim = 0;
  Initializer initializer;
  OptimizerConfig optimizer;  // its kind is part of the schema, its numbers may change between steps
  uint32_t iter = 0;          // applied updates so far
  int64_t rows = 0;
};

struct Table {
  explicit Table(const TableSchema& s) : schema(s), layout{s.dim, StateSize(s.optimizer.kind, s.dim)} {}

  TableSchema schema;
  RowLayout layout;
  std::atomic<uint64_t> hits{0};    // occurrences of ids in forwards that found their row in the cache
  std::atomic<uint64_t> misses{0};  // and that did not

  // A row's payload before its first update; every element of its state is `state`.
  void DrawPayload(void (*draw_row)(const Initializer&, int64_t, int, float*), int64_t id, float state,
                   char* row) const {
    float* weights = RowWeights(row);
    draw_row(schema.initializer, id, layout.dim, weights);
    for (int j = 0; j < layout.state_size; ++j) weights[layout.dim + j] = state;
    uint32_t* counters = RowCounters(row, layout.dim, layout.state_size);
    counters[0] = counters[1] = 0;
  }
};

}  // namespace damo
