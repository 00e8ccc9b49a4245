// Stochastic gradient descent: G = g + l2 * w, w <- decay * w - lr * G (torch.optim.SGD without momentum).
// No state.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct Sgd {
  static constexpr const char* kName = "SGD";

  DAMO_INLINE int StateSize(int) { return 0; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep&) { return true; }

  struct Step : WeightDecay {
    float lr;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) { return {MakeWeightDecay(s), static_cast<float>(s.lr)}; }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t, float* __restrict w, float* __restrict,
                          const float* __restrict g) {
    for (int j = 0; j < dim; ++j) w[j] = s.decay * w[j] - s.lr * (g[j] + s.l2 * w[j]);
  }
};

}  // namespace damo
