#include "engine/journal_loading.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::Changes;
using testing::ExpectError;
using testing::FailOnce;
using testing::GetRows;
using testing::HookedStore;
using testing::kRoomyCache;
using testing::kTightCache;
using testing::OpenStore;
using testing::PlainTable;
using testing::Step;
using testing::TemporaryDirectory;
using testing::WritesOf;
using Rows = testing::Table;

// Parts of a journal, each of changes of several tables.
using Part = std::map<uint32_t, Changes>;

constexpr uint32_t kWide = 7, kHalf = 3, kUnknown = 5;

std::vector<TableSchema> Schemas() {
  TableSchema half = PlainTable("half", kHalf, 5);
  half.weight_type = WeightType::kFloat16;
  return {PlainTable("wide", kWide, 64), half};
}

size_t PayloadSize(uint32_t table) {
  return table == kUnknown ? 24 : Schemas()[table == kWide ? 0 : 1].layout().payload_size();
}

// That of a row which was never updated: no reason for the cache to keep it.
std::string Payload(uint32_t table, int64_t id, uint64_t version = 0) {
  return testing::Payload(PayloadSize(table) - sizeof(RowHeader), table, id, version) +
         std::string(sizeof(RowHeader), '\0');
}

void Load(Store* store, const std::vector<Part>& parts) {
  store->LoadJournal(Schemas(), [&](const auto& apply) {
    for (const Part& part : parts) {
      std::vector<RowWrite> rows;
      for (const auto& [table, changes] : part) {
        for (const RowWrite& row : WritesOf(table, changes, 9)) rows.push_back(row);
      }
      apply(rows);
    }
  });
}

Part RandomPart(std::mt19937* random, uint64_t version, int64_t ids) {
  Part part;
  for (int i = 0; i < 700; ++i) {
    const uint32_t table = std::vector<uint32_t>{kWide, kHalf, kUnknown}[(*random)() % 3];
    const int64_t id = static_cast<int64_t>((*random)() % static_cast<uint64_t>(ids)) - ids / 2;
    part[table][id] = (*random)() % 8 == 0 ? std::nullopt : std::optional(Payload(table, id, version));
  }
  return part;
}

void Apply(const Part& part, std::map<uint32_t, Rows>* tables) {
  for (const auto& [table, changes] : part) {
    for (const auto& [id, payload] : changes) {
      if (payload) {
        (*tables)[table][id] = *payload;
      } else {
        (*tables)[table].erase(id);
      }
    }
  }
}

void ExpectRows(Store* store, const std::map<uint32_t, Rows>& expected) {
  std::vector<TableSchema> schemas = Schemas();
  schemas.push_back(PlainTable("unknown", kUnknown, 4));
  for (TableSchema& schema : schemas) {
    schema.rows = static_cast<int64_t>(expected.at(schema.number).size());
    const uint16_t table = store->OpenTable(schema);
    EXPECT_TRUE(testing::Contents(store, table) == expected.at(schema.number)) << schema.name;
  }
}

class JournalLoadingTest : public ::testing::TestWithParam<size_t> {};

// With a cache for all, and with one for a part of them.
TEST_P(JournalLoadingTest, ComesOverTheRowsThatWereWritten) {
  const TemporaryDirectory directory;
  std::mt19937 random(1);
  std::map<uint32_t, Rows> expected;
  std::unique_ptr<RowStore> rows = OpenMemoryStore();
  std::vector<Part> parts;
  for (uint64_t version = 0; version < 160; ++version) {
    Part part = RandomPart(&random, version, 20'000);
    Apply(part, &expected);
    if (version >= 10) {
      parts.push_back(std::move(part));
    } else {
      for (const auto& [table, changes] : part) testing::Write(rows.get(), table, changes);
    }
  }
  const std::unique_ptr<Store> store = OpenStore({}, GetParam(), std::move(rows));
  Load(store.get(), parts);
  EXPECT_EQ(store->row_counts().written > 0, GetParam() == kTightCache);
  // The next checkpoint holds them, before anything else has had them written.
  store->Checkpoint(directory / "checkpoint", /*link=*/false);
  ExpectRows(store.get(), expected);
  ExpectRows(OpenStore({}, kRoomyCache, OpenMemoryStore(directory / "checkpoint")).get(), expected);
}

INSTANTIATE_TEST_SUITE_P(Caches, JournalLoadingTest, ::testing::Values(4 * kRoomyCache, kTightCache));

TEST(JournalLoadingTest, ARowGoesOnFromWhereItWas) {
  const std::unique_ptr<Store> before = OpenStore();
  before->OpenTable(PlainTable("wide", kWide, 64));
  Step(before.get(), 0, {1, 2}, 3);
  Changes rows;
  for (const auto& [id, payload] : testing::Contents(before.get(), 0)) rows[id] = payload;
  const std::unique_ptr<Store> store = OpenStore();
  Load(store.get(), {{{kWide, rows}}});
  TableSchema schema = PlainTable("wide", kWide, 64);
  schema.iter = 1;
  schema.rows = 2;
  const uint16_t table = store->OpenTable(schema);
  Step(store.get(), table, {2, 3}, 4);
  EXPECT_EQ(store->iter(table), 2u);
  EXPECT_EQ(store->rows(table), 3);
  EXPECT_EQ(GetRows(store.get(), table, {1}), std::vector<float>(64, -3));
  EXPECT_EQ(GetRows(store.get(), table, {2}), std::vector<float>(64, -7));
  EXPECT_EQ(GetRows(store.get(), table, {3}), std::vector<float>(64, -4));
}

TEST(JournalLoadingTest, ARowOfAnotherSizeIsCorruption) {
  const std::unique_ptr<Store> store = OpenStore();
  ExpectError(ErrorCode::kCorruption, {"table 7, id 4", "264", "263"},
              [&] { Load(store.get(), {{{kWide, {{4, std::string(263, 'x')}}}}}); });
}

TEST(JournalLoadingTest, RowsThatAreTooLargeForTheCacheAreWritten) {
  TableSchema huge = PlainTable("huge", kWide, 1 << 20);
  const std::string payload = testing::Payload(huge.layout().payload_size(), kWide, 1);
  const std::unique_ptr<Store> store = OpenStore();
  const std::vector<RowWrite> rows = {{kWide, 1, payload.data(), payload.size(), 0}};
  store->LoadJournal({&huge, 1}, [&](const auto& apply) { apply(rows); });
  ExpectError(ErrorCode::kInvalidArgument, {"huge", "too large"}, [&] { store->OpenTable(huge); });
  const TemporaryDirectory directory;
  store->Checkpoint(directory / "checkpoint", /*link=*/false);
  EXPECT_EQ(testing::ScanAll(OpenMemoryStore(directory / "checkpoint").get(), kWide, payload.size()),
            (Rows{{1, payload}}));
}

TEST(JournalLoadingTest, ATableOfOtherRowsThanTheJournalsIsRefused) {
  const std::unique_ptr<Store> store = OpenStore();
  Load(store.get(), {{{kWide, {{1, Payload(kWide, 1)}}}}});
  ExpectError(ErrorCode::kSchemaMismatch, {"wide"}, [&] { store->OpenTable(PlainTable("wide", kWide, 63)); });
}

TEST(JournalLoadingTest, WhatCannotBeWrittenIsAnError) {
  FailOnce fail;
  auto rows = std::make_unique<HookedStore>([] {}, std::ref(fail));
  const std::unique_ptr<Store> store = OpenStore({}, kTightCache, std::move(rows));
  Changes changes;
  for (int64_t id = 0; id < 1000; ++id) changes[id] = Payload(kWide, id);
  std::vector<Part> parts;
  for (int64_t part = 0; part < 20; ++part) {
    Changes shifted;
    for (const auto& [id, payload] : changes) shifted[id + 1000 * part] = payload;
    parts.push_back({{kWide, std::move(shifted)}});
  }
  fail.Arm(1);
  ExpectError(ErrorCode::kIo, {"the disk is on fire"}, [&] { Load(store.get(), parts); });
}

}  // namespace
}  // namespace damo
