// LARS (You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017), a row being a layer, as
// FBGEMM's LARS_SGD and torchrec.optim.LarsSGD:
//   a = lr * eta * |w| / (|g| + weight_decay * |w|), or lr if one of the two is 0
//   m <- momentum * m + a * (g + weight_decay * w)
//   w <- w - m
// State: m, one float32 per weight.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/trust_ratio.h"
#include "row/row.h"

namespace damo {

struct LarsSgd {
  static constexpr const char* kName = "LARS_SGD";

  DAMO_INLINE int StateSize(int dim) { return dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  // The rate is at most lr * eta / weight_decay, and without that lr * eta * |w| / |g|, which g multiplies.
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) {
    const OptimizerConfig& c = s.config;
    return c.momentum <= 0x1p2 && c.eta <= 0x1p6 && (c.weight_decay == 0 || c.weight_decay >= 0x1p-60);
  }

  struct Step {
    float lr;
    float momentum;
    float eta;
    float weight_decay;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {static_cast<float>(s.lr), static_cast<float>(s.config.momentum), static_cast<float>(s.config.eta),
            static_cast<float>(s.config.weight_decay)};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict m = state;
    const float weight_norm = Norm(dim, [&](int j) __attribute__((always_inline)) { return w[j]; });
    const float grad_norm = Norm(dim, [&](int j) __attribute__((always_inline)) { return g[j]; });
    const float below = grad_norm + s.weight_decay * weight_norm;
    const float rate = weight_norm > 0 && below > 0 ? s.lr * s.eta * weight_norm / below : s.lr;
    for (int j = 0; j < dim; ++j) {
      m[j] = s.momentum * m[j] + rate * (g[j] + s.weight_decay * w[j]);
      w[j] -= m[j];
    }
  }
};

}  // namespace damo
