// The moments of Adam and its kin, and their bias correction: by the table's iteration, or by a row's own count of
// updates.
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

// What a correction is made of.
struct BiasTerms {
  double lr;
  double beta1;
  double beta2;
  bool uncorrected_eps;
};

// REQUIRES: t >= 1. With uncorrected_eps, the correction of sqrt(v) is part of the step size.
DAMO_INLINE BiasCorrection CorrectBias(const BiasTerms& terms, uint32_t t) {
  const double bias1 = 1 - Power(terms.beta1, t);
  const double sqrt_bias2 = __builtin_sqrt(1 - Power(terms.beta2, t));
  BiasCorrection c;
  c.step_size = static_cast<float>(terms.lr / bias1 * (terms.uncorrected_eps ? sqrt_bias2 : 1));
  c.inv_bias1 = static_cast<float>(1 / bias1);
  c.inv_sqrt_bias2 = static_cast<float>(terms.uncorrected_eps ? 1 : 1 / sqrt_bias2);
  return c;
}

// The constants of a rule with two moments.
struct Moments {
  float beta1;
  float beta2;
  float one_minus_beta1;
  float one_minus_beta2;
  float eps;
  BiasCorrection table_bias;
  bool rowwise;  // whether rows have corrections of their own, made of the terms
  BiasTerms terms;

  // The correction for a row that has had `updates`, this one included.
  [[gnu::always_inline]] BiasCorrection bias(uint32_t updates) const {
    return rowwise ? CorrectBias(terms, updates) : table_bias;
  }
};

DAMO_INLINE Moments MakeMoments(const OptimizerStep& s) {
  const OptimizerConfig& c = s.config;
  return {static_cast<float>(c.beta1),     static_cast<float>(c.beta2),
          static_cast<float>(1 - c.beta1), static_cast<float>(1 - c.beta2),
          static_cast<float>(c.eps),       s.bias,
          c.rowwise_bias_correction,       {s.lr, c.beta1, c.beta2, c.uncorrected_eps}};
}

}  // namespace damo
