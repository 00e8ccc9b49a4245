// Adam (Kingma, Ba 2015) and AdamW (Loshchilov, Hutter 2019), as torch.optim.Adam and AdamW, with bias correction by
// the table's iteration t, or by the row's own count:
//   G = g + l2 * w
//   m <- beta1 * m + (1 - beta1) * G
//   v <- beta2 * v + (1 - beta2) * G^2
//   w <- decay * w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// torch.optim.SparseAdam adds eps before the correction:
//   w <- w - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
// State: m then v, one float32 per weight each.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/moments.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct Adam {
  static constexpr const char* kName = "ADAM";

  DAMO_INLINE int StateSize(int dim) { return 2 * dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) { return DividesByEnough(s) && BetasAreBelowOne(s); }

  struct Step : WeightDecay, Moments {};
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) { return {MakeWeightDecay(s), MakeMoments(s)}; }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t updates, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict m = state;
    float* __restrict v = state + dim;
    const BiasCorrection bias = s.bias(updates);
    for (int j = 0; j < dim; ++j) {
      const float grad = g[j] + s.l2 * w[j];
      m[j] = s.beta1 * m[j] + s.one_minus_beta1 * grad;
      v[j] = s.beta2 * v[j] + s.one_minus_beta2 * (grad * grad);
      w[j] = s.decay * w[j] - bias.step_size * m[j] / (__builtin_sqrtf(v[j]) * bias.inv_sqrt_bias2 + s.eps);
    }
  }
};

}  // namespace damo
