// A store's calls for how long the rows of a table live.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/store.h"
#include "life/life_combined.h"
#include "life/life_recount.h"
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

TableLife& Store::LifeAt(uint16_t table) {
  const Table& t = TableAt(table);
  if (t.life != nullptr) return *t.life;
  throw Error(ErrorCode::kInvalidArgument, "table \"" + t.schema.name + "\" has no life");
}

LifeCensus Store::CensusOf(uint16_t table, std::span<const GradientPart> parts) {
  const Call call(this);
  size_t ids = 0;
  for (const GradientPart& part : parts) {
    for (const Feature& feature : part.lookup->features) {
      if (feature.table == table) ids += part.lookup->ids_of(feature);
    }
  }
  return LifeAt(table).Census(ids);
}

bool Store::MayExchange(std::span<const SharedTable> shared, double clock) {
  const Call call(this);
  return std::any_of(shared.begin(), shared.end(), [&](const SharedTable& one) DAMO_REQUIRES(store_mutex) {
    return LifeAt(one.table).MayExchange(tables_[one.table].schema.iter + 1, one.census, clock);
  });
}

uint64_t Store::LifeDigest(uint16_t table) {
  const Call call(this);
  return LifeAt(table).Digest();
}

void Store::AlignLife(uint16_t table, const std::vector<std::string>& lives) {
  const Call call(this);
  capture_.AwaitEnd();
  RequireWritable("given a life");
  TableLife& life = LifeAt(table);
  Table& t = TableAt(table);
  LifeRecount recount(AlignedLife(life.Serialize(), lives), t.schema.iter);
  write_back_.WriteAll();
  const auto snapshot = store_->TakeSnapshot({&t.schema.number, 1});
  for (const bool sightings : {false, true}) {
    const size_t payload_size = t.layout.payload_size();
    const std::unique_ptr<RowIterator> rows = snapshot->Scan(t.schema.number, payload_size, 0, sightings);
    const size_t header_at = sightings ? sizeof(RowHeader) : payload_size;
    int64_t id;
    for (const char* payload; rows->Next(&id, &payload);) {
      const RowHeader header = PayloadHeader(payload, header_at);
      const bool lives_on = sightings ? !life.ladder().IsDeadSighting(header) : !life.ladder().IsDead(header, id);
      if (lives_on) recount.Count(header, id, sightings);
    }
  }
  t.life = std::make_unique<TableLife>(recount.Serialize(), life.options());
  t.schema.rows = static_cast<int64_t>(t.life->rows());
  ++t.writes;
  cache_.InvalidateSlots();  // some may be of rows that are dead now
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

uint64_t Store::PreviewLife(uint16_t table, const LifeOptions& options, const std::vector<std::string>& lives) {
  CheckLifeOptions(options);
  const Call call(this);
  const TableLife& life = LifeAt(table);
  if (lives.empty()) return life.Preview(options);
  return TableLife(EncodeLife(SumOfLives(lives)), life.options()).Preview(options);
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
