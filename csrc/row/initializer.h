// A row's initial weights: a function of (stream key, id) alone, where the stream key is made from the store's seed and
// the table's name. Element j of a row is drawn from word j % 4 of Philox(counter = (j / 4, id), key = stream key).
#pragma once

#include <cstdint>

#include "row/normal_quantile.h"
#include "row/philox.h"

namespace damo {

enum class Distribution : uint8_t { kConstant, kUniform, kNormal };

struct Initializer {
  Distribution distribution = Distribution::kConstant;
  uint64_t stream_key = 0;
  // kConstant: a is the value. kUniform: in [a, b]. kNormal: mean a, standard deviation b.
  float a = 0;
  float b = 0;
  // kNormal is truncated to the quantiles in (low, high); 0 and 1 leave it whole.
  double low = 0;
  double high = 1;
};

// One element from 32 random bits.
DAMO_INLINE float DrawWeight(const Initializer& init, uint32_t bits) {
  switch (init.distribution) {
    case Distribution::kUniform:
      // 24 bits convert to float exactly.
      return init.a + (init.b - init.a) * (static_cast<float>(bits >> 8) * 0x1p-24f);
    case Distribution::kNormal: {
      const double u = (static_cast<double>(bits) + 0.5) * 0x1p-32;
      return static_cast<float>(init.a + init.b * NormalQuantile(init.low + (init.high - init.low) * u));
    }
    case Distribution::kConstant:
      break;
  }
  return init.a;
}

DAMO_INLINE void DrawRow(const Initializer& init, int64_t id, int dim, float* weights) {
  if (init.distribution == Distribution::kConstant) {
    for (int j = 0; j < dim; ++j) weights[j] = init.a;
    return;
  }
  for (int j = 0; j < dim; j += 4) {
    const PhiloxBlock block = Philox(static_cast<uint64_t>(j / 4), static_cast<uint64_t>(id), init.stream_key);
    for (int k = 0; k < 4 && j + k < dim; ++k) weights[j + k] = DrawWeight(init, block.v[k]);
  }
}

}  // namespace damo
