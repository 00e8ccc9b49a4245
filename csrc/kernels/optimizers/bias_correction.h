// The bias correction of Adam and its kin, by the table's iteration or by a row's own count of updates.
#pragma once

#include "kernels/optimizer.h"
#include "row/row.h"

namespace damo {

// By squaring: multiplications alone give the same bits everywhere, which the C library's pow does not promise.
DAMO_INLINE double Power(double base, uint32_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// REQUIRES: t >= 1. With uncorrected_eps, the correction of sqrt(v) is part of the step size.
DAMO_INLINE BiasCorrection CorrectBias(const OptimizerStep& s, uint32_t t) {
  const double bias1 = 1 - Power(s.exact_beta1, t);
  const double sqrt_bias2 = __builtin_sqrt(1 - Power(s.exact_beta2, t));
  BiasCorrection c;
  c.step_size = static_cast<float>(s.exact_lr / bias1 * (s.uncorrected_eps ? sqrt_bias2 : 1));
  c.inv_bias1 = static_cast<float>(1 / bias1);
  c.inv_sqrt_bias2 = static_cast<float>(s.uncorrected_eps ? 1 : 1 / sqrt_bias2);
  return c;
}

// Of the update of a row that has had `updates`, this one included.
DAMO_INLINE BiasCorrection BiasOf(const OptimizerStep& s, uint32_t updates) {
  return s.rowwise_bias_correction ? CorrectBias(s, updates) : s.bias;
}

}  // namespace damo
