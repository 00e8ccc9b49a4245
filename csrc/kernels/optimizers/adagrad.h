// Adagrad (Duchi, Hazan, Singer 2011), as torch.optim.Adagrad: G = g + l2 * w, s <- s + G^2,
// w <- decay * w - lr * G / (sqrt(s) + eps). State: s, one float32 per weight.
#pragma once

#include "kernels/optimizer.h"
#include "kernels/optimizers/weight_decay.h"
#include "row/row.h"

namespace damo {

struct Adagrad {
  static constexpr const char* kName = "ADAGRAD";

  DAMO_INLINE int StateSize(int dim) { return dim; }
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
    for (int j = 0; j < dim; ++j) {
      const float grad = g[j] + s.l2 * w[j];
      state[j] += grad * grad;
      w[j] = s.decay * w[j] - s.lr * grad / (__builtin_sqrtf(state[j]) + s.eps);
    }
  }
};

}  // namespace damo
