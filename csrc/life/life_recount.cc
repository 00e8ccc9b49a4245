#include "life/life_recount.h"

#include <algorithm>

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

}  // namespace

LifeRecount::LifeRecount(const LifeState& state, uint32_t iter)
    : rows_before_(RowsOf(state)), life_(Emptied(state, iter), SameRules(state)) {}

bool LifeRecount::Count(RowHeader header, int64_t id, bool sighting) {
  const Ladder& ladder = life_.ladder();
  if (sighting ? ladder.IsDeadSighting(header) : ladder.IsDead(header, id)) return false;
  if (sighting) {
    life_.AddSighting(header);
  } else {
    life_.Add(header, id);
  }
  return true;
}

}  // namespace damo
