#include "life/set_steps.h"

#include <algorithm>
#include <utility>

namespace damo {

uint64_t SetSteps::Step::rows_below(uint32_t part) const {
  uint64_t rows = 0;
  for (uint32_t p = 0; p < part; ++p) rows += parts[p].load(std::memory_order_relaxed);
  return rows;
}

uint64_t SetSteps::Step::rows() const { return rows_below(kIdParts); }

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

uint64_t SetSteps::Rows(uint64_t from, uint64_t to) const {
  uint64_t rows = 0;
  for (size_t i = 0; i < size(); ++i) {
    if (steps_[i].step >= from && steps_[i].step < to) rows += steps_[i].rows();
  }
  return rows;
}

uint64_t SetSteps::Take(uint64_t from, uint64_t to) noexcept {
  const uint64_t rows = Rows(from, to);
  DropIf([&](const Step& step) { return step.step >= from && step.step < to; });
  return rows;
}

uint32_t SetSteps::LeastPart(uint32_t step, uint64_t rows) const {
  const Step* found = Find(step);
  if (found == nullptr) return kIdParts;
  uint32_t part = 0;
  for (uint64_t below = 0; below < rows && part < kIdParts; ++part) {
    below += found->parts[part].load(std::memory_order_relaxed);
  }
  return part;
}

uint64_t SetSteps::TakeParts(uint32_t step, uint32_t part) noexcept {
  const Step* found = Find(step);
  if (found == nullptr) return 0;
  const uint64_t rows = found->rows_below(part);
  for (uint32_t p = 0; p < part; ++p) found->parts[p].store(0, std::memory_order_relaxed);
  return rows;
}

std::optional<uint32_t> SetSteps::LastBefore(uint64_t step) const {
  std::optional<uint32_t> last;
  for (size_t i = 0; i < size(); ++i) {
    if (steps_[i].step < step) last = std::max(last.value_or(0), steps_[i].step);
  }
  return last;
}

}  // namespace damo
