#include "onnxruntime_ops/float16.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "row/weight_type.h"

namespace damo {
namespace {

void DecodePlain(const char* from, size_t n, float* to) {
  for (size_t i = 0; i < n; ++i) to[i] = Float16Weights::Load(from, static_cast<int>(i));
}

#ifdef __x86_64__
[[gnu::target("avx,f16c")]] void DecodeF16c(const char* from, size_t n, float* to) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) to[i] = Float16Weights::Load(from, static_cast<int>(i));
}
#endif

}  // namespace

DecodeFloat16 SelectDecodeFloat16() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c")) return DecodeF16c;
#endif
  return DecodePlain;
}

}  // namespace damo
