// A weighted sum of rows of `dim` floats. Where kDim says how many at compile time it is kept in registers until all
// rows are added; with kDim = 0 it is summed in `memory`. Both add in the order of the calls: they give the same bits.
// Included by kernels_impl.h alone, as its code depends on the instruction set.
#pragma once

#include <cstddef>

#include "row/weight_type.h"

namespace damo {
namespace {

#if defined(__AVX512F__)
constexpr size_t kLaneBytes = 64;
#elif defined(__AVX__)
constexpr size_t kLaneBytes = 32;
#else
constexpr size_t kLaneBytes = 16;
#endif

template <int kDim>
class RowSum {
 public:
  RowSum(int, float* memory) : memory_(memory) {}

  [[gnu::always_inline]] void Clear() {
    for (size_t l = 0; l < kLanes; ++l) sum_[l] = Lane{};
  }
  // Goes on with what `memory` holds.
  [[gnu::always_inline]] void Load() {
    for (size_t l = 0; l < kLanes; ++l) sum_[l] = LaneAt(memory_, l);
  }
  // `row` holds weights of type Weights, wherever it lies.
  template <class Weights>
  [[gnu::always_inline]] void Set(float scale, const char* row) {
    static_assert(Weights::kExact);
    for (size_t l = 0; l < kLanes; ++l) sum_[l] = scale * LaneAt(row, l);
  }
  template <class Weights>
  [[gnu::always_inline]] void Add(float scale, const char* row) {
    static_assert(Weights::kExact);
    for (size_t l = 0; l < kLanes; ++l) sum_[l] += scale * LaneAt(row, l);
  }
  [[gnu::always_inline]] void Store() {
    for (size_t l = 0; l < kLanes; ++l) {
      __builtin_memcpy(reinterpret_cast<char*>(memory_) + l * kLaneBytes, &sum_[l], kLaneBytes);
    }
  }

 private:
  using Lane [[gnu::vector_size(kLaneBytes)]] = float;
  static constexpr size_t kLanes = sizeof(float) * kDim / kLaneBytes;
  static_assert(kLanes * kLaneBytes == sizeof(float) * kDim);

  [[gnu::always_inline]] static Lane LaneAt(const void* row, size_t l) {
    Lane lane;
    __builtin_memcpy(&lane, static_cast<const char*>(row) + l * kLaneBytes, kLaneBytes);
    return lane;
  }

  float* memory_;
  Lane sum_[kLanes];
};

template <>
class RowSum<0> {
 public:
  RowSum(int dim, float* memory) : dim_(dim), sum_(memory) {}

  [[gnu::always_inline]] void Clear() {
    for (int j = 0; j < dim_; ++j) sum_[j] = 0;
  }
  [[gnu::always_inline]] void Load() {}
  template <class Weights>
  [[gnu::always_inline]] void Set(float scale, const char* __restrict row) {
    float* __restrict sum = sum_;
    for (int j = 0; j < dim_; ++j) sum[j] = scale * Weights::Load(row, j);
  }
  template <class Weights>
  [[gnu::always_inline]] void Add(float scale, const char* __restrict row) {
    float* __restrict sum = sum_;
    for (int j = 0; j < dim_; ++j) sum[j] += scale * Weights::Load(row, j);
  }
  [[gnu::always_inline]] void Store() {}

 private:
  const int dim_;
  float* const sum_;
};

}  // namespace
}  // namespace damo
