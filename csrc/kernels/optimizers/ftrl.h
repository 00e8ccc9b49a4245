// FTRL-proximal (McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1) with alpha =
// lr:
//   z <- z + g - (sqrt(n + g^2) - sqrt(n)) / alpha * w
//   n <- n + g^2
//   w <- 0 if |z| <= lambda1, else -(z - sign(z) * lambda1) / ((beta + sqrt(n)) / alpha + lambda2)
// State: z then n, one float32 per weight each.
#pragma once

#include "kernels/optimizer.h"
#include "row/row.h"

namespace damo {

struct Ftrl {
  static constexpr const char* kName = "FTRL";

  DAMO_INLINE int StateSize(int dim) { return 2 * dim; }
  DAMO_INLINE float InitialState(const OptimizerConfig&) { return 0; }
  // Divides by lr, and by (beta + sqrt(n)) / lr + lambda2.
  DAMO_INLINE bool StaysFinite(const OptimizerStep& s) {
    const OptimizerConfig& c = s.config;
    return s.lr >= 0x1p-40 && c.beta <= 0x1p20 && c.lambda1 <= 0x1p50 && c.lambda2 <= 0x1p50 &&
           c.beta / s.lr + c.lambda2 >= 0x1p-20;
  }

  struct Step {
    float lr;
    float beta;
    float lambda1;
    float lambda2;
  };
  DAMO_INLINE Step MakeStep(const OptimizerStep& s) {
    return {static_cast<float>(s.lr), static_cast<float>(s.config.beta), static_cast<float>(s.config.lambda1),
            static_cast<float>(s.config.lambda2)};
  }

  DAMO_INLINE void Update(const Step& s, int dim, uint32_t, float* __restrict w, float* __restrict state,
                          const float* __restrict g) {
    float* __restrict z = state;
    float* __restrict n = state + dim;
    for (int j = 0; j < dim; ++j) {
      const float old_root = __builtin_sqrtf(n[j]);
      n[j] += g[j] * g[j];
      const float root = __builtin_sqrtf(n[j]);
      z[j] += g[j] - (root - old_root) / s.lr * w[j];
      const float excess = __builtin_fabsf(z[j]) - s.lambda1;
      // Zero only without beta and lambda2, and where g^2 is too small for a float.
      const float below = (s.beta + root) / s.lr + s.lambda2;
      const float size = excess / below;
      w[j] = excess <= 0 || below == 0 ? 0.0f : z[j] > 0 ? -size : size;
    }
  }
};

}  // namespace damo
