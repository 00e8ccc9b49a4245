// How a row's weights are stored for serving: float32, float16, or int8 with a scale of its own.
//
// Results are the same bits on every machine. REQUIRES: the default floating point environment.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/status.h"
#include "row/weight_type.h"

namespace damo {

enum class ServingRowType : uint8_t { kFloat32, kFloat16, kInt8 };

inline size_t ServingRowBytes(ServingRowType type, int dim) {
  const size_t n = static_cast<size_t>(dim);
  return type == ServingRowType::kFloat32 ? 4 * n : type == ServingRowType::kFloat16 ? 2 * n : n;
}

// Names the first weight for which `refused` holds of its magnitude's bits. Larger bits are larger magnitudes, infinity
// and NaN last.
template <class F>
[[noreturn]] void ThrowRefusedWeight(int dim, const float* weights, F refused, const std::string& why) {
  int j = 0;
  while (j + 1 < dim && !refused(FloatBits(weights[j]) & 0x7FFFFFFFu)) ++j;
  throw Error(ErrorCode::kInvalidArgument, "weight " + std::to_string(j) + " is " + std::to_string(weights[j]) + why);
}

// Rounds to nearest, ties to even. Throws kInvalidArgument for what that brings beyond the largest float16; NaN stays.
inline void EncodeFloat16Row(int dim, const float* weights, char* to) {
  const auto refused = [](uint32_t magnitude) { return magnitude >= 0x477FF000 && magnitude <= kInfinity; };  // 65520
  bool any = false;
  for (int j = 0; j < dim; ++j) any |= refused(FloatBits(weights[j]) & 0x7FFFFFFFu);
  if (any) ThrowRefusedWeight(dim, weights, refused, ", beyond float16's largest number, 65504");
  EncodeWeights(WeightType::kFloat16, dim, weights, to);
}

// Weights are about `scale` times int8: 127 is the largest magnitude. Quotients are rounded to nearest, ties to even.
// Throws kInvalidArgument for infinity and NaN.
inline void EncodeInt8Row(int dim, const float* weights, char* to, float* scale) {
  uint32_t largest = 0;
  for (int j = 0; j < dim; ++j) largest = std::max(largest, FloatBits(weights[j]) & 0x7FFFFFFFu);
  if (largest >= kInfinity) {
    const auto refused = [](uint32_t magnitude) { return magnitude >= kInfinity; };
    ThrowRefusedWeight(dim, weights, refused, ", which int8 rows cannot hold: expected finite weights");
  }
  *scale = FloatOf(largest) / 127.0f;
  if (*scale == 0) {
    std::memset(to, 0, static_cast<size_t>(dim));
    return;
  }
  for (int j = 0; j < dim; ++j) {
    const float quotient = std::clamp(weights[j] / *scale, -127.0f, 127.0f);
    const float rounded = (quotient + 0x1.8p23f) - 0x1.8p23f;
    const int8_t q = static_cast<int8_t>(rounded);
    std::memcpy(to + j, &q, 1);
  }
}

// `*scale` is set for int8 alone.
inline void EncodeServingRow(ServingRowType type, int dim, const float* weights, char* to, float* scale) {
  switch (type) {
    case ServingRowType::kFloat32:
      return EncodeWeights(WeightType::kFloat32, dim, weights, to);
    case ServingRowType::kFloat16:
      return EncodeFloat16Row(dim, weights, to);
    case ServingRowType::kInt8:
      return EncodeInt8Row(dim, weights, to, scale);
  }
}

}  // namespace damo
