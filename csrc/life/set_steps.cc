#include "life/set_steps.h"

#include <algorithm>
#include <utility>

namespace damo {

namespace {

// Of the parts of a step the first that is not before `position`.
uint32_t PartFrom(uint32_t step, Position position) {
  const Position first = PositionOf(step);
  return static_cast<uint32_t>(std::clamp(position, first, first + kIdParts) - first);
}

}  // namespace

uint64_t SetSteps::Step::Rows(Position from, Position to) const {
  uint64_t rows = 0;
  for (uint32_t p = PartFrom(step, from); p < PartFrom(step, to); ++p) {
    rows += parts[p].load(std::memory_order_relaxed);
  }
  return rows;
}

Counter* SetSteps::FindOrAdd(uint32_t step, int64_t id) {
  if (Counter* found = Find(step, id)) return found;
  if (step < first_) return nullptr;
  const MutexLock lock(&adding_);
  if (Counter* found = Find(step, id)) return found;
  if (size() == kMost) {
    overflowed_.store(true, std::memory_order_relaxed);
    return nullptr;
  }
  return &Append(step)->parts[IdPart(id)];
}

Counter* SetSteps::Part(uint32_t step, uint32_t part) {
  const Step* found = Find(step);
  return &(found != nullptr ? found : Append(step))->parts[part];
}

const SetSteps::Step* SetSteps::Append(uint32_t step) {
  const size_t n = size();
  steps_[n] = {step, std::make_unique<Counter[]>(kIdParts)};
  size_.store(n + 1, std::memory_order_release);
  return &steps_[n];
}

template <class F>
void SetSteps::DropIf(F f) {
  size_t left = 0;
  for (size_t i = 0; i < size(); ++i) {
    if (f(steps_[i])) continue;
    if (left != i) steps_[left] = std::move(steps_[i]);
    ++left;
  }
  for (size_t i = left; i < size(); ++i) steps_[i].parts.reset();
  size_.store(left, std::memory_order_release);
}

void SetSteps::Sort() noexcept {
  DropIf([](const Step& step) { return step.rows() == 0; });
  std::sort(steps_.begin(), steps_.begin() + static_cast<ptrdiff_t>(size()),
            [](const Step& a, const Step& b) { return a.step < b.step; });
}

uint64_t SetSteps::Rows(Position from, Position to) const {
  uint64_t rows = 0;
  for (size_t i = 0; i < size(); ++i) rows += steps_[i].Rows(from, to);
  return rows;
}

uint64_t SetSteps::Take(Position from, Position to) noexcept {
  const uint64_t rows = Rows(from, to);
  for (size_t i = 0; i < size(); ++i) {
    const Step& step = steps_[i];
    for (uint32_t p = PartFrom(step.step, from); p < PartFrom(step.step, to); ++p) {
      step.parts[p].store(0, std::memory_order_relaxed);
    }
  }
  DropIf([&](const Step& step) { return step.step >= StepOf(from) && step.step <= StepOf(to) && step.rows() == 0; });
  return rows;
}

}  // namespace damo
