// Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, program 1):
//   G = g + l2 * w
//   w <- decay * w - lr * sign(beta1 * m + (1 - beta1) * G)
//   m <- beta2 * m + (1 - beta2) * G
// State: m, one float32 per weight.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct Lion {
  static constexpr const char* kName = "LION";

  DAMO_INLINE int StateSize(int dim) { return dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep&) { return true; }

  struct Step : WeightDecay {
    float lr;
    float beta1;
    float beta2;
    float one_minus_beta1;
    float one_minus_beta2;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {MakeWeightDecay(s),
            static_cast<float>(s.lr),
            static_cast<float>(s.config.beta1),
            static_cast<float>(s.config.beta2),
            static_cast<float>(1 - s.config.beta1),
            static_cast<float>(1 - s.config.beta2)};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict m = state;
    for (int j = 0; j < dim; ++j) {
      const float grad = g[j] + s.l2 * w[j];
      const float c = s.beta1 * m[j] + s.one_minus_beta1 * grad;
      const float sign = c > 0 ? 1.0f : c < 0 ? -1.0f : 0.0f;
      w[j] = s.decay * w[j] - s.lr * sign;
      m[j] = s.beta2 * m[j] + s.one_minus_beta2 * grad;
    }
  }
};

}  // namespace damo
