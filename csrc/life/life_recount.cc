#include "life/life_recount.h"

#include <algorithm>

#include "base/status.h"
#include "life/life_options.h"

namespace damo {
namespace {

uint64_t RowsOf(const LifeState& state) {
  uint64_t rows = 0;
  for (const LifeState::Cell& cell : state.cells) rows += cell.count_class == kSightingClass ? 0 : cell.rows;
  for (const LifeState::Part& part : state.parts) rows += part.rows;
  return rows;
}

std::string Emptied(LifeState state, uint32_t iter) {
  state.iter = std::max(state.iter, iter);
  state.cells.clear();
  state.parts.clear();
  return EncodeLife(state);
}

LifeOptions SameRules(const LifeState& state) {
  LifeOptions options;
  options.idle = state.rules;
  return options;
}

bool Lives(const Ladder& ladder, RowHeader header, int64_t id, bool sighting) {
  return sighting ? !ladder.IsDeadSighting(header) : !ladder.IsDead(header, id);
}

}  // namespace

LifeRecount::LifeRecount(const LifeState& state, uint32_t iter)
    : rows_before_(RowsOf(state)), life_(Emptied(state, iter), SameRules(state)) {}

bool LifeRecount::Count(RowHeader header, int64_t id, bool sighting) {
  if (!Lives(life_.ladder(), header, id, sighting)) return false;
  if (sighting) {
    life_.AddSighting(header);
  } else {
    life_.Add(header, id);
  }
  return true;
}

LifeWithout::LifeWithout(const LifeState& state) : life_(EncodeLife(state), SameRules(state)) {}

bool LifeWithout::Remove(RowHeader header, int64_t id, bool sighting) {
  if (!Lives(life_.ladder(), header, id, sighting)) return false;
  if (!life_.Counts(header, id, sighting)) {
    throw Error(ErrorCode::kCorruption, "the life of rows is of others: it counts none like id " + std::to_string(id) +
                                            ", of step " + std::to_string(header.last_step) + " and " +
                                            std::to_string(header.count) + " updates or sightings");
  }
  if (sighting) {
    life_.RemoveSighting(header);
  } else {
    life_.Remove(header, id);
  }
  return true;
}

}  // namespace damo
