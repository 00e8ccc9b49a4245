// Row-wise Adagrad, as FBGEMM's EXACT_ROWWISE_ADAGRAD and torchrec.optim.RowWiseAdagrad: one accumulator for a row,
// G = g + l2 * w, s <- s + mean_j(G_j^2), w <- decay * w - lr / (sqrt(s) + eps) * G. State: s, one float32.
#pragma once

#include "kernels/lane_sum.h"
#include "kernels/optimizer.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct RowWiseAdagrad {
  static constexpr const char* kName = "ROWWISE_ADAGRAD";

  DAMO_INLINE int StateSize(int) { return 1; }
  DAMO_INLINE float InitialState(const OptimizerConfig& c) { return static_cast<float>(c.initial_accumulator_value); }
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) { return DividesByEnough(s); }

  struct Step : WeightDecay {
    float lr;
    float eps;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {MakeWeightDecay(s), static_cast<float>(s.lr), static_cast<float>(s.config.eps)};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    const float sum = LaneSum(dim, [&](int j) __attribute__((always_inline)) {
      const float grad = g[j] + s.l2 * w[j];
      return grad * grad;
    });
    state[0] += sum / static_cast<float>(dim);
    const float rate = s.lr / (__builtin_sqrtf(state[0]) + s.eps);
    for (int j = 0; j < dim; ++j) w[j] = s.decay * w[j] - rate * (g[j] + s.l2 * w[j]);
  }
};

}  // namespace damo
