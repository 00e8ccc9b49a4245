// Weights that a dtype cannot hold.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "row/weight_type.h"

namespace damo {

// Names the first weight for which `refused` holds of its magnitude's bits.
template <class F>
[[noreturn]] void ThrowRefusedWeight(int dim, const float* weights, F refused, const std::string& why) {
  int j = 0;
  while (j + 1 < dim && !refused(MagnitudeBits(weights[j]))) ++j;
  throw Error(ErrorCode::kInvalidArgument, "weight " + std::to_string(j) + " is " + std::to_string(weights[j]) + why);
}

}  // namespace damo
