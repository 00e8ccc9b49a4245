// Which update rule a table uses and with what numbers. The rules themselves are in optimizers/, one file each.
#pragma once

#include <cstdint>
#include <limits>

namespace damo {

enum class OptimizerKind : uint8_t {
  kSgd,
  kMomentumSgd,
  kAdagrad,
  kRowWiseAdagrad,
  kAdam,
  kAmsGrad,
  kPartialRowWiseAdam,
  kLamb,
  kPartialRowWiseLamb,
  kLarsSgd,
  kFtrl,
  kLion
};
constexpr int kOptimizerKinds = 12;

enum class WeightDecayMode : uint8_t { kL2, kDecoupled };

// Hyperparameters, as torch.optim or the rule's paper name them. A rule ignores those it has no use for.
struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kSgd;
  WeightDecayMode weight_decay_mode = WeightDecayMode::kL2;
  double lr = 0.01;
  double lr_decay = 0;
  double momentum = 0;
  double dampening = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double initial_accumulator_value = 0;
  double eta = 0.001;  // LARS: the trust coefficient
  double beta = 1;     // FTRL
  double lambda1 = 0;  // FTRL
  double lambda2 = 0;  // FTRL
  bool nesterov = false;
  bool maximize = false;
  // Adam: eps is added to sqrt(v) before the bias correction, as torch.optim.SparseAdam does.
  bool uncorrected_eps = false;
  // Bias correction by how many updates a row has had, instead of the table's iteration.
  bool rowwise_bias_correction = false;
  // Of each row's gradient; infinite for none.
  double clip_value = std::numeric_limits<double>::infinity();
  double clip_norm = std::numeric_limits<double>::infinity();
};

// What makes up for moments that begin at zero, after t updates (Kingma, Ba 2015, section 3).
struct BiasCorrection {
  float step_size;       // lr / (1 - beta1^t)
  float inv_bias1;       // 1 / (1 - beta1^t)
  float inv_sqrt_bias2;  // 1 / sqrt(1 - beta2^t)
};

// What one update needs, worked out once per table and iteration: everything a row update reads is in float32, but for
// what a correction by a row's own count is made of.
struct OptimizerStep {
  float lr;
  float momentum;
  float one_minus_dampening;
  float beta1;
  float beta2;
  float one_minus_beta1;
  float one_minus_beta2;
  float eps;
  float weight_decay;
  float l2;     // added to the gradient, times the weight
  float decay;  // decoupled: the weight is multiplied by this first; 1 without decay
  float eta;
  float beta;
  float lambda1;
  float lambda2;
  bool nesterov;
  bool maximize;
  bool uncorrected_eps;
  bool rowwise_bias_correction;
  bool adjusts_gradient;  // maximize, or one of the following
  float clip_value;
  float clip_norm;
  double exact_lr;
  double exact_beta1;
  double exact_beta2;
  BiasCorrection bias;  // by the table's iteration
};

// REQUIRES: iter >= 1, the iteration that this update is.
OptimizerStep MakeStep(const OptimizerConfig& config, uint32_t iter);

// Number of float32 of state behind the weights of a row, and their initial value.
int StateSize(OptimizerKind kind, int dim);
float InitialState(const OptimizerConfig& config);

}  // namespace damo
