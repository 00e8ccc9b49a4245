// Memory that others hold, and that its owner answers for.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace damo {

using MemoryCount = std::shared_ptr<std::atomic<size_t>>;  // bytes

// Counts so many bytes for as long as it lives, which may be longer than whoever counts.
class CountedMemory {
 public:
  CountedMemory() = default;
  CountedMemory(MemoryCount count, size_t bytes) : count_(std::move(count)), bytes_(bytes) { *count_ += bytes_; }
  ~CountedMemory() {
    if (count_) *count_ -= bytes_;
  }
  CountedMemory(CountedMemory&& other) noexcept { Swap(&other); }
  CountedMemory& operator=(CountedMemory&& other) noexcept {
    CountedMemory(std::move(other)).Swap(this);
    return *this;
  }

 private:
  void Swap(CountedMemory* other) noexcept {
    std::swap(count_, other->count_);
    std::swap(bytes_, other->bytes_);
  }

  MemoryCount count_;
  size_t bytes_ = 0;
};

}  // namespace damo
