// Weight decay, as part of the gradient (L2) or apart from it (decoupled; Loshchilov, Hutter 2019): one of the two.
#pragma once

#include "kernels/optimizer.h"
#include "row/row.h"

namespace damo {

struct WeightDecay {
  float l2;     // added to the gradient, times the weight
  float decay;  // decoupled: the weight is multiplied by this first; 1 without decay
};

DAMO_INLINE WeightDecay MakeWeightDecay(const OptimizerStep& s) {
  const bool decoupled = s.config.weight_decay_mode == WeightDecayMode::kDecoupled;
  return {static_cast<float>(decoupled ? 0 : s.config.weight_decay),
          static_cast<float>(decoupled ? 1 - s.lr * s.config.weight_decay : 1)};
}

}  // namespace damo
