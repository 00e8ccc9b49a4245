// int8 with a scale for each row: weights are about scale times int8, and 127 is the largest magnitude. Quotients are
// rounded to nearest, ties to even.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "row/weight_type.h"
#include "serving/row_dtypes/refusal.h"

namespace damo {

struct Int8Rows {
  static constexpr const char* kName = "int8";
  static constexpr const char* kSuffix = "Int8";
  static constexpr int kOnnxType = 3;
  static constexpr size_t kWeightBytes = 1;
  static constexpr bool kScaled = true;
  static constexpr uint32_t kFaint = 0x04000000;  // 2^-119: below it, the scale is no normal float32

  // Throws kInvalidArgument for infinity and NaN.
  static void Encode(int dim, const float* weights, char* to, float* scale) {
    uint32_t largest = 0;
    for (int j = 0; j < dim; ++j) largest = std::max(largest, MagnitudeBits(weights[j]));
    if (largest >= kInfinity) {
      const auto refused = [](uint32_t magnitude) { return magnitude >= kInfinity; };
      ThrowRefusedWeight(dim, weights, refused, ", which int8 rows cannot hold: expected finite weights");
    }
    *scale = FloatOf(largest) / 127.0f;
    if (*scale == 0) {
      std::fill_n(to, dim, char{0});
      return;
    }
    for (int j = 0; j < dim; ++j) {
      const float quotient = std::clamp(weights[j] / *scale, -127.0f, 127.0f);
      const float rounded = (quotient + 0x1.8p23f) - 0x1.8p23f;
      const int8_t q = static_cast<int8_t>(rounded);
      std::memcpy(to + j, &q, 1);
    }
  }

  class Row {
   public:
    Row(const char* stored, size_t, float scale, float*)
        : weights_(reinterpret_cast<const int8_t*>(stored)), scale_(scale) {}
    float operator[](size_t j) const { return static_cast<float>(weights_[j]) * scale_; }

   private:
    const int8_t* weights_;
    float scale_;
  };
};

}  // namespace damo
