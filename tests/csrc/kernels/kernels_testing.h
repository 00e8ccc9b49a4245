// What the tests of kernels and optimizers share: rows in memory, and update rules in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/optimizer.h"
#include "row/row.h"
#include "testing/errors.h"

namespace damo::testing {

// The instruction sets that this machine has, "plain" among them.
inline std::vector<std::string> InstructionSets() {
  std::vector<std::string> names;
  for (const char* name : {"plain", "avx2", "avx512", "neon", "sve"}) {
    if (!ErrorOf([&] { SelectKernels(name); })) names.push_back(name);
  }
  return names;
}

// A number of either sign, of magnitudes over six orders.
inline float RandomFloat(std::mt19937_64* random) {
  const float magnitude = std::exp2(std::uniform_real_distribution<float>(-10, 10)(*random));
  return (*random)() % 2 ? magnitude : -magnitude;
}

inline std::vector<float> RandomFloats(std::mt19937_64* random, size_t n) {
  std::vector<float> values(n);
  for (float& value : values) value = RandomFloat(random);
  return values;
}

// Rows of one layout, as a cache would hold them, with every byte zero.
class RowBlock {
 public:
  RowBlock(const RowLayout& layout, size_t rows)
      : layout_(layout), stride_((layout.row_size() + 7) / 8), units_(kFirst + stride_ * rows) {}

  Arena arena() { return {reinterpret_cast<char*>(units_.data()), 3}; }
  Slot slot(size_t i) const { return static_cast<Slot>(kFirst + stride_ * i); }
  char* row(size_t i) { return RowAt(arena(), slot(i)); }
  float* weights(size_t i) { return RowWeights(row(i)); }
  float* state(size_t i) { return RowState(row(i), layout_); }
  RowHeader* header(size_t i) { return HeaderOf(row(i), layout_); }

  friend bool operator==(const RowBlock& a, const RowBlock& b) { return a.units_ == b.units_; }

 private:
  static constexpr size_t kFirst = 2;

  RowLayout layout_;
  size_t stride_;  // in units of 8 bytes
  std::vector<uint64_t> units_;
};

// A row in float64.
struct ReferenceRow {
  std::vector<double> weights;
  std::vector<double> state;
  uint32_t last_step = 0;
  uint32_t count = 0;
};

// One update by the formulas of torch.optim's documentation, and FBGEMM's for row-wise Adagrad.
inline void ReferenceUpdate(const OptimizerConfig& c, uint32_t iter, std::vector<double> grad, ReferenceRow* row) {
  const size_t dim = grad.size();
  const double lr = c.lr / (1 + (static_cast<double>(iter) - 1) * c.lr_decay);
  std::vector<double>& w = row->weights;
  std::vector<double>& s = row->state;
  for (size_t j = 0; j < dim; ++j) {
    if (c.weight_decay_mode == WeightDecayMode::kL2) grad[j] += c.weight_decay * w[j];
    if (c.weight_decay_mode == WeightDecayMode::kDecoupled) w[j] -= lr * c.weight_decay * w[j];
  }
  double mean_square = 0;
  for (const double g : grad) mean_square += g * g / static_cast<double>(dim);
  if (c.kind == OptimizerKind::kRowWiseAdagrad) s[0] += mean_square;
  for (size_t j = 0; j < dim; ++j) {
    switch (c.kind) {
      case OptimizerKind::kSgd:
        w[j] -= lr * grad[j];
        break;
      case OptimizerKind::kAdagrad:
        s[j] += grad[j] * grad[j];
        w[j] -= lr * grad[j] / (std::sqrt(s[j]) + c.eps);
        break;
      case OptimizerKind::kRowWiseAdagrad:
        w[j] -= lr * grad[j] / (std::sqrt(s[0]) + c.eps);
        break;
      case OptimizerKind::kAdam: {
        double& m = s[j];
        double& v = s[dim + j];
        m = c.beta1 * m + (1 - c.beta1) * grad[j];
        v = c.beta2 * v + (1 - c.beta2) * grad[j] * grad[j];
        const double bias1 = 1 - std::pow(c.beta1, iter), bias2 = 1 - std::pow(c.beta2, iter);
        w[j] -= c.uncorrected_eps ? lr * std::sqrt(bias2) / bias1 * m / (std::sqrt(v) + c.eps)
                                  : lr * (m / bias1) / (std::sqrt(v / bias2) + c.eps);
        break;
      }
      default:
        throw std::logic_error("this rule is tested from Python");
    }
  }
  row->last_step = iter;
  ++row->count;
}

}  // namespace damo::testing
