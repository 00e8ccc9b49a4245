// LAMB (You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2), a
// row being a layer, as FBGEMM's LAMB and torchrec.optim.LAMB:
//   m <- beta1 * m + (1 - beta1) * g
//   v <- beta2 * v + (1 - beta2) * g^2
//   r = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay * w
//   w <- w - lr * |w| / |r| * r, the quotient of the norms being 1 if one is 0
// State: m then v, one float32 per weight each.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/moments.h"
#include "kernels/optimizers/trust_ratio.h"
#include "row/row.h"

namespace damo {

struct Lamb {
  static constexpr const char* kName = "LAMB";

  DAMO_INLINE int StateSize(int dim) { return 2 * dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) { return DividesByEnough(s) && BetasAreBelowOne(s); }

  struct Step : Moments {
    float lr;
    float weight_decay;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {MakeMoments(s), static_cast<float>(s.lr), static_cast<float>(s.config.weight_decay)};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t updates, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict m = state;
    float* __restrict v = state + dim;
    const BiasCorrection bias = s.bias(updates);
    for (int j = 0; j < dim; ++j) {
      m[j] = s.beta1 * m[j] + s.one_minus_beta1 * g[j];
      v[j] = s.beta2 * v[j] + s.one_minus_beta2 * (g[j] * g[j]);
    }
    const auto r = [&](int j) __attribute__((always_inline)) {
      return m[j] * bias.inv_bias1 / (__builtin_sqrtf(v[j]) * bias.inv_sqrt_bias2 + s.eps) + s.weight_decay * w[j];
    };
    const float weight_norm = Norm(dim, [&](int j) __attribute__((always_inline)) { return w[j]; });
    const float rate = s.lr * TrustRatio(weight_norm, Norm(dim, r));
    for (int j = 0; j < dim; ++j) w[j] -= rate * r(j);
  }
};

}  // namespace damo
