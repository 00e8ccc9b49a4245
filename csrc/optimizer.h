// Which update rule a table uses and with what numbers. The rules themselves are in optimizers/, one file each.
#pragma once

#include <cstdint>

namespace damo {

enum class OptimizerKind : uint8_t { kSgd, kAdagrad, kRowWiseAdagrad, kAdam };
constexpr int kOptimizerKinds = 4;

enum class WeightDecayMode : uint8_t { kL2, kDecoupled };

// Hyperparameters, as torch.optim names them. A rule ignores those it has no use for.
struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kSgd;
  WeightDecayMode weight_decay_mode = WeightDecayMode::kL2;
  double lr = 0.01;
  double lr_decay = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double initial_accumulator_value = 0;
  // Adam: eps is added to sqrt(v) before the bias correction, as torch.optim.SparseAdam does.
  bool uncorrected_eps = false;
};

// What one update needs, worked out once per table and iteration: everything a row update reads is in float32.
struct OptimizerStep {
  float lr;
  float beta1;
  float beta2;
  float one_minus_beta1;
  float one_minus_beta2;
  float eps;
  float l2;              // added to the gradient, times the weight
  float decay;           // decoupled: the weight is multiplied by this first; 1 without decay
  float step_size;       // Adam: lr / (1 - beta1^t)
  float inv_sqrt_bias2;  // Adam: 1 / sqrt(1 - beta2^t)
};

// REQUIRES: iter >= 1, the iteration that this update is.
OptimizerStep MakeStep(const OptimizerConfig& config, uint32_t iter);

// Number of float32 of state behind the weights of a row, and their initial value.
int StateSize(OptimizerKind kind, int dim);
float InitialState(const OptimizerConfig& config);

}  // namespace damo
