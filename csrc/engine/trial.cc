#include "engine/trial.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace damo {
namespace {

constexpr size_t kRowsAtATime = 64;
constexpr int kUnitShift = 6;  // of the copies: a line each, at least

}  // namespace

std::string DescribeOverflow(uint16_t table, const RowGradients& gradients, const OptimizerStep& step,
                             const CachedTables& rows, const Kernels& kernels) {
  const Table& t = rows.tables[table];
  const size_t units = (t.layout.row_size() + (size_t{1} << kUnitShift) - 1) >> kUnitShift;
  std::vector<char> copies((kRowsAtATime * units) << kUnitShift);
  std::vector<float> buffer(2 * static_cast<size_t>(t.layout.dim));
  std::vector<Slot> slots(kRowsAtATime);
  for (size_t i = 0; i < kRowsAtATime; ++i) slots[i] = static_cast<Slot>(i * units);
  const Arena arena = {copies.data(), kUnitShift};
  for (size_t first = 0; first < gradients.rows.size(); first += kRowsAtATime) {
    const size_t n = std::min(kRowsAtATime, gradients.rows.size() - first);
    for (size_t i = 0; i < n; ++i) {
      std::memcpy(RowAt(arena, slots[i]), rows.cache.Row(gradients.rows[first + i]), t.layout.row_size());
    }
    const ApplyResult tried = kernels.apply[static_cast<size_t>(step.config.kind)](
        {arena, slots.data(), gradients.begin + first, gradients.occurrences, n, t.layout.dim, step, t.schema.iter + 1,
         buffer.data(), t.layout.weight_type, t.schema.initializer.stream_key});
    if (tried.bounds.finite()) continue;
    for (size_t i = 0; i < n; ++i) {
      const char* row = rows.cache.Row(gradients.rows[first + i]);
      if (!kernels.row_bounds(t.layout, row + kPayloadOffset).finite()) continue;  // it was not before
      if (kernels.row_bounds(t.layout, RowAt(arena, slots[i]) + kPayloadOffset).finite()) continue;
      return "the update would make the row of table \"" + t.schema.name + "\", id " + std::to_string(RowId(row)) +
             ", infinite or NaN, though its gradient is finite: the learning rate or the gradient is too large, or "
             "eps " +
             "too small; no table was updated";
    }
  }
  return {};
}

}  // namespace damo
