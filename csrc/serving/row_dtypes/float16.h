// float16, rounded to nearest, ties to even.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "row/weight_type.h"
#include "serving/row_dtypes/refusal.h"

namespace damo {

struct Float16Rows {
  static constexpr const char* kName = "float16";
  static constexpr const char* kSuffix = "Float16";
  static constexpr int kOnnxType = 10;
  static constexpr size_t kWeightBytes = 2;
  static constexpr bool kScaled = false;
  static constexpr uint32_t kFaint = 0x38800000;  // 2^-14: below it, bits are lost, and below 2^-25 all

  // Throws kInvalidArgument for what rounding brings beyond the largest float16; NaN stays.
  static void Encode(int dim, const float* weights, char* to, float*) {
    const auto refused = [](uint32_t magnitude) { return magnitude >= 0x477FF000 && magnitude <= kInfinity; };  // 65520
    bool any = false;
    for (int j = 0; j < dim; ++j) any |= refused(MagnitudeBits(weights[j]));
    if (any) ThrowRefusedWeight(dim, weights, refused, ", beyond float16's largest number, 65504");
    EncodeWeights(WeightType::kFloat16, dim, weights, to);
  }

  class Row {
   public:
    Row(const char* stored, size_t dim, float, float* buffer) : weights_(buffer) {
      static const Decoder decode = SelectDecoder();
      decode(stored, dim, buffer);
    }
    float operator[](size_t j) const { return weights_[j]; }

   private:
    const float* weights_;
  };

  // To float32, as fast as this processor does it: all ways give the same bits.
  using Decoder = void (*)(const char* from, size_t n, float* to);
  static Decoder SelectDecoder() {
#ifdef __x86_64__
    // Processors with AVX2 have F16C, whose name Clang before 17 does not know here.
    if (__builtin_cpu_supports("avx2")) return DecodeF16c;
#endif
    return DecodePlain;
  }

 private:
  static void DecodePlain(const char* from, size_t n, float* to) {
    for (size_t i = 0; i < n; ++i) to[i] = Float16Weights::Load(from, static_cast<int>(i));
  }

#ifdef __x86_64__
  [[gnu::target("avx,f16c")]] static void DecodeF16c(const char* from, size_t n, float* to) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
    for (; i < n; ++i) to[i] = Float16Weights::Load(from, static_cast<int>(i));
  }
#endif
};

}  // namespace damo
