#include "life/life_clock.h"

#include <algorithm>
#include <utility>

namespace damo {
namespace {

// No clock of anybody's goes on by more seconds at once: 30 years.
constexpr double kLongestGap = 1e9;

double GapOf(double ahead) { return std::clamp(ahead, 0.0, kLongestGap); }

}  // namespace

LifeClock::LifeClock(double time, double reading, std::vector<Leap> leaps)
    : time_(time), reading_(reading), leaps_(std::move(leaps)) {}

double LifeClock::TimeAt(double reading) const { return time_ + GapOf(reading - reading_); }

void LifeClock::Read(double reading, const std::vector<double>& rules) noexcept {
  const double ahead = reading - reading_;
  const double leap = rules.empty() ? kLongestGap : std::min(rules.front() / 2, kLongestGap);
  gap_ = GapOf(ahead);
  if (!rules.empty() && gap_ > leap) Note({time_, gap_}, rules);
  time_ += gap_;
  // A clock may go back a little, as the times of events do, and then counts again when it is where it was. If it goes
  // back further, it has been set right.
  if (ahead > 0 || -ahead > leap) reading_ = reading;
}

void LifeClock::Note(const Leap& leap, const std::vector<double>& rules) noexcept {
  if (leaps_.size() >= kMostLeaps) {
    std::erase_if(leaps_, [&](const Leap& earlier) { return !Matters(earlier, rules); });
    if (leaps_.size() >= kMostLeaps) leaps_.erase(leaps_.begin());
  }
  leaps_.push_back(leap);
}

// Whether rows that stood before it might be due too early without it.
bool LifeClock::Matters(const Leap& leap, const std::vector<double>& rules) const {
  return std::any_of(rules.begin(), rules.end(),
                     [&](double rule) { return leap.gap > rule / 2 && IdleTime(leap.time, rule) < rule; });
}

double LifeClock::IdleTime(double since, double rule) const {
  double idle = time_ - since;
  for (auto leap = leaps_.rbegin(); leap != leaps_.rend() && leap->time >= since; ++leap) {
    idle -= std::max(leap->gap - rule / 2, 0.0);
  }
  return idle;
}

}  // namespace damo
