// The time that idle rules go by: a clock's, which may be wrong, stop for a holiday, or go back.
//
// It goes on with the clock's highest reading, and never back. Of a leap ahead each rule counts half of its own time at
// most, so that neither a wrong clock nor a holiday has rows go that did not miss their updates.
#pragma once

#include <cstddef>
#include <vector>

namespace damo {

class LifeClock {
 public:
  struct Leap {
    double time;  // before it
    double gap;   // seconds
    bool operator==(const Leap&) const = default;
  };
  // Two leaps by more than half of a rule have all rows due that stood before them, so that few matter at once. Others
  // are kept for the sake of rules that may come.
  static constexpr size_t kMostLeaps = 256;

  explicit LifeClock(double reading) : LifeClock(0, reading, {}) {}
  LifeClock(double time, double reading, std::vector<Leap> leaps);

  // Seconds since the life began, and what the clock said then.
  double time() const { return time_; }
  double reading() const { return reading_; }
  const std::vector<Leap>& leaps() const { return leaps_; }
  // By how many seconds the clock had gone ahead when it was read last.
  double gap() const { return gap_; }

  // Takes a reading, which is finite. `rules`: the times of those that are in force, ascending.
  void Read(double reading, const std::vector<double>& rules) noexcept;
  // Allocates what the next Read takes.
  void Reserve() { leaps_.reserve(leaps_.size() + 1); }
  // What time() would be after Read.
  double TimeAt(double reading) const;

  // Seconds that have passed since `since`, a time(), by a rule of `rule` seconds.
  double IdleTime(double since, double rule) const;

 private:
  void Note(const Leap& leap, const std::vector<double>& rules) noexcept;
  bool Matters(const Leap& leap, const std::vector<double>& rules) const;

  double time_, reading_;
  double gap_ = 0;
  std::vector<Leap> leaps_;  // ascending
};

}  // namespace damo
