#include "life/row_sample.h"

#include <algorithm>

namespace damo {

void RowSample::Add(RowHeader row, int64_t id) {
  const uint64_t hash = IdHash(id);
  if ((hash & passed_over_) != 0) return;
  rows_.emplace_back(hash, PositionOf(row.last_step, IdPart(id)));
  if (rows_.size() <= kMost) return;
  passed_over_ = passed_over_ * 2 + 1;
  std::erase_if(rows_, [this](const auto& kept) { return (kept.first & passed_over_) != 0; });
}

std::vector<Position> RowSample::Edges(size_t most) const {
  std::vector<Position> positions, edges;
  for (const auto& [hash, position] : rows_) positions.push_back(position);
  std::sort(positions.begin(), positions.end());
  for (size_t i = 0; i < most && !positions.empty(); ++i) edges.push_back(positions[i * positions.size() / most]);
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  return edges;
}

}  // namespace damo
