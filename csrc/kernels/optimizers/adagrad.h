// Adagrad (Duchi, Hazan, Singer 2011), as torch.optim.Adagrad: G = g + l2 * w, s <- s + G^2,
// w <- decay * w - lr * G / (sqrt(s) + eps). State: s, one float32 per weight.
#pragma once

#include "kernels/optimizer.h"
#include "row/row.h"

namespace damo {

struct Adagrad {
  DAMO_INLINE int StateSize(int dim) { return dim; }

  DAMO_INLINE void Update(const OptimizerStep& s, int dim, uint32_t, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    for (int j = 0; j < dim; ++j) {
      const float grad = g[j] + s.l2 * w[j];
      state[j] += grad * grad;
      w[j] = s.decay * w[j] - s.lr * grad / (__builtin_sqrtf(state[j]) + s.eps);
    }
  }
};

}  // namespace damo
