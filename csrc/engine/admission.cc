#include "engine/admission.h"

#include <algorithm>
#include <cstdint>

#include "row/philox.h"

namespace damo {
namespace {

// Apart from what else is drawn with a table's key.
constexpr uint64_t kSightingStream = 0x7369676874696E67;

// How many of `occurrences` count, each with this probability.
uint32_t Draw(double probability, uint64_t stream_key, int64_t id, uint32_t iter, uint32_t occurrences) {
  if (probability >= 1) return occurrences;
  const auto below = static_cast<uint64_t>(probability * 0x1p32);
  uint32_t counted = 0;
  for (uint32_t i = 0; i < occurrences; ++i) {
    const uint64_t counter = uint64_t{iter} << 32 | i;
    counted += Philox(static_cast<uint64_t>(id), counter, stream_key ^ kSightingStream).v[0] < below ? 1 : 0;
  }
  return counted;
}

uint32_t AddSaturated(uint32_t a, uint32_t b) { return a + std::min(b, UINT32_MAX - a); }

}  // namespace

bool Admit(const Table& table, char* row, uint32_t occurrences, uint32_t iter, LifeTally* tally) {
  RowHeader& header = *HeaderOf(row, table.layout);
  if (!(RowFlags(row) & kAbsent)) {
    tally->Remove(header, RowId(row));
    tally->Add({iter, AddSaturated(header.count, 1)}, RowId(row));
    return true;
  }
  const LifeOptions& options = table.life->options();
  const bool sighted = header.count > 0 && !table.life->ladder().IsDeadSighting(header);
  if (options.sightings > 1 || sighted) {
    const uint32_t counted =
        Draw(options.probability, table.schema.initializer.stream_key, RowId(row), iter, occurrences);
    const uint32_t sightings = AddSaturated(sighted ? header.count : 0, counted);
    if (sightings < options.sightings) {
      if (counted == 0) return false;
      if (sighted) tally->RemoveSighting(header);
      header = {iter, sightings};
      tally->AddSighting(header);
      SetRowFlags(row, RowFlags(row) | kDirty | kChanged);
      return false;
    }
    if (sighted) tally->RemoveSighting(header);
  }
  header = {};
  tally->Add({iter, 1}, RowId(row));
  return true;
}

}  // namespace damo
