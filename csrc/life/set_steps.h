// How many rows live that were set and never updated: by the step at which they were, and by the part of their ids.
//
// One call may set any number of rows, all of them at one step: a cut that had to take or leave a step would take all.
// So they are divided further, as long as the steps at which rows were set are few; of others a histogram's cells have
// them, like rows that were updated.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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
    uint64_t rows() const;
    uint64_t rows_below(uint32_t part) const;
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

  // Of the steps `from` up to `to`.
  uint64_t Rows(uint64_t from, uint64_t to) const;
  // The same, and has them no more afterwards.
  uint64_t Take(uint64_t from, uint64_t to) noexcept;
  // The least part below which a step has so many rows; kIdParts if all of them are too few, or are needed.
  uint32_t LeastPart(uint32_t step, uint64_t rows) const;
  // Of a step the parts below `part`, which are empty afterwards.
  uint64_t TakeParts(uint32_t step, uint32_t part) noexcept;
  // The last before `step` that is one of these.
  std::optional<uint32_t> LastBefore(uint64_t step) const;
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
