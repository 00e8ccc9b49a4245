// How large the numbers of rows are.
//
// This header is compiled for several instruction sets: nothing in it may become an out-of-line function.
#pragma once

#include <cstdint>

#include "row/row.h"

namespace damo {

// The largest absolute values of weights and of optimizer state, as the bits of floats, whose order is that of the
// numbers: kInfinity or more says that one is infinite or NaN.
struct RowBounds {
  uint32_t weights = 0;
  uint32_t state = 0;

  [[gnu::always_inline]] void Add(const RowBounds& other) {
    weights = other.weights > weights ? other.weights : weights;
    state = other.state > state ? other.state : state;
  }
  [[gnu::always_inline]] bool finite() const { return weights < kInfinity && state < kInfinity; }
};

// The magnitudes of numbers, in lanes that are compared at once.
class Magnitudes {
 public:
  template <class Numbers>
  [[gnu::always_inline]] void Add(const char* numbers, int n) {
    int j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) Raise(lane, Numbers::Load(numbers, j + lane));
    }
    for (; j < n; ++j) Raise(0, Numbers::Load(numbers, j));
  }
  [[gnu::always_inline]] uint32_t largest() const {
    uint32_t result = 0;
    for (int lane = 0; lane < kLanes; ++lane) result = largest_[lane] > result ? largest_[lane] : result;
    return result;
  }

 private:
  static constexpr int kLanes = 16;

  [[gnu::always_inline]] void Raise(int lane, float x) {
    const uint32_t bits = MagnitudeBits(x);
    largest_[lane] = bits > largest_[lane] ? bits : largest_[lane];
  }

  uint32_t largest_[kLanes] = {};
};

// Those of rows of one table.
struct RowMagnitudes {
  Magnitudes weights;
  Magnitudes state;

  template <class Weights>
  [[gnu::always_inline]] void Add(const char* payload, const RowLayout& layout) {
    weights.Add<Weights>(payload, layout.dim);
    state.Add<Float32Weights>(payload + layout.weight_bytes(), layout.state_size);
  }
  [[gnu::always_inline]] RowBounds bounds() const { return {weights.largest(), state.largest()}; }
};

}  // namespace damo
