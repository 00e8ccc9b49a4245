#include "kernels/optimizer.h"

#include <cmath>

#include "kernels/optimizers/bias_correction.h"

namespace damo {

OptimizerStep MakeStep(const OptimizerConfig& c, uint32_t iter) {
  const double lr = c.lr / (1 + (iter - 1.0) * c.lr_decay);
  const bool decoupled = c.weight_decay_mode == WeightDecayMode::kDecoupled;
  OptimizerStep step = {};
  step.lr = static_cast<float>(lr);
  step.momentum = static_cast<float>(c.momentum);
  step.one_minus_dampening = static_cast<float>(1 - c.dampening);
  step.beta1 = static_cast<float>(c.beta1);
  step.beta2 = static_cast<float>(c.beta2);
  step.one_minus_beta1 = static_cast<float>(1 - c.beta1);
  step.one_minus_beta2 = static_cast<float>(1 - c.beta2);
  step.eps = static_cast<float>(c.eps);
  step.weight_decay = static_cast<float>(c.weight_decay);
  step.l2 = static_cast<float>(decoupled ? 0 : c.weight_decay);
  step.decay = static_cast<float>(decoupled ? 1 - lr * c.weight_decay : 1);
  step.eta = static_cast<float>(c.eta);
  step.beta = static_cast<float>(c.beta);
  step.lambda1 = static_cast<float>(c.lambda1);
  step.lambda2 = static_cast<float>(c.lambda2);
  step.nesterov = c.nesterov;
  step.maximize = c.maximize;
  step.uncorrected_eps = c.uncorrected_eps;
  step.rowwise_bias_correction = c.rowwise_bias_correction;
  step.adjusts_gradient = c.maximize || std::isfinite(c.clip_value) || std::isfinite(c.clip_norm);
  step.clip_value = static_cast<float>(c.clip_value);
  step.clip_norm = static_cast<float>(c.clip_norm);
  step.exact_lr = lr;
  step.exact_beta1 = c.beta1;
  step.exact_beta2 = c.beta2;
  step.bias = CorrectBias(step, iter);
  return step;
}

int StateSize(OptimizerKind kind, int dim) {
  switch (kind) {
    case OptimizerKind::kSgd:
      return 0;
    case OptimizerKind::kRowWiseAdagrad:
      return 1;
    case OptimizerKind::kMomentumSgd:
    case OptimizerKind::kAdagrad:
    case OptimizerKind::kLarsSgd:
    case OptimizerKind::kLion:
      return dim;
    case OptimizerKind::kPartialRowWiseAdam:
    case OptimizerKind::kPartialRowWiseLamb:
      return dim + 1;
    case OptimizerKind::kAdam:
    case OptimizerKind::kLamb:
    case OptimizerKind::kFtrl:
      return 2 * dim;
    case OptimizerKind::kAmsGrad:
      return 3 * dim;
  }
  return 0;
}

float InitialState(const OptimizerConfig& config) { return static_cast<float>(config.initial_accumulator_value); }

}  // namespace damo
