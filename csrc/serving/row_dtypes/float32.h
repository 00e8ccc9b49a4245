// float32: weights as they are.
#pragma once

#include <cstddef>

#include "row/weight_type.h"

namespace damo {

struct Float32Rows {
  static constexpr const char* kName = "float32";
  static constexpr const char* kSuffix = "";
  static constexpr int kOnnxType = 1;
  static constexpr size_t kWeightBytes = 4;
  static constexpr bool kScaled = false;
  static constexpr uint32_t kFaint = 0;

  static void Encode(int dim, const float* weights, char* to, float*) {
    EncodeWeights(WeightType::kFloat32, dim, weights, to);
  }

  class Row {
   public:
    Row(const char* stored, size_t, float, float*) : weights_(reinterpret_cast<const float*>(stored)) {}
    float operator[](size_t j) const { return weights_[j]; }

   private:
    const float* weights_;
  };
};

}  // namespace damo
