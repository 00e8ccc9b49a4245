// How the weights of a row are stored: as float32, or in 16 bits, halving memory and disk. Updates always compute in
// float32; what does not fit 16 bits is rounded up or down at random, with the probabilities that make the mean right,
// so that small updates are not lost. The random bits are a hash of table, id and iteration: the same in every run.
//
// Integer arithmetic alone, so that every instruction set stores the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define DAMO_INLINE [[gnu::always_inline]] static inline

namespace damo {

enum class WeightType : uint8_t { kFloat32, kFloat16, kBfloat16 };

// Bytes of a row's weights, in whole float32: state follows.
DAMO_INLINE size_t WeightBytes(WeightType type, int dim) {
  const size_t n = static_cast<size_t>(dim);
  return type == WeightType::kFloat32 ? 4 * n : (2 * n + 3) / 4 * 4;
}

DAMO_INLINE uint32_t FloatBits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
DAMO_INLINE float FloatOf(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// The bits of |x|, as integers in the order of the numbers.
DAMO_INLINE uint32_t MagnitudeBits(float x) { return FloatBits(x) & 0x7FFFFFFFu; }

constexpr uint32_t kInfinity = 0x7F800000;

// The types, for templates. Store rounds by 32 random bits, StoreNearest to nearest, ties to even. What is too large
// becomes the largest number, and NaN stays NaN.
struct Float32Weights {
  static constexpr bool kExact = true;
  DAMO_INLINE float Load(const char* weights, int j) {
    float x;
    __builtin_memcpy(&x, weights + sizeof(float) * static_cast<size_t>(j), sizeof x);
    return x;
  }
  DAMO_INLINE void StoreNearest(char* weights, int j, float x) {
    __builtin_memcpy(weights + sizeof(float) * static_cast<size_t>(j), &x, sizeof x);
  }
};

struct Float16Weights {
  static constexpr bool kExact = false;
  static constexpr uint32_t kLargest = 0x477FE000;         // 65504
  static constexpr uint32_t kSmallestNormal = 0x38800000;  // 2^-14

  DAMO_INLINE float Load(const char* weights, int j) {
    uint16_t half;
    __builtin_memcpy(&half, weights + sizeof half * static_cast<size_t>(j), sizeof half);
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7FFFu;
    // All ways are taken, so that the loop has no branch: as a normal number, as a multiple of 2^-24, and, with the
    // largest exponent, as infinity or NaN.
    const uint32_t normal = (magnitude << 13) + 0x38000000u;
    const uint32_t subnormal = FloatBits(static_cast<float>(magnitude) * 0x1p-24f);
    return FloatOf(sign | (magnitude < 0x0400 ? subnormal : magnitude < 0x7C00 ? normal : normal + 0x38000000u));
  }
  DAMO_INLINE void Store(char* weights, int j, float x, uint32_t random) {
    // In steps of 2^-24 a subnormal is an integer, and the difference to the one below is exact.
    const float in_steps = Steps(x);
    const uint32_t below = static_cast<uint32_t>(static_cast<int32_t>(in_steps));
    const float rest = in_steps - static_cast<float>(static_cast<int32_t>(below));
    Put(weights, j, x, random & 0x1FFF, below + (static_cast<float>(random >> 8) * 0x1p-24f < rest ? 1 : 0));
  }
  DAMO_INLINE void StoreNearest(char* weights, int j, float x) {
    const float nearest = (Steps(x) + 0x1p23f) - 0x1p23f;  // ties to even
    Put(weights, j, x, 0x0FFF + (FloatBits(x) >> 13 & 1), static_cast<uint32_t>(static_cast<int32_t>(nearest)));
  }

 private:
  // How many steps of 2^-24 there are in what is smaller than any normal number; 0 for the others.
  DAMO_INLINE float Steps(float x) {
    const uint32_t bits = FloatBits(x) & 0x7FFFFFFFu;
    return bits < kSmallestNormal ? FloatOf(bits) * 0x1p24f : 0.0f;
  }
  // `add` goes to the 13 bits that a normal number loses; a smaller one becomes `steps` times 2^-24.
  DAMO_INLINE void Put(char* weights, int j, float x, uint32_t add, uint32_t steps) {
    const uint32_t sign = FloatBits(x) >> 16 & 0x8000;
    const uint32_t bits = FloatBits(x) & 0x7FFFFFFFu;
    uint32_t rounded = bits + add;
    rounded = rounded > kLargest + 0x1FFF ? kLargest : rounded;
    const uint32_t normal = bits > kInfinity ? 0x7E00 : (rounded - 0x38000000u) >> 13;
    const uint16_t half = static_cast<uint16_t>(sign | (bits < kSmallestNormal ? steps : normal));
    __builtin_memcpy(weights + sizeof half * static_cast<size_t>(j), &half, sizeof half);
  }
};

struct Bfloat16Weights {
  static constexpr bool kExact = false;
  static constexpr uint32_t kLargest = 0x7F7F0000;

  DAMO_INLINE float Load(const char* weights, int j) {
    uint16_t half;
    __builtin_memcpy(&half, weights + sizeof half * static_cast<size_t>(j), sizeof half);
    return FloatOf(static_cast<uint32_t>(half) << 16);
  }
  DAMO_INLINE void Store(char* weights, int j, float x, uint32_t random) { Put(weights, j, x, random & 0xFFFF); }
  DAMO_INLINE void StoreNearest(char* weights, int j, float x) {
    Put(weights, j, x, 0x7FFF + (FloatBits(x) >> 16 & 1));
  }

 private:
  DAMO_INLINE void Put(char* weights, int j, float x, uint32_t add) {
    const uint32_t sign = FloatBits(x) >> 16 & 0x8000;
    uint32_t rounded = (FloatBits(x) & 0x7FFFFFFFu) + add;
    rounded = rounded > kLargest + 0xFFFF ? kLargest : rounded;
    rounded = (FloatBits(x) & 0x7FFFFFFFu) > kInfinity ? 0x7FC00000 : rounded;
    const uint16_t half = static_cast<uint16_t>(sign | rounded >> 16);
    __builtin_memcpy(weights + sizeof half * static_cast<size_t>(j), &half, sizeof half);
  }
};

// What rounding a row's weights at random begins with (the finalizer of SplitMix64, Steele, Lea, Flood 2014).
DAMO_INLINE uint64_t RoundingSeed(uint64_t stream_key, int64_t id, uint32_t iter) {
  uint64_t x = stream_key + static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u + iter * 0xD1B54A32D192ED03u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}
// 32 bits for weight j (MurmurHash3's finalizer).
DAMO_INLINE uint32_t RoundingBits(uint64_t seed, int j) {
  uint32_t x = static_cast<uint32_t>(seed) + static_cast<uint32_t>(j) * static_cast<uint32_t>(seed >> 32 | 1);
  x = (x ^ x >> 16) * 0x85EBCA6Bu;
  x = (x ^ x >> 13) * 0xC2B2AE35u;
  return x ^ x >> 16;
}

// Calls f with the type's struct.
template <class F>
DAMO_INLINE void WithWeights(WeightType type, F f) {
  switch (type) {
    case WeightType::kFloat32:
      return f(Float32Weights());
    case WeightType::kFloat16:
      return f(Float16Weights());
    case WeightType::kBfloat16:
      return f(Bfloat16Weights());
  }
}

DAMO_INLINE void EncodeWeights(WeightType type, int dim, const float* from, char* to) {
  WithWeights(type, [&](auto weights) {
    for (int j = 0; j < dim; ++j) weights.StoreNearest(to, j, from[j]);
  });
}
DAMO_INLINE void DecodeWeights(WeightType type, int dim, const char* from, float* to) {
  WithWeights(type, [&](auto weights) {
    for (int j = 0; j < dim; ++j) to[j] = weights.Load(from, j);
  });
}

}  // namespace damo
