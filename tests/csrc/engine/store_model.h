// A training run that says what to do, and a store in maps and float64 that says what should come of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo::testing {

// The same batches and gradients for every store. Three tables; six features, not in the order of their keys, of which
// two share a key and four a table; a key that no feature uses; bags of no ids, of one id twice, and, weighted, with
// weights that cancel; a step in which all bags are empty.
class Training {
 public:
  static constexpr size_t kSteps = 10;

  explicit Training(OptimizerKind kind, bool weighted = false) {
    const char* const names[] = {"t0", "t1", "t2"};
    const int dims[] = {5, 16, 64};
    const Initializer initializers[] = {{Distribution::kUniform, 1, -0.1f, 0.1f, 0, 1},
                                        {Distribution::kNormal, 2, 0, 0.1f, 0, 1},
                                        {Distribution::kConstant, 3, 0.5f, 0, 0, 1}};
    for (size_t t = 0; t < 3; ++t) {
      TableSchema schema = PlainTable(names[t], static_cast<uint32_t>(30 - 10 * t), dims[t]);
      schema.initializer = initializers[t];
      schema.optimizer.kind = kind;
      schema.optimizer.lr = 0.05;
      schema.optimizer.weight_decay = 0.01;
      schemas.push_back(schema);
    }
    const auto add_feature = [&](uint16_t table, Pooling pooling, size_t key) {
      const UnseenRows unseen = key == 0 ? UnseenRows::kZeros : UnseenRows::kInitial;
      features.push_back({table, pooling, unseen, key, columns});
      columns += static_cast<size_t>(dims[table]);
    };
    add_feature(2, Pooling::kMean, 3);
    add_feature(0, Pooling::kSum, 4);
    add_feature(0, Pooling::kMean, 0);
    add_feature(1, Pooling::kSum, 0);
    add_feature(0, Pooling::kSum, 2);
    add_feature(0, Pooling::kMean, 4);
    std::mt19937_64 random(5);
    for (size_t step = 0; step < kSteps; ++step) {
      batches.push_back(RandomBatch(weighted, step == 4, &random));
      std::vector<float> grad(kBatch * columns);
      for (float& g : grad) g = std::normal_distribution<float>(0, 0.1f)(random);
      grads.push_back(grad);
    }
  }

  void OpenTables(Store* store) const {
    for (const TableSchema& schema : schemas) store->OpenTable(schema);
  }

  bool Backward(Store* store, size_t step, Lookup* lookup) const {
    const GradientPart part{lookup, grads[step].data(), columns};
    return store->Backward({&part, 1}, 1, NonFinite::kRaise);
  }

  // Each step's output.
  std::vector<std::vector<float>> Run(Store* store) const {
    std::vector<std::vector<float>> outputs;
    for (size_t step = 0; step < kSteps; ++step) {
      const std::unique_ptr<Lookup> lookup = batches[step].lookup(features);
      outputs.push_back(Forward(store, lookup.get(), columns));
      Backward(store, step, lookup.get());
    }
    return outputs;
  }

  std::vector<Table> AllContents(Store* store) const {
    std::vector<Table> contents;
    for (uint16_t table = 0; table < schemas.size(); ++table) contents.push_back(Contents(store, table));
    return contents;
  }

  std::vector<TableSchema> schemas;
  std::vector<Feature> features;
  size_t columns = 0;
  std::vector<Batch> batches;             // by step
  std::vector<std::vector<float>> grads;  // by step: (batch, columns)

 private:
  static constexpr size_t kBatch = 160;
  static constexpr size_t kKeys = 5;

  static int64_t RandomId(std::mt19937_64* random) {
    constexpr int64_t kExtremes[] = {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), 0, -1};
    switch ((*random)() % 16) {
      case 0:
        return kExtremes[(*random)() % 4];
      case 1:
        return static_cast<int64_t>((*random)());
      default:
        return static_cast<int64_t>((*random)() % 300) - 150;
    }
  }

  static Batch RandomBatch(bool weighted, bool empty, std::mt19937_64* random) {
    Batch b;
    b.weighted = weighted;
    b.keys = kKeys;
    b.batch = kBatch;
    std::uniform_real_distribution<float> weight(0.25, 2);
    for (size_t bag = 0; bag < kKeys * kBatch; ++bag) {
      b.lengths.push_back(empty ? 0 : static_cast<int64_t>((*random)() % 6));
      for (int64_t i = 0; i < b.lengths.back(); ++i) {
        b.ids.push_back(i == 1 && bag % 4 == 0 ? b.ids.back() : RandomId(random));
        b.weights.push_back(weight(*random));
      }
      if (b.lengths.back() == 2 && bag % 3 == 0) b.weights.back() = -b.weights[b.weights.size() - 2];
    }
    return b;
  }
};

class StoreModel {
 public:
  explicit StoreModel(std::vector<TableSchema> schemas)
      : schemas_(std::move(schemas)), rows_(schemas_.size()), iters_(schemas_.size()) {}

  const std::map<int64_t, ReferenceRow>& rows(uint16_t table) const { return rows_[table]; }
  uint32_t iter(uint16_t table) const { return iters_[table]; }

  // A row as it is, or would begin.
  ReferenceRow Row(uint16_t table, int64_t id) const {
    const auto row = rows_[table].find(id);
    if (row != rows_[table].end()) return row->second;
    const TableSchema& schema = schemas_[table];
    std::vector<float> initial(static_cast<size_t>(schema.dim));
    DrawRow(schema.initializer, id, schema.dim, initial.data());
    return {{initial.begin(), initial.end()},
            std::vector<double>(static_cast<size_t>(StateSize(schema.optimizer.kind, schema.dim)),
                                schema.optimizer.initial_accumulator_value),
            0,
            0};
  }

  // Its weights, or what training reads in their place.
  std::vector<double> Read(const Feature& feature, int64_t id) const {
    std::vector<double> weights = Row(feature.table, id).weights;
    if (feature.unseen == UnseenRows::kZeros && !rows_[feature.table].contains(id)) {
      std::fill(weights.begin(), weights.end(), 0);
    }
    return weights;
  }

  std::vector<double> Forward(const std::vector<Feature>& features, const Batch& b, size_t columns) const {
    std::vector<double> out(b.batch * columns, 0);
    for (const Feature& f : features) {
      ForEachId(f, b, [&](size_t bag, size_t i, double scale) {
        const std::vector<double> row = Read(f, b.ids[i]);
        for (size_t j = 0; j < row.size(); ++j) out[bag * columns + f.column + j] += scale * row[j];
      });
    }
    return out;
  }

  void Backward(const std::vector<Feature>& features, const Batch& b, std::span<const float> grad, size_t columns) {
    std::map<uint16_t, std::map<int64_t, std::vector<double>>> sums;
    for (const Feature& f : features) {
      const size_t dim = static_cast<size_t>(schemas_[f.table].dim);
      auto& of_table = sums[f.table];
      ForEachId(f, b, [&](size_t bag, size_t i, double scale) {
        std::vector<double>& sum = of_table[b.ids[i]];
        sum.resize(dim, 0);
        for (size_t j = 0; j < dim; ++j) sum[j] += scale * grad[bag * columns + f.column + j];
      });
    }
    for (const auto& [table, of_table] : sums) {
      ++iters_[table];
      for (const auto& [id, sum] : of_table) {
        ReferenceRow row = Row(table, id);
        ReferenceUpdate(schemas_[table].optimizer, iters_[table], sum, &row);
        rows_[table][id] = row;
      }
    }
  }

  // The gradient of what Forward gives with respect to the weights.
  std::vector<double> WeightGradient(const std::vector<Feature>& features, const Batch& b, std::span<const float> grad,
                                     size_t columns) const {
    std::vector<double> result(b.ids.size(), 0);
    for (const Feature& f : features) {
      ForEachBag(f, b, [&](size_t bag, size_t begin, size_t end, double total) {
        const auto dot = [&](size_t i) {
          const std::vector<double> row = Read(f, b.ids[i]);
          double sum = 0;
          for (size_t j = 0; j < row.size(); ++j) sum += row[j] * grad[bag * columns + f.column + j];
          return sum;
        };
        double mean = 0;
        for (size_t i = begin; i < end && f.pooling == Pooling::kMean; ++i) mean += b.weights[i] * dot(i) / total;
        for (size_t i = begin; i < end; ++i) {
          if (f.pooling == Pooling::kSum) result[i] += dot(i);
          if (f.pooling == Pooling::kMean && total != 0) result[i] += (dot(i) - mean) / total;
        }
      });
    }
    return result;
  }

 private:
  // Calls f(bag, first id, past the last id, sum of the weights).
  template <class F>
  static void ForEachBag(const Feature& feature, const Batch& b, F f) {
    size_t i = 0;
    for (size_t bag = 0; bag < feature.key * b.batch; ++bag) i += static_cast<size_t>(b.lengths[bag]);
    for (size_t bag = 0; bag < b.batch; ++bag) {
      const size_t begin = i;
      double total = 0;
      for (; i < begin + static_cast<size_t>(b.lengths[feature.key * b.batch + bag]); ++i) {
        total += b.weighted ? b.weights[i] : 1;
      }
      f(bag, begin, i, total);
    }
  }

  // Calls f(bag, position of the id, factor of its row).
  template <class F>
  static void ForEachId(const Feature& feature, const Batch& b, F f) {
    ForEachBag(feature, b, [&](size_t bag, size_t begin, size_t end, double total) {
      for (size_t i = begin; i < end; ++i) {
        const double weight = b.weighted ? b.weights[i] : 1;
        f(bag, i, feature.pooling == Pooling::kSum ? weight : total == 0 ? 0 : weight / total);
      }
    });
  }

  const std::vector<TableSchema> schemas_;
  std::vector<std::map<int64_t, ReferenceRow>> rows_;
  std::vector<uint32_t> iters_;
};

}  // namespace damo::testing
