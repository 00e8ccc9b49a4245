// How many rows live that were set and never updated: by the step at which they were, and by the part of their ids.
//
// Calls between two updates may set any number of rows, which nobody knows before, so that no bucket of a histogram can
// be divided for them. They are counted by parts here as long as the steps at which rows were set are few; of others a
// histogram's cells have them, like rows that were updated.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "life/histogram.h"
#include "row/ladder.h"

namespace damo {

class SetSteps {
 public:
  static constexpr size_t kMost = 256;

  SetSteps() = default;
  SetSteps(uint32_t first, bool overflowed) : overflowed_(overflowed), first_(first) {}

  struct Step {
    uint32_t step = 0;
    std::unique_ptr<Counter[]> parts;  // kIdParts
    uint64_t rows() const { return Rows(0, kEndOfPositions); }
    uint64_t Rows(Position from, Position to) const;  // of the positions between the two
  };

  size_t size() const { return size_.load(std::memory_order_acquire); }
  const Step& operator[](size_t i) const { return steps_[i]; }
  size_t memory_bytes() const { return size() * (sizeof(Step) + kIdParts * sizeof(Counter)); }

  // Thread-safe. Of a step that is not there, nothing.
  Counter* Find(uint32_t step, int64_t id) const {
    const Step* found = Find(step);
    return found == nullptr ? nullptr : &found->parts[IdPart(id)];
  }
  // Thread-safe. Nothing if there are too many steps already, or this one is before first().
  Counter* FindOrAdd(uint32_t step, int64_t id);
  // No earlier step becomes one of these, as rows of some are in cells now.
  uint32_t first() const { return first_; }
  void SetFirst(uint32_t step) { first_ = step; }
  // Whether FindOrAdd has found too many.
  bool overflowed() const { return overflowed_.load(std::memory_order_relaxed); }
  void ClearOverflow() { overflowed_.store(false, std::memory_order_relaxed); }

  // Of the positions `from` up to `to`.
  uint64_t Rows(Position from, Position to) const;
  // The same, and has them no more afterwards.
  uint64_t Take(Position from, Position to) noexcept;
  // Brings them into ascending order, those without rows left out.
  void Sort() noexcept;

  // f(step, part, rows), in ascending order, of those with rows.
  template <class F>
  void ForEachPart(F f) const;
  // Makes the step one of these. REQUIRES: there are fewer than kMost, or it is one.
  Counter* Part(uint32_t step, uint32_t part);

 private:
  const Step* Find(uint32_t step) const {
    for (size_t i = size(); i-- > 0;) {
      if (steps_[i].step == step) return &steps_[i];
    }
    return nullptr;
  }

  const Step* Append(uint32_t step);
  template <class F>
  void DropIf(F f);

  std::array<Step, kMost> steps_;  // those below size_ keep their places while others are added
  std::atomic<size_t> size_{0};
  std::atomic<bool> overflowed_{false};
  uint32_t first_ = 0;
  Mutex adding_;
};

template <class F>
void SetSteps::ForEachPart(F f) const {
  std::vector<const Step*> ascending;
  for (size_t i = 0; i < size(); ++i) ascending.push_back(&steps_[i]);
  std::sort(ascending.begin(), ascending.end(), [](const Step* a, const Step* b) { return a->step < b->step; });
  for (const Step* step : ascending) {
    for (uint32_t part = 0; part < kIdParts; ++part) {
      const uint64_t rows = step->parts[part].load(std::memory_order_relaxed);
      if (rows > 0) f(step->step, part, rows);
    }
  }
}

}  // namespace damo
