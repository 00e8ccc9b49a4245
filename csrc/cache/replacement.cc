#include "cache/replacement.h"

namespace damo {
namespace {

// Probation's share of the segments that are not open.
constexpr double kProbationShare = 0.05;
// What an eviction from main should keep of a segment; more raises the bar for frequent rows, less lowers it.
constexpr double kKeptShare = 0.85;
// The bar does not sink below this, so that it rises above any row within a few evictions that free nothing.
constexpr double kLeastFrequent = 1e-6;
// No row is updated more than once in a step.
constexpr double kMostFrequent = 1.5;

size_t Sealed(const std::vector<uint32_t>& queue) { return queue.empty() ? 0 : queue.size() - 1; }

}  // namespace

Replacement::Replacement(size_t segments) : places_(segments) {
  probation_.reserve(segments);
  main_.reserve(segments);
}

void Replacement::Open(Queue queue, uint32_t segment) {
  places_[segment] = {queue, ++arrivals_};
  Of(queue).push_back(segment);
}

std::vector<uint32_t> Replacement::SegmentsInUse() const {
  std::vector<uint32_t> all(probation_.begin(), probation_.end());
  all.insert(all.end(), main_.begin(), main_.end());
  return all;
}

// Those that are not open.
size_t Replacement::awaited_segments() const {
  const auto awaited = [&](uint32_t segment) { return places_[segment].arrival >= awaited_from_; };
  const auto end = probation_.begin() + static_cast<ptrdiff_t>(Sealed(probation_));
  return static_cast<size_t>(std::count_if(probation_.begin(), end, awaited));
}

size_t Replacement::spare_segments() const { return Sealed(main_) + Sealed(probation_) - awaited_segments(); }

std::vector<uint32_t> Replacement::NextVictims(size_t n) const {
  std::vector<uint32_t> victims;
  size_t p = 0, m = 0;
  const size_t sealed_p = Sealed(probation_), sealed_m = Sealed(main_);
  const double probation =
      std::max(kProbationShare * static_cast<double>(sealed_p + sealed_m), static_cast<double>(awaited_segments()));
  while (victims.size() < n && p + m < sealed_p + sealed_m) {
    const bool above_share = p<sealed_p&& static_cast<double>(sealed_p - p)> probation;
    const bool from_probation = m == sealed_m || above_share;
    victims.push_back(from_probation ? probation_[p++] : main_[m++]);
  }
  return victims;
}

Replacement::Eviction Replacement::Begin(uint32_t segment) {
  const Queue queue = places_[segment].queue;
  Segments& segments = Of(queue);
  segments.erase(std::find(segments.begin(), segments.end(), segment));
  return {queue};
}

void Replacement::End(const Eviction& eviction) {
  if (eviction.from != Queue::kMain || eviction.rows == 0) return;
  const double share = static_cast<double>(eviction.kept) / static_cast<double>(eviction.rows);
  const double factor = share == 1 ? 16 : share > kKeptShare ? 1.05 : 0.95;
  frequent_ = std::clamp(frequent_ * factor, kLeastFrequent, kMostFrequent);
}

}  // namespace damo
