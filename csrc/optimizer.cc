#include "optimizer.h"

#include <cmath>

namespace damo {
namespace {

// By squaring: multiplications alone give the same bits everywhere, which the C library's pow does not promise.
double Power(double base, uint32_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace

OptimizerStep MakeStep(const OptimizerConfig& c, uint32_t iter) {
  const double lr = c.lr / (1 + (iter - 1.0) * c.lr_decay);
  const bool decoupled = c.weight_decay_mode == WeightDecayMode::kDecoupled;
  const bool adam = c.kind == OptimizerKind::kAdam;
  OptimizerStep step;
  step.lr = static_cast<float>(lr);
  step.beta1 = static_cast<float>(c.beta1);
  step.beta2 = static_cast<float>(c.beta2);
  step.one_minus_beta1 = static_cast<float>(1 - c.beta1);
  step.one_minus_beta2 = static_cast<float>(1 - c.beta2);
  step.eps = static_cast<float>(c.eps);
  step.l2 = static_cast<float>(decoupled ? 0 : c.weight_decay);
  step.decay = static_cast<float>(decoupled ? 1 - lr * c.weight_decay : 1);
  const double bias1 = adam ? 1 - Power(c.beta1, iter) : 1;
  const double sqrt_bias2 = adam ? std::sqrt(1 - Power(c.beta2, iter)) : 1;
  step.step_size = static_cast<float>(lr / bias1 * (c.uncorrected_eps ? sqrt_bias2 : 1));
  step.inv_sqrt_bias2 = static_cast<float>(c.uncorrected_eps ? 1 : 1 / sqrt_bias2);
  return step;
}

int StateSize(OptimizerKind kind, int dim) {
  switch (kind) {
    case OptimizerKind::kSgd:
      return 0;
    case OptimizerKind::kAdagrad:
      return dim;
    case OptimizerKind::kRowWiseAdagrad:
      return 1;
    case OptimizerKind::kAdam:
      return 2 * dim;
  }
  return 0;
}

float InitialState(const OptimizerConfig& config) { return static_cast<float>(config.initial_accumulator_value); }

}  // namespace damo
