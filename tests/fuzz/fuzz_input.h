// A fuzz target's bytes, taken from the front as what a target needs. Behind their end all is zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace damo::fuzz {

// Has the run end as a fault that was found.
inline void Require(bool holds) {
  if (!holds) std::abort();
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : next_(data), left_(size) {}

  size_t left() const { return left_; }

  template <class T>
  T Take() {
    T value{};
    const size_t n = std::min(sizeof value, left_);
    if (n > 0) std::memcpy(&value, next_, n);
    next_ += n;
    left_ -= n;
    return value;
  }

  // In 0..most.
  size_t UpTo(uint8_t most) { return Take<uint8_t>() % (most + size_t{1}); }

  // Mostly a small number, sometimes one of 64 bits.
  int64_t Number() {
    const auto first = Take<int8_t>();
    return first < -100 ? Take<int64_t>() : first;
  }

  std::vector<int64_t> Numbers(size_t n) {
    std::vector<int64_t> numbers(n);  // memory of its own, so that a sanitizer sees what is read beyond it
    for (int64_t& number : numbers) number = Number();
    return numbers;
  }

  template <class T>
  std::vector<T> Array(size_t n) {
    std::vector<T> values(n);
    for (T& value : values) value = Take<T>();
    return values;
  }

  std::string Rest() {
    std::string rest(reinterpret_cast<const char*>(next_), left_);
    left_ = 0;
    return rest;
  }

 private:
  const uint8_t* next_;
  size_t left_;
};

}  // namespace damo::fuzz
