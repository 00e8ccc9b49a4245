#include "life/histogram.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

namespace damo {
namespace {

constexpr size_t kFirstCapacity = 64;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::unique_ptr<Counter[]> Zeros(size_t n) { return std::make_unique<Counter[]>(n); }

void Copy(const Counter* from, size_t n, Counter* to) {
  for (size_t i = 0; i < n; ++i) to[i].store(from[i].load(std::memory_order_relaxed), std::memory_order_relaxed);
}

}  // namespace

Histogram::Cells::~Cells() {
  for (std::atomic<Counter*>& cells : of_class) delete[] cells.load();
}

Histogram::Histogram(std::vector<Bucket> buckets, size_t most)
    : most_(most), capacity_(std::bit_ceil(std::max(kFirstCapacity, buckets.size()))), buckets_(std::move(buckets)) {
  buckets_.reserve(capacity_);
  NoteRecent();
}

size_t Histogram::memory_bytes() const {
  size_t classes = 0;
  for (size_t c = 0; c < kLadderClasses; ++c) classes += Has(c) ? 1 : 0;
  return sizeof *this + buckets_.capacity() * sizeof(Bucket) + classes * capacity_ * sizeof(Counter);
}

size_t Histogram::FindOld(Position position) const {
  const auto after = std::upper_bound(buckets_.begin(), buckets_.end(), position,
                                      [](Position p, const Bucket& bucket) { return p < bucket.first; });
  return static_cast<size_t>(after - buckets_.begin()) - 1;
}

// Two threads may make the same: one of them is used.
Counter* Histogram::MakeCells(size_t count_class) {
  std::unique_ptr<Counter[]> cells = Zeros(capacity_);
  Counter* there = nullptr;
  if (!cells_[count_class].compare_exchange_strong(there, cells.get(), std::memory_order_acq_rel)) return there;
  return cells.release();
}

// For the first row of a class, whose next update may take it to the class above.
Counter* Histogram::MakeClass(size_t count_class) {
  if (count_class + 1 < kCountClasses && !Has(count_class + 1)) MakeCells(count_class + 1);
  return MakeCells(count_class);
}

uint64_t Histogram::Rows(size_t count_class, size_t from, size_t to) const {
  const Counter* cells = cells_[count_class].load(std::memory_order_relaxed);
  uint64_t rows = 0;
  if (cells == nullptr) return rows;
  for (size_t b = from; b < to; ++b) rows += cells[b].load(std::memory_order_relaxed);
  return rows;
}

uint64_t Histogram::Take(size_t count_class, size_t from, size_t to) noexcept {
  Counter* cells = cells_[count_class].load(std::memory_order_relaxed);
  uint64_t rows = 0;
  if (cells == nullptr) return rows;
  for (size_t b = from; b < to; ++b) {
    rows += cells[b].load(std::memory_order_relaxed);
    cells[b].store(0, std::memory_order_relaxed);
  }
  return rows;
}

void Histogram::PrepareClasses(bool sightings) {
  if (sightings && !Has(kSightingClass)) MakeCells(kSightingClass);
  for (size_t c = 1; c < kCountClasses; ++c) {
    const bool rises = c <= 2 || Rows(c - 1, NewestFrom(), size()) > 0;
    if (rises && !Has(c)) MakeCells(c);
  }
}

void Histogram::Reserve(size_t buckets) {
  if (buckets <= capacity_) return;
  const size_t capacity = std::bit_ceil(buckets);
  std::array<std::unique_ptr<Counter[]>, kLadderClasses> grown;
  for (size_t c = 0; c < kLadderClasses; ++c) {
    if (Has(c)) grown[c] = Zeros(capacity);
  }
  buckets_.reserve(capacity);
  for (size_t c = 0; c < kLadderClasses; ++c) {
    if (!grown[c]) continue;
    Copy(cells_[c].load(), size(), grown[c].get());
    delete[] cells_[c].exchange(grown[c].release());
  }
  capacity_ = capacity;
}

void Histogram::Open(uint32_t step, size_t parts, double before, double time) noexcept {
  const auto ended = static_cast<uint16_t>(size() - 1);
  recent_from_ = std::max(recent_from_, step >= kRecent ? step - static_cast<uint32_t>(kRecent) + 1 : 0);
  for (uint32_t s = std::max(last_step_ + 1, recent_from_); s < step; ++s) recent_[s % kRecent] = {ended, 0};
  recent_[step % kRecent] = {static_cast<uint16_t>(ended + 1), static_cast<uint16_t>(parts - 1)};
  for (size_t i = 0; i < parts; ++i) {
    buckets_.push_back({PositionOf(step, static_cast<uint32_t>(i * kIdParts / parts)), i == 0 ? before : time});
  }
  last_step_ = step;
}

void Histogram::Retime(uint32_t step, double time) noexcept {
  for (size_t b = size(); b-- > 0 && buckets_[b].first > PositionOf(step);) buckets_[b].time = time;
}

void Histogram::NoteRecent() noexcept {
  last_step_ = StepOf(buckets_.back().first);
  recent_from_ = last_step_ >= kRecent ? last_step_ - static_cast<uint32_t>(kRecent) + 1 : 0;
  size_t b = FindOld(PositionOf(recent_from_));
  for (uint64_t s = recent_from_; s <= last_step_; ++s) {
    while (b + 1 < size() && buckets_[b + 1].first <= PositionOf(s)) ++b;
    const size_t first = b;
    while (b + 1 < size() && buckets_[b + 1].first < PositionOf(s + 1)) ++b;
    recent_[s % kRecent] = {static_cast<uint16_t>(first), static_cast<uint16_t>(b - first)};
  }
}

// With a limit to what a merger may cost, which rises until enough are merged.
bool Histogram::Merge(size_t most, const std::vector<Contents>& contents, const Cost& cost, double dearest) {
  if (size() <= most) return true;
  std::vector<double> costs;
  double limit = 0;
  for (size_t cheap = size() - most;; cheap *= 2) {
    const std::vector<uint16_t> becomes = PlanMerge(most, contents, cost, limit);
    if (becomes.back() < most) {
      Apply(becomes);
      return true;
    }
    if (limit >= dearest || size() <= 2) return false;
    if (costs.empty()) costs = CostsOfMergers(contents, cost);
    limit = std::min(cheap < costs.size() ? std::max(costs[cheap], limit) : kInfinity, dearest);
  }
}

// Ascending.
std::vector<double> Histogram::CostsOfMergers(const std::vector<Contents>& contents, const Cost& cost) const {
  std::vector<double> costs;
  for (size_t b = 0; b + 2 < size(); ++b) {
    costs.push_back(cost({buckets_[b], buckets_[b + 2], contents[b], contents[b + 1]}));
  }
  std::sort(costs.begin(), costs.end());
  return costs;
}

std::vector<uint16_t> Histogram::PlanMerge(size_t most, const std::vector<Contents>& contents, const Cost& cost,
                                           double limit) const {
  const size_t last = size() - 1;
  std::vector<uint16_t> becomes(size());
  Neighbours merged{buckets_[0], {}, contents[0], {}};
  uint16_t n = 0;
  for (size_t b = 1; b < last; ++b) {
    merged.end = buckets_[b + 1];
    merged.later = contents[b];
    if (size_t{n} + 1 + size() - b > most && cost(merged) <= limit) {
      merged.earlier.rows += merged.later.rows;
      merged.earlier.sightings += merged.later.sightings;
    } else {
      ++n;
      merged = {buckets_[b], {}, contents[b], {}};
    }
    becomes[b] = n;
  }
  becomes[last] = static_cast<uint16_t>(last == 0 ? 0 : n + 1);
  return becomes;
}

void Histogram::Apply(const std::vector<uint16_t>& becomes) noexcept {
  const size_t before = size();
  for (size_t c = 0; c < kLadderClasses; ++c) {
    Counter* cells = cells_[c].load();
    if (cells == nullptr) continue;
    for (size_t b = 1; b < before; ++b) {
      if (becomes[b] == b) continue;
      Counter& to = cells[becomes[b]];
      to.store(to.load(std::memory_order_relaxed) + cells[b].load(std::memory_order_relaxed),
               std::memory_order_relaxed);
      cells[b].store(0, std::memory_order_relaxed);
    }
  }
  for (size_t b = 1; b < before; ++b) {
    if (becomes[b] != becomes[b - 1]) buckets_[becomes[b]] = buckets_[b];
  }
  buckets_.erase(buckets_.begin() + becomes[before - 1] + 1, buckets_.end());
  NoteRecent();
}

}  // namespace damo
