// LAMB with one second moment for a row, as FBGEMM's PARTIAL_ROWWISE_LAMB and torchrec.optim.PartialRowWiseLAMB: lamb.h
// with v <- beta2 * v + (1 - beta2) * mean_j(g_j^2).
// State: m, one float32 per weight, then v, one float32.
#pragma once

#include "kernels/lane_sum.h"
#include "kernels/optimizer.h"
#include "kernels/optimizers/moments.h"
#include "kernels/optimizers/trust_ratio.h"
#include "row/row.h"

namespace damo {

struct PartialRowWiseLamb {
  static constexpr const char* kName = "PARTIAL_ROWWISE_LAMB";

  DAMO_INLINE int StateSize(int dim) { return dim + 1; }
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
    float& v = state[dim];
    const BiasCorrection bias = s.bias(updates);
    const float sum = LaneSum(dim, [&](int j) __attribute__((always_inline)) { return g[j] * g[j]; });
    v = s.beta2 * v + s.one_minus_beta2 * (sum / static_cast<float>(dim));
    const float scale = bias.inv_bias1 / (__builtin_sqrtf(v) * bias.inv_sqrt_bias2 + s.eps);
    for (int j = 0; j < dim; ++j) m[j] = s.beta1 * m[j] + s.one_minus_beta1 * g[j];
    const auto r = [&](int j) __attribute__((always_inline)) { return m[j] * scale + s.weight_decay * w[j]; };
    const float weight_norm = Norm(dim, [&](int j) __attribute__((always_inline)) { return w[j]; });
    const float rate = s.lr * TrustRatio(weight_norm, Norm(dim, r));
    for (int j = 0; j < dim; ++j) w[j] -= rate * r(j);
  }
};

}  // namespace damo
