// Layer-wise rates, the layer being a row: the length of a step relative to that of the weights.
#pragma once

#include "kernels/lane_sum.h"
#include "row/row.h"

namespace damo {

template <class Term>
DAMO_INLINE float Norm(int n, Term term) {
  const float sum = LaneSum(n, [&](int j) __attribute__((always_inline)) {
    const float x = term(j);
    return x * x;
  });
  return __builtin_sqrtf(sum);
}

// 1 where a norm is zero: a row of zeros would stay where it is for ever.
DAMO_INLINE float TrustRatio(float weight_norm, float step_norm) {
  return weight_norm > 0 && step_norm > 0 ? weight_norm / step_norm : 1.0f;
}

}  // namespace damo
