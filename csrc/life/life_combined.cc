#include "life/life_combined.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include "base/status.h"
#include "life/set_steps.h"

namespace damo {
namespace {

Ladder LowerOf(const Ladder& a, const Ladder& b) {
  Ladder lower;
  for (size_t c = 0; c < kLadderClasses; ++c) lower.Raise(c, std::min(a.position(c), b.position(c)));
  return lower;
}

void Add(const LifeCounts& other, LifeCounts* counts) {
  counts->created += other.created;
  counts->cut += other.cut;
  counts->forgotten_sightings += other.forgotten_sightings;
  for (size_t i = 0; i < counts->expired.size(); ++i) counts->expired[i] += other.expired[i];
}

std::vector<LifeState> DecodeAll(const std::vector<std::string>& lives) {
  if (lives.empty()) throw Error(ErrorCode::kInvalidArgument, "lives to combine: expected some, got none");
  std::vector<LifeState> states;
  for (const std::string& life : lives) {
    states.push_back(DecodeLife(life));
    if (states.back().rules == states[0].rules) continue;
    throw Error(ErrorCode::kInvalidArgument, "lives to combine: expected one set of rules, got several");
  }
  return states;
}

// Adds up what is of one place, in the order of places.
template <class T, class Place>
void Sum(std::vector<T>* counted, Place place) {
  std::map<decltype(place(counted->front())), T> sums;
  for (const T& one : *counted) {
    const auto [there, added] = sums.emplace(place(one), one);
    if (!added) there->second.rows += one.rows;
  }
  counted->clear();
  for (const auto& [_, sum] : sums) counted->push_back(sum);
}

// Has cells count the rows of the first steps with parts, until no more of these are left than a life may have.
void FoldParts(LifeState* state) {
  std::map<uint32_t, size_t> steps;
  for (const LifeState::Part& part : state->parts) ++steps[part.step];
  size_t folded = 0;
  for (auto step = steps.begin(); steps.size() > SetSteps::kMost; step = steps.erase(step)) folded += step->second;
  for (const LifeState::Part& part : std::span(state->parts).first(folded)) {
    const auto after =
        std::upper_bound(state->buckets.begin(), state->buckets.end(), PositionOf(part.step, part.part),
                         [](Position position, const Bucket& bucket) { return position < bucket.first; });
    state->cells.push_back({0, static_cast<uint32_t>(after - state->buckets.begin()) - 1, part.rows});
  }
  state->parts.erase(state->parts.begin(), state->parts.begin() + static_cast<ptrdiff_t>(folded));
}

}  // namespace

std::string CombineLives(const std::vector<std::string>& lives, bool counts) {
  const std::vector<LifeState> states = DecodeAll(lives);
  LifeState combined = states[0];  // whose clock goes on, as its buckets are by that
  for (const LifeState& other : std::span(states).subspan(1)) {
    combined.iter = std::max(combined.iter, other.iter);
    combined.ladder = LowerOf(combined.ladder, other.ladder);
    combined.first_set_step = std::max(combined.first_set_step, other.first_set_step);
    combined.too_many_set_steps |= other.too_many_set_steps;
    Add(other.counts, &combined.counts);
  }
  if (!counts) combined.counts = {.expired = std::vector<uint64_t>(combined.rules.size())};
  combined.cells.clear();
  combined.parts.clear();
  return EncodeLife(combined);
}

LifeState SumOfLives(const std::vector<std::string>& lives) {
  const std::vector<LifeState> states = DecodeAll(lives);
  LifeState sum = states[0];
  for (const LifeState& other : std::span(states).subspan(1)) {
    if (other.buckets != sum.buckets || !(other.ladder == sum.ladder) || other.iter != sum.iter) {
      throw Error(ErrorCode::kInvalidArgument, "lives to add up: expected the same edges and ladder, got others");
    }
    sum.cells.insert(sum.cells.end(), other.cells.begin(), other.cells.end());
    sum.parts.insert(sum.parts.end(), other.parts.begin(), other.parts.end());
    sum.first_set_step = std::max(sum.first_set_step, other.first_set_step);
  }
  Sum(&sum.parts, [](const LifeState::Part& part) { return std::pair(part.step, part.part); });
  FoldParts(&sum);
  Sum(&sum.cells, [](const LifeState::Cell& cell) { return std::pair(cell.count_class, cell.bucket); });
  return sum;
}

std::string AlignedLife(const std::string& own, const std::vector<std::string>& lives) {
  const std::vector<LifeState> states = DecodeAll(lives);
  LifeState aligned = states[0];
  for (const LifeState& other : states) {
    aligned.iter = std::max(aligned.iter, other.iter);
    aligned.ladder.RaiseTo(other.ladder);
    aligned.first_set_step = std::max(aligned.first_set_step, other.first_set_step);
    aligned.too_many_set_steps |= other.too_many_set_steps;
  }
  aligned.counts = DecodeLife(own).counts;
  aligned.cells.clear();
  aligned.parts.clear();
  return EncodeLife(aligned);
}

}  // namespace damo
