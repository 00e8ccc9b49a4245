// What a table's updates are made with: hyperparameters, and what comes of them at one iteration. The update rules
// themselves are in optimizers/, one file each; update_rules.h lists them.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

namespace damo {

enum class OptimizerKind : uint8_t;  // update_rules.h

enum class WeightDecayMode : uint8_t { kL2, kDecoupled };

// Hyperparameters, as torch.optim or the rule's paper name them: X(type, name, default). A rule ignores those it has no
// use for.
//   eta                      LARS: the trust coefficient
//   beta, lambda1, lambda2   FTRL
//   uncorrected_eps          Adam: eps is added to sqrt(v) before the bias correction, as torch.optim.SparseAdam does
//   rowwise_bias_correction  by how many updates a row has had, instead of the table's iteration
//   corrected_max            AMSGrad: the maximum is of corrected second moments
//   clip_value, clip_norm    limits of each row's gradient; infinite for none
#define DAMO_HYPERPARAMETERS(X)                                  \
  X(double, lr, 0.01)                                            \
  X(double, lr_decay, 0)                                         \
  X(double, momentum, 0)                                         \
  X(double, dampening, 0)                                        \
  X(double, beta1, 0.9)                                          \
  X(double, beta2, 0.999)                                        \
  X(double, eps, 1e-8)                                           \
  X(double, weight_decay, 0)                                     \
  X(double, initial_accumulator_value, 0)                        \
  X(double, eta, 0.001)                                          \
  X(double, beta, 1)                                             \
  X(double, lambda1, 0)                                          \
  X(double, lambda2, 0)                                          \
  X(bool, nesterov, false)                                       \
  X(bool, maximize, false)                                       \
  X(bool, uncorrected_eps, false)                                \
  X(bool, rowwise_bias_correction, false)                        \
  X(bool, corrected_max, false)                                  \
  X(double, clip_value, std::numeric_limits<double>::infinity()) \
  X(double, clip_norm, std::numeric_limits<double>::infinity())

struct OptimizerConfig {
  OptimizerKind kind{};  // the first of the list, SGD
  WeightDecayMode weight_decay_mode = WeightDecayMode::kL2;
#define DAMO_MEMBER(type, name, value) type name = value;
  DAMO_HYPERPARAMETERS(DAMO_MEMBER)
#undef DAMO_MEMBER
};

// Sets a hyperparameter by its name; of flags, any value but 0 is true. Throws kInvalidArgument for an unknown name.
void SetHyperparameter(OptimizerConfig* config, std::string_view name, double value);

// What makes up for moments that begin at zero, after t updates (Kingma, Ba 2015, section 3).
struct BiasCorrection {
  float step_size;       // lr / (1 - beta1^t)
  float inv_bias1;       // 1 / (1 - beta1^t)
  float inv_sqrt_bias2;  // 1 / sqrt(1 - beta2^t)
};

// One iteration of a table: what each rule makes its constants of.
struct OptimizerStep {
  OptimizerConfig config;
  double lr;            // with lr_decay
  BiasCorrection bias;  // by the table's iteration
};

// Parts of what rules say of themselves in StaysFinite.
inline bool DividesByEnough(const OptimizerStep& s) { return s.config.eps >= 0x1p-50; }
inline bool BetasAreBelowOne(const OptimizerStep& s) {
  return s.config.beta1 <= 1 - 0x1p-20 && s.config.beta2 <= 1 - 0x1p-20;
}

// REQUIRES: iter >= 1, the iteration that this update is.
OptimizerStep MakeStep(const OptimizerConfig& config, uint32_t iter);

}  // namespace damo
