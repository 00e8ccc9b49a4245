// Stochastic gradient descent with momentum, as torch.optim.SGD (Sutskever et al. 2013):
//   G = g + l2 * w
//   b <- G at a row's first update, momentum * b + (1 - dampening) * G at later ones
//   w <- decay * w - lr * b, or with nesterov: w <- decay * w - lr * (G + momentum * b)
// State: b, one float32 per weight.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct MomentumSgd {
  static constexpr const char* kName = "MOMENTUM_SGD";

  DAMO_INLINE int StateSize(int dim) { return dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) {
    return s.config.momentum <= 0x1p2 && s.config.dampening >= -0x1p2 && s.config.dampening <= 0x1p2;
  }

  struct Step : WeightDecay {
    float lr;
    float momentum;
    float one_minus_dampening;
    bool nesterov;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {MakeWeightDecay(s), static_cast<float>(s.lr), static_cast<float>(s.config.momentum),
            static_cast<float>(1 - s.config.dampening), s.config.nesterov};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t updates, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict b = state;
    const float old = updates == 1 ? 0 : s.momentum;
    const float add = updates == 1 ? 1 : s.one_minus_dampening;
    const float of_grad = s.nesterov ? 1.0f : 0.0f;
    const float of_buffer = s.nesterov ? s.momentum : 1.0f;
    for (int j = 0; j < dim; ++j) {
      const float grad = g[j] + s.l2 * w[j];
      b[j] = old * b[j] + add * grad;
      w[j] = s.decay * w[j] - s.lr * (of_grad * grad + of_buffer * b[j]);
    }
  }
};

}  // namespace damo
