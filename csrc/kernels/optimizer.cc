#include "kernels/optimizer.h"

#include <string>

#include "base/status.h"
#include "kernels/optimizers/moments.h"

namespace damo {

void SetHyperparameter(OptimizerConfig* config, std::string_view name, double value) {
#define DAMO_SET(type, member, unused)         \
  if (name == #member) {                       \
    config->member = static_cast<type>(value); \
    return;                                    \
  }
  DAMO_HYPERPARAMETERS(DAMO_SET)
#undef DAMO_SET
  throw Error(ErrorCode::kInvalidArgument, "\"" + std::string(name) + "\" is no hyperparameter");
}

OptimizerStep MakeStep(const OptimizerConfig& config, uint32_t iter) {
  const double lr = config.lr / (1 + (iter - 1.0) * config.lr_decay);
  return {config, lr, CorrectBias({lr, config.beta1, config.beta2, config.uncorrected_eps}, iter)};
}

}  // namespace damo
