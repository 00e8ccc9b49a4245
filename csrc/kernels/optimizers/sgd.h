// Stochastic gradient descent: G = g + l2 * w, w <- decay * w - lr * G (torch.optim.SGD without momentum).
// No state.
#pragma once

#include "kernels/optimizer.h"
#include "row/row.h"

namespace damo {

struct Sgd {
  DAMO_INLINE int StateSize(int) { return 0; }

  DAMO_INLINE void Update(const OptimizerStep& s, int dim, uint32_t, float* __restrict w, float* __restrict,
                          const float* __restrict g) {
    for (int j = 0; j < dim; ++j) w[j] = s.decay * w[j] - s.lr * (g[j] + s.l2 * w[j]);
  }
};

}  // namespace damo
