#include "life/life_combined.h"

#include <algorithm>

#include "base/status.h"
#include "life/life_bytes.h"

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

}  // namespace

std::string CombineLives(const std::vector<std::string>& lives, bool counts) {
  if (lives.empty()) throw Error(ErrorCode::kInvalidArgument, "lives to combine: expected some, got none");
  LifeState combined = DecodeLife(lives[0]);  // whose clock goes on, as its buckets are by that
  for (size_t i = 1; i < lives.size(); ++i) {
    const LifeState other = DecodeLife(lives[i]);
    if (other.rules != combined.rules) {
      throw Error(ErrorCode::kInvalidArgument, "lives to combine: expected one set of rules, got several");
    }
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

}  // namespace damo
