// Adam with one second moment for a row, as FBGEMM's PARTIAL_ROWWISE_ADAM and torchrec.optim.PartialRowWiseAdam:
//   G = g + l2 * w
//   m <- beta1 * m + (1 - beta1) * G
//   v <- beta2 * v + (1 - beta2) * mean_j(G_j^2)
//   w <- decay * w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// State: m, one float32 per weight, then v, one float32.
#pragma once

#include "kernels/lane_sum.h"
#include "kernels/optimizer.h"
#include "kernels/optimizers/moments.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct PartialRowWiseAdam {
  static constexpr const char* kName = "PARTIAL_ROWWISE_ADAM";

  DAMO_INLINE int StateSize(int dim) { return dim + 1; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) { return DividesByEnough(s) && BetasAreBelowOne(s); }

  struct Step : WeightDecay, Moments {};
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) { return {MakeWeightDecay(s), MakeMoments(s)}; }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t updates, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict m = state;
    float& v = state[dim];
    const BiasCorrection bias = s.bias(updates);
    const float sum = LaneSum(dim, [&](int j) __attribute__((always_inline)) {
      const float grad = g[j] + s.l2 * w[j];
      return grad * grad;
    });
    v = s.beta2 * v + s.one_minus_beta2 * (sum / static_cast<float>(dim));
    const float rate = bias.step_size / (__builtin_sqrtf(v) * bias.inv_sqrt_bias2 + s.eps);
    for (int j = 0; j < dim; ++j) {
      m[j] = s.beta1 * m[j] + s.one_minus_beta1 * (g[j] + s.l2 * w[j]);
      w[j] = s.decay * w[j] - rate * m[j];
    }
  }
};

}  // namespace damo
