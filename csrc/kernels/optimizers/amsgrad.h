// AMSGrad (Reddi, Kale, Kumar 2018), as torch.optim.Adam and AdamW with amsgrad=True: Adam with the largest v so far,
//   G = g + l2 * w
//   m <- beta1 * m + (1 - beta1) * G
//   v <- beta2 * v + (1 - beta2) * G^2
//   u <- max(u, v)
//   w <- decay * w - lr / (1 - beta1^t) * m / (sqrt(u) / sqrt(1 - beta2^t) + eps)
// With corrected_max the maximum is of what bias correction has made of v, as Damo-Embedding has it:
//   u <- max(u, v / (1 - beta2^t))
//   w <- decay * w - lr / (1 - beta1^t) * m / (sqrt(u) + eps)
// State: m, v, u, one float32 per weight each.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/moments.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct AmsGrad {
  static constexpr const char* kName = "AMSGRAD";

  DAMO_INLINE int StateSize(int dim) { return 3 * dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) { return DividesByEnough(s) && BetasAreBelowOne(s); }

  struct Step : WeightDecay, Moments {
    bool corrected_max;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {MakeWeightDecay(s), MakeMoments(s), s.config.corrected_max};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t updates, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict m = state;
    float* __restrict v = state + dim;
    float* __restrict u = state + 2 * dim;
    const BiasCorrection bias = s.bias(updates);
    const float of_v = s.corrected_max ? bias.inv_sqrt_bias2 * bias.inv_sqrt_bias2 : 1.0f;
    const float of_root = s.corrected_max ? 1.0f : bias.inv_sqrt_bias2;
    for (int j = 0; j < dim; ++j) {
      const float grad = g[j] + s.l2 * w[j];
      m[j] = s.beta1 * m[j] + s.one_minus_beta1 * grad;
      v[j] = s.beta2 * v[j] + s.one_minus_beta2 * (grad * grad);
      const float second = of_v * v[j];
      u[j] = second > u[j] ? second : u[j];
      w[j] = s.decay * w[j] - bias.step_size * m[j] / (__builtin_sqrtf(u[j]) * of_root + s.eps);
    }
  }
};

}  // namespace damo
