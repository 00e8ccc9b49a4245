#include "engine/journal_loading.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/huge_pages.h"
#include "base/status.h"
#include "engine/row_copies.h"
#include "row/record.h"

namespace damo {
namespace {

constexpr size_t kRowsAhead = 16;

void CheckSize(const RowWrite& row, size_t expected) {
  if (row.payload_size == expected) return;
  throw Error(ErrorCode::kCorruption, RowName(row.table, row.id) + ": expected a row of " + std::to_string(expected) +
                                          " bytes, found " + std::to_string(row.payload_size));
}

// The cache's memory comes from the system so much at a time, in such pieces.
constexpr size_t kPopulatedAtOnce = size_t{32} << 20, kPopulatedPiece = size_t{2} << 20;

}  // namespace

JournalLoader::JournalLoader(TableOf table_of, CachedTables* rows, RowStore* store, RoomMaker* room,
                             const Compute& compute)
    : table_of_(std::move(table_of)),
      tables_(rows->tables),
      cache_(rows->cache),
      store_(store),
      room_(room),
      compute_(compute) {}

std::optional<uint16_t> JournalLoader::Find(uint32_t number) {
  const auto found = found_.find(number);
  return found != found_.end() ? found->second : found_[number] = table_of_(number);
}

void JournalLoader::Load(std::span<const RowWrite> rows) {
  targets_.clear();
  size_t bytes = 0;
  for (const RowWrite& row : rows) {
    const std::optional<uint16_t> table = Find(row.table);
    targets_.push_back({table, table ? HashTag(*table, row.id) : 0});
    if (!table || row.deletes()) continue;
    CheckSize(row, row.sighting ? sizeof(RowHeader) : tables_[*table].layout.payload_size());
    bytes += cache_.stride(*table);
  }
  room_->MakeRoom(bytes);
  Populate();
  cache_.BeginOperation();
  const auto is_written = [&](size_t i) { return rows[i].deletes() || !targets_[i].table; };
  for (size_t i = 0; i < rows.size();) {
    size_t end = i;
    while (end < rows.size() && is_written(end)) ++end;
    if (end > i) {
      Write(rows.subspan(i, end - i), std::span(targets_).subspan(i, end - i));
      i = end;
      continue;
    }
    if (i + kRowsAhead < rows.size()) cache_.PrefetchForChange(targets_[i + kRowsAhead].tag);
    Put(rows[i], targets_[i]);
    ++i;
  }
}

// The system zeroes a page when it is first touched, which takes longer than filling it: here on all threads at once.
void JournalLoader::Populate() {
  const std::span<char> next = cache_.Untouched(kPopulatedAtOnce);
  if (next.data() + next.size() / 4 < populated_ || next.empty()) return;
  compute_.threads->ParallelFor((next.size() + kPopulatedPiece - 1) / kPopulatedPiece, [&](size_t i, int) {
    const std::span<char> piece = next.subspan(i * kPopulatedPiece);
    PopulatePages(piece.data(), std::min(kPopulatedPiece, piece.size()));
  });
  populated_ = next.data() + next.size();
}

void JournalLoader::Put(const RowWrite& row, Target to) {
  Table& table = tables_[*to.table];
  Slot slot = cache_.Find(to.tag, *to.table, row.id);
  if (slot == kMissingSlot) {
    slot = cache_.Add(*to.table, row.id, to.tag, /*awaited=*/false);
  } else {
    cache_.Touch(slot);
  }
  char* to_row = cache_.Row(slot);
  if (row.sighting) {
    table.DrawPayload(compute_.kernels->draw_row, row.id, InitialState(table.schema.optimizer), to_row);
    std::memcpy(HeaderOf(to_row, table.layout), row.payload, row.payload_size);
  } else {
    std::memcpy(to_row + kPayloadOffset, row.payload, row.payload_size);
  }
  SetRowFlags(to_row, row.sighting ? kAbsent : 0);
  table.bounds.Add(compute_.kernels->row_bounds(table.layout, to_row + kPayloadOffset));
  cache_.MarkDirty(slot);
}

// `rows` are deletions, or not for the cache.
void JournalLoader::Write(std::span<const RowWrite> rows, std::span<const Target> targets) {
  std::vector<RowWrite> sorted(rows.begin(), rows.end());
  RowCopies::SortByKey(&sorted);
  store_->Write(sorted);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!targets[i].table) continue;
    const Slot slot = cache_.Find(targets[i].tag, *targets[i].table, rows[i].id);
    if (slot != kMissingSlot) cache_.Erase(targets[i].tag, slot);
  }
}

}  // namespace damo
