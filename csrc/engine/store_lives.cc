// A store's calls for how long the rows of a table live.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/store.h"
#include "life/row_sample.h"

namespace damo {

uint16_t Store::OpenTable(const TableSchema& schema, const std::string& life, const LifeOptions& options) {
  std::unique_ptr<TableLife> parsed;
  try {
    parsed = std::make_unique<TableLife>(life, options);
  } catch (const Error& error) {
    throw Error(error.code(), "table \"" + schema.name + "\": " + error.what());
  }
  if (schema.rows != static_cast<int64_t>(parsed->rows())) {
    throw Error(ErrorCode::kCorruption, "table \"" + schema.name + "\": its life has " +
                                            std::to_string(parsed->rows()) + " rows, expected " +
                                            std::to_string(schema.rows));
  }
  const uint16_t index = OpenTable(schema);
  const Call call(this);
  tables_[index].life = std::move(parsed);
  return index;
}

void Store::SetLife(uint16_t table, const LifeOptions& options, double clock) {
  CheckLifeOptions(options);
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("given a life");
  Table& t = TableAt(table);
  if (t.life != nullptr) return t.life->SetOptions(options);
  if (t.schema.rows > 0) write_back_.WriteAll();
  const auto for_each_row = [&](const auto& f) {
    if (t.schema.rows == 0) return;
    const size_t payload_size = t.layout.payload_size();
    const std::unique_ptr<RowIterator> rows = store_->Scan(t.schema.number, payload_size);
    int64_t id;
    for (const char* payload; rows->Next(&id, &payload);) f(PayloadHeader(payload, payload_size), id);
  };
  RowSample sample;  // so that a cut can divide steps that brought many
  for_each_row([&](RowHeader header, int64_t row) { sample.Add(header, row); });
  const std::vector<Position> edges = sample.Edges(TableLife::RowEdges());
  auto life = std::make_unique<TableLife>(options, t.schema.iter, clock, LifeLimits(), edges);
  for_each_row([&](RowHeader header, int64_t row) { life->Add(header, row); });
  if (static_cast<int64_t>(life->rows()) != t.schema.rows) {
    throw Error(ErrorCode::kCorruption, "table \"" + t.schema.name + "\" has " + std::to_string(life->rows()) +
                                            " rows, expected " + std::to_string(t.schema.rows));
  }
  t.life = std::move(life);
}

void Store::Follow(uint16_t table, const Ladder& ladder) {
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("given a ladder");
  Table& t = TableAt(table);
  t.life = nullptr;
  t.followed = ladder;
  ++t.writes;                // rows may die, or live again
  cache_.InvalidateSlots();  // some may be of rows that are dead now
}

std::optional<LifeStats> Store::life_stats(uint16_t table) {
  const Call call(this);
  TableLife* const life = TableAt(table).life.get();
  if (life == nullptr) return std::nullopt;
  return LifeStats{life->rows(),   life->sighted(),      life->counts(),
                   life->ladder(), life->memory_bytes(), life->clock_gap()};
}

std::optional<std::string> Store::life_bytes(uint16_t table) {
  const Call call(this);
  const TableLife* const life = TableAt(table).life.get();
  if (life == nullptr) return std::nullopt;
  return life->Serialize();
}

uint64_t Store::PreviewLife(uint16_t table, const LifeOptions& options) {
  CheckLifeOptions(options);
  const Call call(this);
  const Table& t = TableAt(table);
  if (t.life != nullptr) return t.life->Preview(options);
  throw Error(ErrorCode::kInvalidArgument, "table \"" + t.schema.name + "\" has no life that could be foreseen");
}

void Store::NoteDead() {
  if (capture_.active()) return;
  for (Table& table : tables_) {
    if (table.dropped || table.life == nullptr || table.life->ladder() == table.reclaimable) continue;
    table.reclaimable = table.life->ladder();
    store_->SetReclaimable(table.schema.number, {table.reclaimable, 0});
  }
}

}  // namespace damo
